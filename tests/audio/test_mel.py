"""The log-mel front end against its definition in float64, and what resampling leaves for it.

`test_codec` holds it against librosa; here are the definition written out, transformers' version,
the matrix of bands, and the properties that the codecs lean on. Rounding is 2e-6 nepers in a band
at the level of its frame; another window, edge or norm of a band makes a difference of order 0.1.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import soundfile
from transformers import audio_utils

from fasttta_jax.audio.files import read_audio
from fasttta_jax.audio.mel import (
    MelConfig,
    hann_window,
    log_mel,
    mel_matrix,
    reflected,
)
from tests.support.mel_reference import (
    mel_magnitudes,
    mel_rounding,
    slaney_matrix,
    transform_terms,
)
from tests.support.tolerance import assert_close, assert_within, rounding, worst_rounding

FRAMINGS = ("center", "hifigan")
CLIP_SAMPLES = 163_840


def fading_noise(num_samples: int, seed: int = 0) -> np.ndarray:
    """White noise that falls from half of full scale to below the floor, float32."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    envelope = 0.5 * np.exp(-22 * np.arange(num_samples) / num_samples)
    return (envelope * np.clip(noise / 3, -1, 1)).astype(np.float32)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_log_mel_is_its_definition(framing: str) -> None:
    """Over 190 dB of level."""
    config = MelConfig(framing=framing)
    audio = fading_noise(48_000)
    expected, bound = mel_magnitudes(audio, config), mel_rounding(audio, config)
    found = np.asarray(log_mel(audio[None], config))[0]
    assert found.shape == expected.shape
    above = expected > config.floor * (1 + bound)
    assert 0.3 < above.mean() < 0.9
    assert_within(found[above], np.log(expected[above]), bound[above])
    below = expected < config.floor * (1 - bound)
    np.testing.assert_array_equal(found[below], np.log(np.float32(config.floor)))


