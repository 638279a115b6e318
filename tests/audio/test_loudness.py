"""Levels: what was asked for is reached, unless the peak would pass its ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fasttta_jax.audio.files import PLAYBACK_PEAK_DBFS, amplitude, check_format, gated_rms
from fasttta_jax.audio.loudness import Level, check_length, loudness

RATE = 16_000


def noise(gain: float, seconds: float = 1.0) -> np.ndarray:
    found = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    return (gain * found / np.max(np.abs(found))).astype(np.float32)


def test_loudness_is_that_of_the_standard():
    """A 997 Hz sine of full scale has -3.01 LUFS; EBU Tech 3341 allows 0.1 to meters."""
    sine = np.sin(2 * np.pi * 997 * np.arange(5 * RATE) / RATE).astype(np.float32)
    assert loudness(sine, RATE) == pytest.approx(-3.01, abs=0.1)
    assert loudness(0.1 * sine, RATE) == pytest.approx(-23.01, abs=0.1)


@pytest.mark.parametrize(
    "level",
    [
        Level(),
        Level(lufs=-23.0),
        Level(lufs=-5.0),
        Level(peak_dbfs=-12.0),
        Level(peak_dbfs=0.0),
        Level(rms_dbfs=-26.0),
        Level(rms_dbfs=0.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("gain", [1e-3, 0.3, 40.0])
def test_a_level_is_reached_or_the_ceiling_is(level, gain):
    audio = noise(gain)
    played, gain_db = level.apply(audio, RATE)
    np.testing.assert_allclose(played, audio * amplitude(gain_db), rtol=1e-5)
    peak = float(np.max(np.abs(played)))
    ceiling = amplitude(PLAYBACK_PEAK_DBFS if level.peak_dbfs is None else level.peak_dbfs)
    assert peak <= np.float32(ceiling)
    if peak == pytest.approx(ceiling, rel=1e-5):
        return
    assert level.peak_dbfs is None
    if level.lufs is not None:
        assert loudness(played, RATE) == pytest.approx(level.lufs, abs=0.01)
    elif level.rms_dbfs is not None:
        assert gated_rms(played) == pytest.approx(amplitude(level.rms_dbfs), rel=1e-4)
    else:
        np.testing.assert_array_equal(played, audio)


def test_silence_stays_silent():
    for level in (Level(), Level(lufs=-23.0), Level(peak_dbfs=-1.0), Level(rms_dbfs=-20.0)):
        played, gain_db = level.apply(np.zeros(RATE, np.float32), RATE)
        assert not played.any()
        assert gain_db == 0
        assert np.isfinite(level.apply(noise(1e-6), RATE)[0]).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="lufs and peak_dbfs are given; allowed: one of lufs, pea"):
        Level(lufs=-23.0, peak_dbfs=-1.0)
    with pytest.raises(ValueError, match=r"lufs is -inf; allowed: .* at least -120"):
        Level(lufs=-math.inf)
    with pytest.raises(ValueError, match=r"lufs is 1.0; allowed: at most 0"):
        Level(lufs=1.0)
    with pytest.raises(ValueError, match=r"has 0.399 s; loudness in LUFS needs 0.4 s or more"):
        check_length(6_390, RATE)
    with pytest.raises(ValueError, match="'mp3', which has no rate of 12345 Hz; allowed: another"):
        check_format("mp3", 12_345)
