"""KAD is the unbiased estimate written out, with the bandwidth of the reference set."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.metrics import features, kernel
from fasttta_jax.metrics.bootstrap import measured
from fasttta_jax.metrics.kernel import kernel_distance, median_distance

EXACT = 1e-9
"""Kernel values are those of sums of 8 products; their differences may be far smaller."""


def draw(seed: int, n: int, d: int = 8, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(n, d))


def by_loops(x: np.ndarray, y: np.ndarray, exponent: float) -> float:
    def mean(first: np.ndarray, second: np.ndarray, *, same: bool) -> float:
        values = [
            np.exp(-exponent * np.sum((u - v) ** 2))
            for i, u in enumerate(first)
            for j, v in enumerate(second)
            if not (same and i == j)
        ]
        return float(np.mean(values))

    return 100 * (mean(x, x, same=True) + mean(y, y, same=True) - 2 * mean(x, y, same=False))


def pair_distances(y: np.ndarray) -> list[float]:
    return sorted(float(np.linalg.norm(y[i] - y[j])) for i in range(len(y)) for j in range(i))


@pytest.mark.parametrize(("n", "m"), [(20, 31), (31, 20)])
def test_equals_its_sums(n, m, monkeypatch):
    monkeypatch.setattr(features, "BLOCK_ROWS", 7)
    x, y = draw(0, n, shift=0.5), draw(1, m)
    middle = np.median(pair_distances(y))
    assert median_distance(y) == pytest.approx(middle, rel=EXACT)
    expected = by_loops(x, y, 1 / (2 * middle**2))
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=EXACT)
    assert kernel_distance(x, y, bandwidth=2.5).value == pytest.approx(
        by_loops(x, y, 1 / 12.5), rel=EXACT
    )


def test_kadtk_takes_the_lower_of_two_middle_distances():
    y = draw(2, 8)
    distances = pair_distances(y)
    assert len(distances) % 2 == 0
    lower = distances[len(distances) // 2 - 1]
    expected = by_loops(draw(3, 9), y, 1 / (2 * lower**2 + 1e-8))
    found = kernel_distance(draw(3, 9), y, bandwidth="kadtk").value
    assert found == pytest.approx(expected, rel=EXACT)
    assert found != pytest.approx(kernel_distance(draw(3, 9), y).value, rel=1e-6)


def test_patches_are_pooled_and_stay_with_their_clip():
    x, y = draw(10, 24).reshape(8, 3, 8), draw(11, 20).reshape(10, 2, 8)
    estimate = kernel_distance(x, y)
    rows = kernel_distance(x.reshape(24, 8), y.reshape(20, 8))
    assert estimate.value == rows.value
    np.testing.assert_allclose(estimate.influence, rows.influence.reshape(8, 3).mean(axis=1))
    padded = np.concatenate([x, np.full((8, 2, 8), np.nan)], axis=1)
    np.testing.assert_allclose(kernel_distance(padded, y).influence, estimate.influence)


def test_the_median_of_many_rows_is_that_of_some(monkeypatch):
    y = draw(12, 400)
    exact = median_distance(y)
    monkeypatch.setattr(kernel, "MEDIAN_ROWS", 200)
    assert median_distance(y) == median_distance(y[::2])
    assert median_distance(y) == pytest.approx(exact, rel=0.03)


def test_is_blind_to_order_rotation_and_place():
    x, y = draw(4, 30), draw(5, 25, shift=0.3)
    value = kernel_distance(x, y).value
    rotation = np.linalg.qr(draw(6, 8))[0]
    assert kernel_distance(x[::-1], y[::-1]).value == pytest.approx(value, rel=EXACT)
    assert kernel_distance(x @ rotation + 7, y @ rotation + 7).value == pytest.approx(
        value, rel=1e-8
    )
    assert kernel_distance(3 * x, 3 * y).value == pytest.approx(value, rel=EXACT)


def test_is_unbiased_and_its_interval_covers_the_truth():
    """Gaussians of unit covariance in d dimensions, a shift apart, have a closed form.

    E k = (s^2 / (s^2 + 2))^{d / 2} exp(-|shift|^2 / (2 (s^2 + 2))) for kernels of width s.
    """
    d, width, shift = 3, 2.0, np.array([0.8, 0.0, 0.0])
    factor = (width**2 / (width**2 + 2)) ** (d / 2)
    truth = 200 * factor * (1 - np.exp(-(shift @ shift) / (2 * (width**2 + 2))))
    rng = np.random.default_rng(7)
    found = []
    for _ in range(200):
        x, y = rng.normal(size=(40, d)) + shift, rng.normal(size=(50, d))
        found.append(measured(kernel_distance(x, y, bandwidth=width), num_resamples=200))
    values = np.array([one.value for one in found])
    error = values.std(ddof=1)
    assert values.mean() == pytest.approx(truth, abs=4 * error / 200**0.5)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(error, rel=0.2)
    cover = np.mean([one.interval[0] <= truth <= one.interval[1] for one in found])
    assert 0.95 - 0.066 < cover <= 1.0


def test_copies_are_named():
    y = np.repeat(draw(8, 1), 12, axis=0)
    with pytest.raises(ValueError, match=r"half of the distances .* are 0"):
        kernel_distance(draw(9, 12), y)
    with pytest.raises(ValueError, match=r"bandwidth is 0\.0; allowed"):
        kernel_distance(y, y, bandwidth=0.0)
    with pytest.raises(ValueError, match="generated has 1 rows"):
        kernel_distance(y[:1], y)
