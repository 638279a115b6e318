"""CLAP's front end gives what ClapFeatureExtractor of transformers gives, except for its chance.

The reference draws the parts of a long clip at random; here its draw is replaced by the fixed
choice. It computes in float64 where ours is float32: the error of a transform of 1024 points is
2e-6 of the largest amplitude in the frame, in every band. A wrong window, padding or excerpt makes
a difference of whole dB.
"""

from __future__ import annotations

from typing import Any, get_args

import jax
import numpy as np
import pytest
import scipy.signal

from fasttta_jax.pretrained.clap_mel import (
    GRID,
    NUM_FRAMES,
    NUM_SAMPLES,
    POWER_FLOOR,
    SAMPLE_RATE,
    ClapFeatures,
    ClapMelConfig,
    Padding,
    Truncation,
    batch_waveforms,
    clap_mel,
    excerpt_starts,
    mel_matrix,
)
from tests.support.mel_reference import transform_terms
from tests.support.tolerance import assert_within, rounding, worst_rounding

TRUNCATIONS = get_args(Truncation)
SHORT = (1, 100_001, NUM_SAMPLES - 1, NUM_SAMPLES)
LONG = (NUM_SAMPLES + 1, NUM_SAMPLES + 480, 491_520, 700_003)
"""One frame too short for an excerpt, the first two excerpts alone, 10.24 s, and more."""


