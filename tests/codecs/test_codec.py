"""The spectrogram codec: librosa's log-mel, exact inverses, audio that looks like its tokens."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from fasttta_jax.audio.mel import (
    MelConfig,
    frame,
    inverse_stft,
    log_mel,
    overlap_add,
    stft,
)
from fasttta_jax.codecs import load_codec
from fasttta_jax.codecs.griffin_lim import griffin_lim
from fasttta_jax.codecs.spectrogram import (
    SpectrogramCodec,
    SpectrogramConfig,
    Statistics,
    StatisticsFitter,
    from_patches,
    lapped,
    loudest,
    to_patches,
    unlapped,
)
from fasttta_jax.storage.files import StorageError
from tests.support import helpers
from tests.support.mel_reference import mel_rounding, transform_terms
from tests.support.tolerance import assert_close, assert_within, rounding, worst_rounding

FRAMINGS = ["center", "hifigan"]


@functools.cache
def sounds(num_clips: int = 6, num_samples: int = 10_240) -> np.ndarray:
    """Chirps in noise, float32 [num_clips, num_samples]; every mel band is above the floor."""
    rng = np.random.default_rng(0)
    time = np.arange(num_samples) / 16_000
    clips = [
        0.3 * np.sin(2 * np.pi * (200 * (index + 1) + 900 * time) * time)
        + 0.05 * rng.normal(size=num_samples)
        for index in range(num_clips)
    ]
    return np.asarray(clips, np.float32)


def librosa_log_mel(audio: np.ndarray, config: MelConfig) -> np.ndarray:
    """librosa's magnitude mel spectrogram of one clip, [T, F], in float64."""
    centred = config.framing == "center"
    audio = np.float64(audio)
    if not centred:
        audio = np.pad(audio, (config.n_fft - config.hop_length) // 2, mode="reflect")
    mel = librosa.feature.melspectrogram(
        y=audio,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.num_mels,
        fmin=config.f_min,
        fmax=config.f_max,
        power=1.0,
        center=centred,
        pad_mode="reflect",
    )
    return np.log(np.maximum(mel, config.floor)).T


# ------------------------------------------------------------------------------------------- mel


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("shape", [(1024, 160, 64), (512, 128, 20)])
def test_log_mel_equals_librosa(framing, shape):
    n_fft, hop_length, num_mels = shape
    config = MelConfig(n_fft=n_fft, hop_length=hop_length, num_mels=num_mels, framing=framing)
    found = log_mel(sounds()[:2], config)
    for row in range(2):
        expected, bound = (
            librosa_log_mel(sounds()[row], config),
            mel_rounding(sounds()[row], config),
        )
        assert_within(found[row], expected, bound)


def test_log_mel_of_a_clip_of_ten_seconds_is_a_picture_of_1024_by_64():
    audio = np.zeros((1, 163_840), np.float32)
    assert log_mel(audio, MelConfig()).shape == (1, 1024, 64)
    assert log_mel(audio, MelConfig(framing="center")).shape == (1, 1025, 64)
    assert MelConfig().num_frames(163_840) == 1024
    assert MelConfig(framing="center").num_frames(163_840) == 1025


def test_silence_is_the_logarithm_of_the_floor():
    found = log_mel(np.zeros((1, 3200), np.float32), MelConfig(floor=1e-3))
    np.testing.assert_allclose(found, np.log(1e-3), rtol=worst_rounding(4))


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("hop_length", [160, 256])
def test_inverse_stft_inverts(framing, hop_length):
    config = MelConfig(hop_length=hop_length, framing=framing)
    audio = sounds()[:2]
    found = inverse_stft(stft(audio, config), config, audio.shape[1])
    # two transforms and windows, the sum of 4 to 7 frames and a division by that of their windows
    assert_close(found, audio, rounding(2 * transform_terms(1024) + 2 * 7))


def test_overlap_add_is_the_transpose_of_framing():
    config = MelConfig(n_fft=32, hop_length=10)
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1, 92)).astype(np.float32)
    frames = rng.normal(size=(1, 7, 32)).astype(np.float32)
    forward = np.sum(np.asarray(frame(signal, config)) * frames)
    backward = np.sum(signal * np.asarray(overlap_add(frames, config)))
    magnitudes = np.sum(np.abs(np.asarray(frame(signal, config)) * frames))
    assert abs(forward - backward) <= worst_rounding(2 * frames.size) * magnitudes


