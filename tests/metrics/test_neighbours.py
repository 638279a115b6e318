"""The four shares are what their definitions count, clip by clip."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.metrics import features
from fasttta_jax.metrics.neighbours import coverage, density, precision, recall

ALL = (precision, recall, density, coverage)


def draw(seed: int, n: int, d: int = 3, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(n, d))


def radii(x: np.ndarray, k: int) -> list[float]:
    return [
        sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]
        for i in range(len(x))
    ]


def inside(centres: np.ndarray, clips: np.ndarray, k: int) -> np.ndarray:
    """[clip, ball]"""
    reach = radii(centres, k)
    return np.array(
        [[np.linalg.norm(c - b) <= r for b, r in zip(centres, reach, strict=True)] for c in clips]
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(23, 30), (30, 23)])
def test_equal_what_loops_count(n, m, k, monkeypatch):
    monkeypatch.setattr(features, "BLOCK_ROWS", 8)
    x, y = draw(0, n, shift=0.7), draw(1, m)
    real_balls, generated_balls = inside(y, x, k), inside(x, y, k)
    np.testing.assert_array_equal(precision(x, y, k=k), real_balls.any(axis=1))
    np.testing.assert_array_equal(recall(x, y, k=k), generated_balls.any(axis=1))
    np.testing.assert_allclose(density(x, y, k=k), real_balls.sum(axis=1) / k)
    np.testing.assert_array_equal(coverage(x, y, k=k), real_balls.any(axis=0))


def test_equal_sets_have_known_shares():
    x = draw(2, 40, d=6)
    for metric in (precision, recall, coverage):
        assert metric(x, x[::-1]).mean() == 1
    assert density(x, x[::-1], k=4).mean() == pytest.approx(5 / 4)


def test_sets_far_apart_share_nothing_and_one_mode_lacks_variety():
    x, y = draw(3, 30), draw(4, 30, shift=50.0)
    assert [metric(x, y).mean() for metric in ALL] == [0, 0, 0, 0]
    one_mode = np.concatenate([y[:1] + 1e-3 * draw(5, 30)])
    assert precision(one_mode, y).mean() == 1
    assert recall(one_mode, y).mean() < 0.1
    assert coverage(one_mode, y).mean() < 0.5


@pytest.mark.parametrize("metric", ALL)
def test_are_blind_to_place_scale_and_rotation(metric):
    x, y = draw(6, 25), draw(7, 25, shift=0.4)
    rotation = np.linalg.qr(draw(8, 3))[0]
    value = metric(x, y)
    np.testing.assert_allclose(metric(5 * x @ rotation + 9, 5 * y @ rotation + 9), value)
    np.testing.assert_allclose(metric(x[::-1], y).mean(), value.mean())


def test_copies_are_neighbours():
    x = np.repeat(draw(9, 5), 8, axis=0)
    assert precision(x, x).mean() == 1
    assert density(x + 100, x).mean() == 0


def test_too_few_clips_are_named():
    with pytest.raises(ValueError, match="k is 5, with 9 generated and 5 real clips; allowed: 1"):
        coverage(draw(10, 9), draw(11, 5))


@pytest.mark.usefixtures("unchecked")
def test_sets_of_two_networks_are_named():
    with pytest.raises(ValueError, match="generated has 4 features and reference has 3"):
        precision(draw(12, 9, d=4), draw(13, 9))