def recording(num_samples: int, seed: int = 0) -> np.ndarray:
    """A sweep and a tone over noise that falls off with frequency, and swells."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / SAMPLE_RATE
    noise = np.cumsum(rng.normal(size=num_samples)) * 1e-3 + 1e-3 * rng.normal(size=num_samples)
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 0.3 * time)
    tones = np.sin(2 * np.pi * (200 * time + 300 * time**2)) + np.sin(2 * np.pi * 3000 * time)
    return (0.2 * tones * swell + noise * swell).astype(np.float32)


def reference(waveforms: list[np.ndarray], config: ClapMelConfig, monkeypatch: Any) -> Any:
    """Features and flags of transformers, with our choice in the place of its draws."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation=config.truncation, padding=config.padding
    )
    middle = config.crop == "center"
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "choice", lambda frames: frames[(len(frames) - 1) // 2])
        patch.setattr(np.random, "randint", lambda _, stop: (stop - 1) // 2 if middle else 0)
        out = extractor(waveforms, sampling_rate=SAMPLE_RATE)
    return np.stack(out["input_features"]), np.asarray(out["is_longer"])[:, 0]


def whole_spectrogram(waveform: np.ndarray) -> np.ndarray:
    """dB [T, 64] of all of a long clip with the bands of fusion, in float64."""
    padded = np.pad(np.float64(waveform), GRID.n_fft // 2, mode="reflect")
    window = scipy.signal.get_window("hann", GRID.n_fft)
    starts = range(0, len(waveform) + 1, GRID.hop_length)
    power = [np.abs(np.fft.rfft(padded[at : at + GRID.n_fft] * window)) ** 2 for at in starts]
    return 10 * np.log10(np.maximum(np.asarray(power) @ mel_matrix("fusion").T, POWER_FLOOR))


def run(waveforms: list[np.ndarray], config: ClapMelConfig) -> ClapFeatures:
    return clap_mel(*batch_waveforms(waveforms, config), config)


def amplitude_error(ours: Any, want: np.ndarray) -> float:
    """Largest difference of band amplitudes, relative to the loudest band of the frame."""
    amplitudes = [10.0 ** (np.asarray(decibels, np.float64) / 20) for decibels in (ours, want)]
    difference = np.abs(amplitudes[0] - amplitudes[1])
    return float((difference / amplitudes[1].max(axis=-1, keepdims=True)).max())


OF_TRANSFORM = rounding(transform_terms(GRID.n_fft))
"""Of a band's amplitude, relative to the loudest band of its frame."""


def decibel_rounding(want: np.ndarray) -> np.ndarray:
    """dB by which each band [..., T, F] may be off: the transform's, the sum's, the logarithm's."""
    below = 10.0 ** ((want.max(axis=-1, keepdims=True) - want) / 20)
    relative = OF_TRANSFORM * below + rounding(GRID.n_fft // 2)
    return 20 / np.log(10) * relative + worst_rounding(4) * np.abs(want)


def shrinking_rounding(mel: np.ndarray) -> np.ndarray:
    """dB by which interpolation between the frames [T, F] of a long clip may be off.

    Places go up to T and round three times in either program; what is between two frames moves by
    the difference of those around it.
    """
    steps = np.pad(np.abs(np.diff(mel, axis=0)), ((1, 1), (0, 0)))
    steps = np.maximum(steps[:-1], steps[1:])
    places = (np.arange(NUM_FRAMES) + 0.5) * len(mel) / NUM_FRAMES - 0.5
    near = np.clip(np.rint(places).astype(int), 0, len(mel) - 1)
    return worst_rounding(6) * len(mel) * steps[near]


def assert_close(ours: Any, want: np.ndarray, more: np.ndarray | float = 0.0) -> None:
    """Within the rounding of the spectrogram, and more of it where it is asked for."""
    assert ours.dtype == np.float32
    bound = decibel_rounding(want) + more
    assert np.median(bound) < 0.02
    assert_within(ours, want, bound)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("padding", get_args(Padding))
def test_short_clips_agree(
    truncation: Truncation, padding: Padding, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClapMelConfig(truncation, padding)
    waveforms = [recording(size, size) for size in SHORT]
    want, _ = reference(waveforms, config, monkeypatch)
    ours = run(waveforms, config)
    assert ours.features.shape[2:] == (1001, 64)
    assert_close(ours.features, want)
    assert not ours.is_longer.any()


@pytest.mark.parametrize("crop", ["start", "center"])
def test_long_clips_are_cut_without_fusion(crop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in the one shape that short ones have."""
    config = ClapMelConfig("rand_trunc", crop=crop)
    waveforms = [recording(size, size) for size in (1000, *LONG)]
    assert batch_waveforms(waveforms, config).audio.shape == (5, NUM_SAMPLES)
    ours = run(waveforms, config)
    assert_close(ours.features, reference(waveforms, config, monkeypatch)[0])
    assert not ours.is_longer.any()


def test_long_clips_are_shrunk_and_excerpted_with_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside short ones, which the reference never flags while a long one is there."""
    config = ClapMelConfig("fusion")
    waveforms = [recording(size, size) for size in (1000, NUM_SAMPLES, *LONG)]
    want, is_longer = reference(waveforms, config, monkeypatch)
    ours = run(waveforms, config)
    more = np.zeros(want.shape)
    for row in np.flatnonzero(is_longer):
        more[row, 0] = shrinking_rounding(whole_spectrogram(waveforms[row]))
    assert_close(ours.features, want, more)
    np.testing.assert_array_equal(ours.is_longer, is_longer)
    np.testing.assert_array_equal(is_longer, [False, False, False, True, True, True])
    same = np.asarray(ours.features[:, :1] == ours.features).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~is_longer)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_pure_tones_and_silence_agree(
    truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands far below a pure tone show the rounding, and nothing more; silence is -100 dB."""
    config = ClapMelConfig(truncation)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(NUM_SAMPLES) / SAMPLE_RATE)
    waveforms = [tone.astype(np.float32), np.zeros(NUM_SAMPLES, np.float32)]
    want, _ = reference(waveforms, config, monkeypatch)
    ours = np.asarray(run(waveforms, config).features)
    of_logarithm = worst_rounding(4) * np.log(10) / 20 * 100  # dB
    assert amplitude_error(ours[0], want[0]) < OF_TRANSFORM + of_logarithm
    np.testing.assert_array_equal(ours[1], -100.0)
    np.testing.assert_array_equal(want[1], -100.0)


@pytest.mark.parametrize("num_samples", [None, 3 * NUM_SAMPLES])
def test_a_clip_does_not_depend_on_its_batch(num_samples: int | None) -> None:
    """Order, neighbours and the length of the batch make no difference."""
    config = ClapMelConfig("fusion")
    waveforms = [recording(size, size) for size in (1000, 491_520, 700_003)]
    batch = batch_waveforms(waveforms[::-1], config, num_samples=num_samples)
    backwards = clap_mel(*batch, config)
    for waveform, features, longer in zip(waveforms[::-1], *backwards, strict=True):
        alone = run([waveform], config)
        bound = decibel_rounding(np.asarray(alone.features[0]))
        if longer:
            bound[0] += shrinking_rounding(whole_spectrogram(waveform))
        assert_within(features, alone.features[0], bound)
        assert bool(longer) == bool(alone.is_longer[0])


def test_what_is_behind_the_end_is_not_read() -> None:
    config = ClapMelConfig("fusion")
    batch = batch_waveforms([recording(491_520)], config)
    dirty = batch.audio.copy()
    dirty[:, 491_520:] = 1.0
    clean = clap_mel(*batch, config)
    np.testing.assert_array_equal(clap_mel(dirty, batch.lengths, config).features, clean.features)


def test_excerpts_lie_in_their_thirds() -> None:
    """As numpy's array_split cuts the frames at which an excerpt can start."""
    lengths = np.array([0, 1, 2, 3, 4, 23, 24, 1999, 5000])
    starts = np.stack(excerpt_starts(jax.numpy.asarray(NUM_FRAMES + lengths)), axis=1)
    for length, found in zip(lengths, starts, strict=True):
        ranges = np.array_split(np.arange(length + 1), 3)
        want = [part[(len(part) - 1) // 2] if len(part) else 0 for part in ranges]
        np.testing.assert_array_equal(found, want)


def test_filter_banks_are_those_of_the_reference() -> None:
    """Slaney's without fusion, HTK's with it."""
    audio_utils = pytest.importorskip("transformers.audio_utils")
    for truncation, norm, scale in (("rand_trunc", "slaney", "slaney"), ("fusion", None, "htk")):
        want = audio_utils.mel_filter_bank(
            GRID.n_fft // 2 + 1, 64, 50, 14_000, SAMPLE_RATE, norm=norm, mel_scale=scale
        ).T
        found = mel_matrix(truncation)
        assert_within(found, want, worst_rounding(2) * want.max())


def test_wrong_clips_are_refused() -> None:
    config = ClapMelConfig("fusion")
    with pytest.raises(ValueError, match="no waveforms"):
        batch_waveforms([], config)
    for bad in (np.zeros((2, 5), np.float32), np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match="waveform 1 has shape"):
            batch_waveforms([recording(10), bad], config)
    for total in (NUM_SAMPLES, 600_001):
        with pytest.raises(ValueError, match=f"num_samples is {total}; allowed: from 600000"):
            batch_waveforms([recording(600_000)], config, num_samples=total)
    audio = np.zeros((1, 2 * NUM_SAMPLES), np.float32)
    with pytest.raises(ValueError, match="480000 exactly, with truncation 'rand_trunc'"):
        clap_mel(audio, np.array([NUM_SAMPLES]), ClapMelConfig("rand_trunc"))
    with pytest.raises(ValueError, match="480000 or more"):
        clap_mel(audio[:, :1000], np.array([1000]), config)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("field", ["truncation", "padding", "crop"])
def test_unknown_choices_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 'random'; allowed"):
        ClapMelConfig(**{field: "random"})
