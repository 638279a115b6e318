"""Ticks have the rate and regularity that they were made with; noise has none."""

import numpy as np
import pytest

from fasttta_jax.metrics.rhythm import beat

RATE = 16_000


def ticks(times: np.ndarray, seconds: float = 2.56) -> np.ndarray:
    rng = np.random.default_rng(0)
    audio = 1e-4 * rng.standard_normal(round(seconds * RATE))
    tick = rng.standard_normal(160) * np.exp(-np.arange(160) / 40)
    for time in times:
        start = round(time * RATE)
        if start + 160 <= len(audio):
            audio[start : start + 160] += tick
    return audio.astype(np.float32)


@pytest.mark.parametrize("rate", [1.7, 3.4, 9.0])
def test_a_regular_tick_has_its_rate(rate: float) -> None:
    found = beat(ticks(np.arange(0.1, 2.5, 1 / rate)), RATE)
    # A tick lies in a frame of 5 ms or in the next.
    assert found.rate == pytest.approx(rate, rel=0.005 * rate)
    assert found.regularity > 0.8


def test_jitter_and_noise_are_less_regular() -> None:
    rng = np.random.default_rng(1)
    times = np.arange(0.1, 2.5, 0.25)
    jittered = times + rng.uniform(-0.08, 0.08, len(times))
    steady, loose = (beat(ticks(at), RATE).regularity for at in (times, jittered))
    noise = beat(rng.standard_normal(40_960).astype(np.float32), RATE).regularity
    assert max(loose, noise) < 0.6 < steady


def test_silence_has_no_beat() -> None:
    found = beat(np.zeros(40_960, np.float32), RATE)
    assert np.isnan(found.rate)
    assert found.regularity == 0
