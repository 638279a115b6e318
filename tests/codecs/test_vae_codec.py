"""The codec of AudioLDM with random weights: shapes, layout, long audio, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.audio.mel import MelConfig, log_mel
from fasttta_jax.codecs import VaeCodec, load_codec
from fasttta_jax.codecs.base import CONFIG_FILE
from fasttta_jax.codecs.vae_codec import VaeCodecConfig, from_tokens, to_tokens
from fasttta_jax.pretrained.hifigan import Hifigan
from fasttta_jax.pretrained.hifigan import load as load_hifigan
from fasttta_jax.pretrained.vae import Vae
from fasttta_jax.pretrained.vae import load as load_vae
from fasttta_jax.storage.weights import ConvertedError
from tests.support import conversions
from tests.support.mel_reference import mel_rounding
from tests.support.tolerance import assert_close, kernel_terms, rounding

SMALL = VaeCodecConfig(window_frames=128, overlap_frames=64, margin_frames=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("weights")
    conversions.random_vae(folder / "vae")
    conversions.random_vocoder(folder / "vocoder")
    return folder


@pytest.fixture(scope="module")
def codec(weights, tmp_path_factory) -> VaeCodec:
    folder = tmp_path_factory.mktemp("codec")
    return VaeCodec.create(folder, vae=weights / "vae", vocoder=weights / "vocoder", config=SMALL)


def sounds(num_columns: int, codec: VaeCodec, rows: int = 2) -> np.ndarray:
    shape = (rows, num_columns * codec.samples_per_column)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def test_ten_seconds_are_256_tokens_of_128_numbers(weights):
    """With the published strides: 4 x 4 patches of an 8-channel grid of 256 x 16."""
    config, _ = load_vae(weights / "vae")
    frames = 163_840 // VaeCodecConfig().mel.hop_length
    grid = (frames // config.stride, 64 // config.stride)
    assert (frames, *grid) == (1024, 256, 16)
    assert to_tokens(jnp.zeros((1, *grid, 8)), 4).shape == (1, 256, 128)


def test_patches_are_time_major_and_channel_first():
    grid = jnp.arange(8.0 * 8 * 3).reshape(1, 8, 8, 3)
    tokens = to_tokens(grid, 4)
    np.testing.assert_array_equal(from_tokens(tokens, 4, 2), grid)
    patch = np.asarray(grid[0, 4:, :4])  # second column, first band
    np.testing.assert_array_equal(tokens[0, 2], patch.transpose(2, 0, 1).ravel())


def test_tokens_are_scaled_posterior_means(codec, weights):
    audio = sounds(2, codec)
    config, params = load_vae(weights / "vae")
    spectrograms = log_mel(jnp.asarray(audio), SMALL.mel)
    encode = jax.jit(functools.partial(Vae(config).apply, method=Vae.encode))
    mean, log_variance = encode({"params": params}, spectrograms)
    posterior = codec.encode_posterior(audio)
    assert posterior.mean.shape == (2, 2 * codec.tokens_per_column, codec.token_dim)
    # the spectrograms may differ by their rounding, of which norms see the share in a deviation
    of_mel = max(mel_rounding(clip, SMALL.mel).max() for clip in audio) / np.std(spectrograms)
    bound = float(of_mel) + rounding(kernel_terms(params["encoder"]))
    assert bound < 1e-4
    assert_close(posterior.mean, to_tokens(mean * 0.4, 4), bound)
    expected = to_tokens(log_variance, 4) + 2 * np.log(0.4)
    assert_close(posterior.log_variance, expected, bound)
    np.testing.assert_array_equal(codec.encode(audio), posterior.mean)


def test_decoding_undoes_the_scale_and_runs_the_vocoder(codec, weights):
    tokens = codec.encode(sounds(2, codec))
    config, params = load_vae(weights / "vae")
    latents = from_tokens(tokens, 4, 4) / 0.4
    decode = jax.jit(functools.partial(Vae(config).apply, method=Vae.decode))
    spectrograms = decode({"params": params}, latents)
    of_decoder = rounding(kernel_terms(params["decoder"]))
    assert_close(codec.to_log_mel(tokens), spectrograms, of_decoder)
    vocoder_config, vocoder = load_hifigan(weights / "vocoder")
    expected = jax.jit(Hifigan(vocoder_config).apply)({"params": vocoder}, spectrograms)
    audio = codec.decode(tokens)
    assert np.std(audio) > 1e-3, "not silence"
    assert np.abs(audio).max() < 0.99, "nor saturation"
    assert audio.shape == (2, 2 * codec.samples_per_column)
    assert_close(audio, expected, of_decoder + rounding(kernel_terms(vocoder)))


def test_any_multiple_of_the_stride_and_nothing_else(codec):
    for num_columns in (2, 11):
        tokens = codec.encode(sounds(num_columns, codec))
        assert tokens.shape[1] == num_columns * codec.tokens_per_column
        assert codec.decode(tokens).shape[1] == num_columns * codec.samples_per_column
    with pytest.raises(ValueError, match=r"5119 samples .*allowed: positive multiples of 2560"):
        codec.encode(np.zeros((1, 5119), np.float32))


def test_long_audio_has_no_seams(codec, weights, tmp_path):
    """A steady sound: away from its ends, all that changes in time is a seam.

    Cutting without overlap shows how far apart two windows are; the fade must spread that over its
    8 latent frames, 32 frames of a spectrogram. What changes inside of a window comes on top.
    """
    hard = VaeCodec.create(
        tmp_path / "hard",
        vae=weights / "vae",
        vocoder=weights / "vocoder",
        config=dataclasses.replace(SMALL, overlap_frames=0, margin_frames=0),
    )
    samples = np.arange(20 * codec.samples_per_column)
    audio = (0.3 * np.sin(2 * np.pi * samples * 3 / SMALL.mel.hop_length)).astype(np.float32)[None]
    fade = SMALL.overlap_frames - 2 * SMALL.margin_frames
    window = SMALL.window_frames * SMALL.mel.hop_length

    def largest_step(values: np.ndarray, ends: int) -> float:
        return float(np.abs(np.diff(values[0, ends:-ends], axis=0)).max())

    def latents(one: VaeCodec, samples: np.ndarray) -> np.ndarray:
        return np.asarray(from_tokens(one.encode(samples), 4, 4))

    faded, cut = (largest_step(latents(one, audio), 16) for one in (codec, hard))
    inside = largest_step(latents(hard, audio[:, :window]), SMALL.margin_frames // 4)
    assert faded <= inside + cut / (fade // 4)
    assert cut > 2 * (inside + cut / (fade // 4)), "without a fade the test fails"

    steady = np.tile(np.asarray(codec.encode(audio))[:, 40:44], (1, 20, 1))
    faded, cut = (largest_step(np.asarray(one.to_log_mel(steady)), 64) for one in (codec, hard))
    single = np.asarray(hard.to_log_mel(steady[:, : 4 * SMALL.window_frames // 16]))
    inside = largest_step(single, SMALL.margin_frames)
    assert faded <= inside + cut / fade
    assert cut > 2 * (inside + cut / fade), "without a fade the test fails"


def test_weights_are_linked_and_the_folder_is_all_it_needs(codec, tmp_path):
    codec.save(tmp_path / "copy")
    loaded = load_codec(tmp_path / "copy")
    assert isinstance(loaded, VaeCodec)
    audio = sounds(1, codec)
    np.testing.assert_array_equal(loaded.encode(audio), codec.encode(audio))
    assert (tmp_path / "copy" / "vae" / "weights.safetensors").stat().st_nlink > 1
    described = json.loads((tmp_path / "copy" / CONFIG_FILE).read_text())
    assert described["sha256"] == {"vae": "0" * 64, "vocoder": "0" * 64}


def test_silence_is_a_column_of_an_encoded_window(codec, weights):
    window = np.zeros((1, SMALL.window_frames * 160), np.float32)
    columns = np.asarray(codec.encode(window)).reshape(-1, 4, codec.token_dim)
    bound = rounding(kernel_terms(load_vae(weights / "vae")[1]["encoder"]))
    assert_close(codec.silence(), columns[len(columns) // 2], bound)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mel": MelConfig(num_mels=80)}, "80 mel bands; the vocoder was trained on 64"),
        ({"mel": MelConfig(hop_length=256)}, "256 samples per frame; the vocoder .* on 160"),
        ({"patch_size": 3}, r"codec\.patch_size is 3; .* 64 mel bands must be a multiple"),
        ({"window_frames": 136}, r"codec\.window_frames is 136; allowed: multiples of 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(weights, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        VaeCodec.create(
            tmp_path / "codec",
            vae=weights / "vae",
            vocoder=weights / "vocoder",
            config=dataclasses.replace(SMALL, **change),
        )
    assert not (tmp_path / "codec").exists()


def test_weights_of_another_kind_are_refused(weights, tmp_path):
    with pytest.raises(ConvertedError, match="'hifigan', not 'vae'"):
        VaeCodec.create(tmp_path / "c", vae=weights / "vocoder", vocoder=weights / "vocoder")
    with pytest.raises(ValueError, match=r"codec\.dtype is 'float16'; allowed: float32, bfloat16"):
        VaeCodecConfig(dtype="float16")
