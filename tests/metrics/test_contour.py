"""A wail is all sine; a contour that is broken or flat is not."""

import numpy as np
import pytest

from fasttta_jax.metrics.contour import pitch_track, wail_share

RATE = 16_000


def tone(frequency: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    return (0.3 * np.sin(phase) + 0.2 * np.sin(2 * phase)).astype(np.float32)


def test_the_pitch_of_a_wail_is_followed() -> None:
    time = np.arange(40_960) / RATE
    frequency = 500 * 1.3 ** np.sin(2 * np.pi * 0.8 * time)
    contour = pitch_track(tone(frequency), RATE, lowest=200, highest=800)
    inner = slice(8, -8)
    expected = np.log2(frequency[:: RATE // 100][: len(contour)])
    # A window of 64 ms averages a sweep of at most 2 octaves a second with a curvature of 10.
    assert np.abs(contour[: len(expected)][inner] - expected[inner]).max() < 0.02
    assert wail_share(contour[inner]) > 0.99


def test_a_broken_contour_is_no_wail() -> None:
    time = np.arange(256) / 100
    wail = np.sin(2 * np.pi * 0.8 * time)
    broken = wail.reshape(16, 16)[np.random.default_rng(0).permutation(16)].ravel()
    assert wail_share(wail) == pytest.approx(1, abs=1e-3)  # 0.8 lies on the grid of rates
    assert wail_share(broken) < 0.5
    assert wail_share(np.ones(256)) == 0