@pytest.mark.parametrize("framing", FRAMINGS)
def test_too_short_a_waveform_is_refused(framing):
    config = MelConfig(framing=framing)
    with pytest.raises(ValueError, match=f"{config.padding} samples is too short"):
        log_mel(np.zeros((1, config.padding), np.float32), config)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"framing": "left"}, r"mel\.framing is 'left'; allowed: .*center"),
        ({"num_mels": 0}, r"mel\.num_mels is 0"),
        ({"floor": 0.0}, r"mel\.floor is 0\.0"),
        ({"hop_length": 2048}, r"mel\.hop_length is 2048; .* at most mel\.n_fft = 1024"),
        ({"hop_length": 161}, r"mel\.hop_length is 161; .* even"),
        ({"f_max": 9000.0}, r"mel\.f_max = 9000\.0 .* sample_rate / 2 = 8000\.0"),
        ({"f_min": 8000.0}, r"mel\.f_min = 8000\.0"),
    ],
)
def test_impossible_grids_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MelConfig(**changes)


# ----------------------------------------------------------------------------------------- codec


SMALL = SpectrogramConfig(
    mel=MelConfig(num_mels=8, floor=1e-3), patch_frames=4, bands=2, token_dim=16
)


def fit(config: SpectrogramConfig, audio: np.ndarray) -> tuple[SpectrogramCodec, float]:
    fitter = StatisticsFitter(config)
    fitter.add(audio)
    statistics, kept = fitter.finish()
    return SpectrogramCodec(config, statistics), kept


@functools.cache
def tiny_codec() -> SpectrogramCodec:
    clips = [clip.audio for clip in helpers.synthetic_clips("train")]
    return fit(helpers.CODEC, np.stack(clips))[0]


def token_rounding(codec: SpectrogramCodec) -> float:
    """A patch and its mean round at their size; a sum over the patch is divided by a scale."""
    size = np.abs(codec.statistics.mean).max() / codec.statistics.scale.min()
    return float(rounding(codec.config.patch_size) * size)


def test_patches_round_trip_time_major():
    spectrogram = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8)
    patches = np.asarray(to_patches(spectrogram, SMALL))
    assert patches.shape == (2, 2, 2, 16)
    np.testing.assert_array_equal(from_patches(patches, SMALL), spectrogram)
    np.testing.assert_array_equal(patches[0, 1, 0], spectrogram[0, 4:, :4].ravel())


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_all_components_lose_nothing(whitening):
    codec, kept = fit(dataclasses.replace(SMALL, whitening=whitening), sounds())
    assert kept == pytest.approx(1.0, abs=1e-12)
    expected = log_mel(sounds(), SMALL.mel)
    found = codec.to_log_mel(codec.encode(sounds()))
    # a patch of 16 numbers times 16 components, there and back, scaled and centred
    assert_close(found, expected, rounding(2 * (16 + 2)))


def test_fewer_components_lose_the_share_they_report():
    config = dataclasses.replace(SMALL, token_dim=5)
    codec, kept = fit(config, sounds())
    spectrogram = np.float64(log_mel(sounds(), SMALL.mel))
    patches = np.asarray(to_patches(spectrogram, config))
    centred = patches - patches.mean(axis=(0, 1))
    tokens = np.float64(codec.encode(sounds())).reshape(6, -1, 2, 5)
    rebuilt = np.einsum("bngc,gvc->bngv", tokens * codec.statistics.scale, codec.statistics.basis)
    residual = centred - rebuilt
    lost = np.sum(residual**2) / np.sum(centred**2)
    assert 0 < kept < 1
    # a residual is off by the sum over its patch at the patch's size, and its square by twice that
    bound = 2 * rounding(config.patch_size) * np.abs(patches).max() / np.sqrt(np.mean(residual**2))
    assert bound < 1e-3
    assert lost == pytest.approx(1 - kept, rel=bound)


def test_tokens_are_centred_and_of_unit_mean_square():
    tokens = np.float64(tiny_codec().encode(training_audio()))
    values = tokens.reshape(len(tokens), -1, 2, helpers.TOKEN_DIM)
    bound = token_rounding(tiny_codec())
    assert np.abs(values.mean(axis=(0, 1))).max() < bound
    assert np.mean(values**2) == pytest.approx(1.0, rel=2 * bound)


def training_audio() -> np.ndarray:
    return np.stack([clip.audio for clip in helpers.synthetic_clips("train")])


def test_full_whitening_equalises_the_variances():
    codec, _ = fit(dataclasses.replace(SMALL, whitening=1.0, token_dim=4), sounds())
    values = np.float64(codec.encode(sounds())).reshape(-1, 2, 4)
    np.testing.assert_allclose(values.var(axis=0), 1.0, rtol=2 * token_rounding(codec))