def test_bands_beside_a_tone_are_as_good_as_its_rounding() -> None:
    """A pure tone leaves bands 100 dB below its own: there the error is that of the transform.

    Relative to the loudest band, whose amplitude is far above the root mean square of the bins.
    """
    config = MelConfig()
    audio = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.float32)
    expected = mel_magnitudes(audio, config)
    found = np.exp(np.float64(log_mel(audio[None], config)[0]))
    heard = expected > config.floor
    of_logarithm = worst_rounding(4) * np.abs(np.log(expected.max()))
    bound = rounding(transform_terms(config.n_fft)) + of_logarithm
    assert_close(found * heard, expected * heard, bound)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_log_mel_equals_that_of_transformers(framing: str) -> None:
    config = MelConfig(framing=framing)
    audio = fading_noise(32_000, seed=1)
    filters = audio_utils.mel_filter_bank(
        num_frequency_bins=config.n_fft // 2 + 1,
        num_mel_filters=config.num_mels,
        min_frequency=config.f_min,
        max_frequency=config.f_max,
        sampling_rate=config.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    assert_close(mel_matrix(config), filters.T, worst_rounding(2))
    padding = 0 if framing == "center" else config.padding
    expected = audio_utils.spectrogram(
        np.pad(np.float64(audio), padding, mode="reflect"),
        audio_utils.window_function(config.n_fft, "hann", periodic=True),
        frame_length=config.n_fft,
        hop_length=config.hop_length,
        power=1.0,
        center=framing == "center",
        mel_filters=filters,
        mel_floor=config.floor,
        log_mel="log",
        dtype=np.float64,
    )
    # complex64 inside, with roundings of its own
    bound = mel_rounding(audio, config)
    assert_within(log_mel(audio[None], config)[0], expected.T, bound)


@pytest.mark.parametrize("num_mels", [20, 64, 80])
def test_bands_are_slaneys(num_mels: int) -> None:
    config = MelConfig(num_mels=num_mels)
    matrix = mel_matrix(config)
    assert matrix.dtype == np.float32
    assert_close(matrix, slaney_matrix(config), worst_rounding(2))
    assert np.all(matrix.max(axis=1) > 0)


def test_the_window_is_periodic() -> None:
    window = scipy.signal.get_window("hann", 1024, fftbins=True)
    assert_close(hann_window(1024), window, worst_rounding(2))


@pytest.mark.parametrize("framing", FRAMINGS)
def test_silence_is_the_floor_and_its_edges_are_soft(framing: str) -> None:
    audio = np.zeros((2, CLIP_SAMPLES), np.float32)
    audio[1, 80_000:] = fading_noise(83_840)
    found = np.asarray(log_mel(audio, MelConfig(framing=framing)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.log(1e-5), rtol=worst_rounding(4))
    silent = (80_000 - 512) // 160
    np.testing.assert_array_equal(found[1, :silent], found[0, :silent])
    assert np.all(found[1, 510] > -11.5)


def test_the_framings_are_80_samples_apart() -> None:
    """Frame k is around sample 160 k, or 160 k + 80: 80 samples of delay make up for it."""
    audio = fading_noise(16_000)
    late = np.concatenate([np.zeros(80, np.float32), audio])[: len(audio)]
    centred = log_mel(audio[None], MelConfig(framing="center"))[0]
    delayed = log_mel(late[None], MelConfig(framing="hifigan"))[0]
    assert (len(centred), len(delayed)) == (101, 100)
    bound = mel_rounding(audio, MelConfig(framing="center"))[4:96]
    assert_within(centred[4:96], delayed[4:96], bound)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_clip_does_not_depend_on_its_neighbours(framing: str) -> None:
    config = MelConfig(framing=framing)
    audio = np.stack([fading_noise(8_000, seed) for seed in range(3)])
    together = np.asarray(log_mel(audio, config))
    audio[1:] = 1.0
    np.testing.assert_array_equal(log_mel(audio, config)[0], together[0])


def test_log_mel_inside_a_compiled_function() -> None:
    config = MelConfig()
    audio = fading_noise(8_000)[None]
    inside = jax.jit(lambda audio: log_mel(audio, config) + jnp.float32(0))(audio)
    bound = mel_rounding(audio[0], config)[None]
    assert_within(inside, log_mel(audio, config), bound)


def test_a_padded_clip_is_reflected_at_its_own_end() -> None:
    lengths, padding = [12, 7, 20], 5
    audio = np.float32(np.random.default_rng(0).normal(size=(3, 20)))
    found = np.asarray(reflected(audio, padding, np.asarray(lengths)))
    for row, clip, length in zip(found, audio, lengths, strict=True):
        expected = np.pad(clip[:length], padding, mode="reflect")
        np.testing.assert_array_equal(row[: length + 2 * padding], expected)
    np.testing.assert_array_equal(reflected(audio, padding)[2], found[2])


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_resampling_keeps_7_khz_and_loses_11_khz(tmp_path: pathlib.Path, rate: int) -> None:
    """11 kHz would come back at 5 kHz."""
    time = np.arange(rate) / rate
    tones = 0.25 * np.sin(2 * np.pi * 7_000 * time) + 0.25 * np.sin(2 * np.pi * 11_000 * time)
    soundfile.write(tmp_path / "tones.wav", tones.astype(np.float32), rate, "FLOAT")
    audio = read_audio(tmp_path / "tones.wav", 16_000)
    middle = audio[4_000:12_000]
    window = scipy.signal.windows.blackmanharris(len(middle))
    spectrum = 2 * np.abs(np.fft.rfft(middle * window)) / window.sum()
    hertz = np.fft.rfftfreq(len(middle), 1 / 16_000)
    decibels = 20 * np.log10(np.maximum(spectrum, 1e-12) / 0.25)
    assert decibels[np.argmin(np.abs(hertz - 7_000))] == pytest.approx(0, abs=0.1)
    assert decibels[np.abs(hertz - 7_000) > 100].max() < -60