def test_statistics_do_not_depend_on_how_the_data_comes():
    together, _ = fit(SMALL, sounds())
    fitter = StatisticsFitter(SMALL)
    for clip in sounds():
        fitter.add(clip[None])
    statistics, _ = fitter.finish()
    bound = max(mel_rounding(clip, SMALL.mel).max() for clip in sounds())
    np.testing.assert_allclose(statistics.mean, together.statistics.mean, rtol=0, atol=bound)
    # components of nearly equal variance may turn into each other, their covariance may not
    covariances = [
        np.einsum("gvc,gc,gwc->gvw", found.basis, np.float64(found.scale) ** 4, found.basis)
        for found in (together.statistics, statistics)
    ]
    deviation = np.sqrt(np.abs(covariances[0]).max())
    assert_close(covariances[1], covariances[0], 2 * bound / deviation)


def test_fit_refuses_too_little_and_constant_data():
    with pytest.raises(ValueError, match="0 patches were seen; fitting 16 components"):
        StatisticsFitter(SMALL).finish()
    fitter = StatisticsFitter(SMALL)
    fitter.add(np.zeros((2, 10_240), np.float32))
    with pytest.raises(ValueError, match="no variance"):
        fitter.finish()


def test_saved_codec_is_the_same_codec(tmp_path):
    codec = tiny_codec()
    codec.save(tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec")
    assert isinstance(loaded, SpectrogramCodec)
    assert loaded.config == codec.config
    for field in dataclasses.fields(Statistics):
        np.testing.assert_array_equal(
            getattr(loaded.statistics, field.name), getattr(codec.statistics, field.name)
        )
    audio = training_audio()[:2]
    np.testing.assert_array_equal(loaded.encode(audio), codec.encode(audio))


def test_missing_and_unknown_codecs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"codec\.json does not exist"):
        load_codec(tmp_path)
    (tmp_path / "codec.json").write_text('{"kind": "vinyl"}')
    with pytest.raises(ValueError, match=r"kind is 'vinyl'; allowed: \['spectrogram', 'vae'\]"):
        load_codec(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bands": 2', '"bands": 2.0', r"codec\.bands is 2\.0, a float; allowed: .* type int"),
        ('"bands": 2', '"bands": true', r"codec\.bands is True, a bool"),
        ('"floor": 0.01', '"floor": NaN', r"codec\.mel\.floor is nan; allowed: finite numbers"),
        ('"bands": 2', '"tracks": 2', r"codec\.tracks is not a field"),
        (
            '"bands": 2',
            '"bands": 4',
            r"statistics\.npz .*mean is float32\[2, 512\], not .*\[4, 256",
        ),
    ],
)
def test_a_layout_that_was_changed_is_named(tmp_path, old, new, message):
    tiny_codec().save(tmp_path)
    text = (tmp_path / "codec.json").read_text()
    assert old in text
    (tmp_path / "codec.json").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_codec(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.astype(np.float64), r"scale is float64\[2, \d+\], not float32"),
        (lambda values: values[:, :-1], r"scale is float32"),
        (lambda values: values * np.float32(np.nan), "scale is not finite"),
    ],
)
def test_statistics_of_another_layout_are_named(tmp_path, change, message):
    tiny_codec().save(tmp_path)
    arrays = dict(np.load(tmp_path / "statistics.npz"))
    np.savez(tmp_path / "statistics.npz", **{**arrays, "scale": change(arrays["scale"])})
    with pytest.raises(StorageError, match=rf"statistics\.npz cannot be read: {message}"):
        load_codec(tmp_path)


@pytest.mark.parametrize("num_samples", [0, 1, 2559, 2561])
def test_lengths_between_columns_are_refused(num_samples):
    with pytest.raises(ValueError, match=f"{num_samples} samples .* multiples of 2560"):
        tiny_codec().encode(np.zeros((1, num_samples), np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": 3}, r"codec\.bands is 3; allowed: a divisor of num_mels = 64"),
        ({"token_dim": 0}, r"codec\.token_dim is 0; allowed: 1 to the 512"),
        ({"token_dim": 513}, r"codec\.token_dim is 513"),
        ({"whitening": 1.5}, r"codec\.whitening is 1\.5; allowed: 0 to 1"),
        ({"overlap_frames": -1}, r"codec\.overlap_frames is -1; allowed: 0 to 8, half of"),
        ({"overlap_frames": 9}, r"codec\.overlap_frames is 9"),
        ({"griffin_lim_iterations": 0}, r"codec\.griffin_lim_iterations is 0"),
        ({"mel": MelConfig(framing="center")}, r"codec\.mel\.framing is 'center'"),
    ],
)
def test_impossible_layouts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SpectrogramConfig(**changes)


def test_sizes_are_those_that_the_protocol_promises():
    codec = tiny_codec()
    tokens = codec.encode(training_audio()[:3])
    columns = helpers.CLIP_SAMPLES // codec.samples_per_column
    assert tokens.shape == (3, columns * codec.tokens_per_column, codec.token_dim)
    assert codec.decode(tokens).shape == (3, helpers.CLIP_SAMPLES)
    assert codec.silence().shape == (codec.tokens_per_column, codec.token_dim)
    assert codec.silence().dtype == np.float32
    assert codec.sample_rate == 16_000


@pytest.mark.parametrize("value", [-4e4, 4e4, 1e30])
def test_tokens_far_out_decode_to_finite_audio(value: float) -> None:
    codec = tiny_codec()
    tokens = np.full((1, 2 * codec.tokens_per_column, codec.token_dim), value, np.float32)
    assert np.isfinite(np.asarray(codec.decode(tokens))).all()


def test_no_waveform_is_louder_than_the_loudest() -> None:
    config = tiny_codec().config.mel
    square = np.sign(np.sin(np.arange(10_240) * 0.7))[None].astype(np.float32)
    for audio in (square, np.ones_like(square), np.sign(sounds(1))):
        assert float(np.max(log_mel(audio, config))) <= loudest(config)


def test_silence_decodes_to_silence():
    codec, _ = fit(SMALL, np.concatenate([sounds(), np.zeros((1, 10_240), np.float32)]))
    columns = 10_240 // codec.samples_per_column
    tokens = np.tile(codec.silence(), (columns, 1))[None]
    np.testing.assert_allclose(codec.decode(tokens), 0.0, atol=1e-3)


@pytest.mark.parametrize("overlap", range(3))
def test_overlapping_patches_lose_nothing_but_the_last_frame(overlap):
    config = dataclasses.replace(SMALL, overlap_frames=overlap)
    codec, kept = fit(config, sounds())
    assert kept == pytest.approx(1.0, abs=1e-12)
    expected = np.asarray(log_mel(sounds(), config.mel))
    found = np.asarray(codec.to_log_mel(codec.encode(sounds())))
    # as above, with two frames rotated into each other twice, and at the ends divided by 1/2
    if overlap == 2:  # its outermost frame says less than half of itself
        np.testing.assert_array_equal(found[:, -1], found[:, -2])
        expected, found = expected[:, :-1], found[:, :-1]
    assert_close(found, expected, rounding(2 * (16 + 2) + 2 * 2 * 2))


def test_overlapping_is_a_rotation_between_the_ends():
    config = dataclasses.replace(SMALL, overlap_frames=2)
    spectrogram = np.random.default_rng(0).standard_normal((3, 16, 8)).astype(np.float32)
    spectrogram[:, :2] = spectrogram[:, -2:] = 0  # nothing at the ends, which are not rotated
    norms = np.linalg.norm(lapped(spectrogram, config), axis=(1, 2))
    assert_close(norms, np.linalg.norm(spectrogram, axis=(1, 2)), rounding(2) + rounding(128))
    # A steady sound is the same in every column: its ends are no exception.
    steady = np.asarray(lapped(np.ones((1, 16, 8), np.float32), config)).reshape(4, 4, 8)
    np.testing.assert_array_equal(steady, np.broadcast_to(steady[:1], steady.shape))


def test_one_column_of_tokens_fades_into_its_neighbours():
    config = dataclasses.replace(SMALL, overlap_frames=2)
    patches = np.zeros((1, 3, 2, 16), np.float32)
    patches[:, 1] = 1
    spectrogram = np.asarray(unlapped(from_patches(patches, config), config))[0, :, 0]
    assert (spectrogram[:2] == 0).all()
    assert (spectrogram[10:] == 0).all()
    assert (spectrogram[2:10] != 0).all()


def test_more_griffin_lim_iterations_fit_the_picture_better():
    config = MelConfig(floor=1e-2)
    spectrogram = log_mel(sounds(), config)

    def distance(num_iterations: int) -> float:
        """Spectral convergence: relative distance of the mel magnitudes."""
        audio = griffin_lim(spectrogram, config, num_iterations)
        target, found = np.exp(spectrogram), np.exp(log_mel(audio, config))
        return float(np.linalg.norm(found - target) / np.linalg.norm(target))

    distances = [distance(num_iterations) for num_iterations in (1, 8, 32)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.2


def test_griffin_lim_audio_shows_the_spectrogram_it_was_made_from():
    config = MelConfig(floor=1e-2)
    spectrogram = np.asarray(log_mel(sounds(), config))
    found = np.asarray(log_mel(griffin_lim(spectrogram, config, 32), config))
    # 1 neper is a factor of e; phase reconstruction is a projection, not an inverse
    assert np.mean(np.abs(found - spectrogram)) < 0.3


def test_decoding_a_clip_does_not_depend_on_its_neighbours():
    codec = tiny_codec()
    tokens = codec.encode(training_audio()[:3])
    together = np.asarray(codec.decode(tokens))
    np.testing.assert_array_equal(codec.decode(tokens[::-1])[0], together[2])
    loud = jnp.concatenate([tokens[:1], 100 * tokens[1:]])
    np.testing.assert_array_equal(codec.decode(loud)[0], together[0])
