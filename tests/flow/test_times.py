"""Grids have the published points, and drawn times the distribution that the config names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import FlowConfig
from fasttta_jax.flow.times import LEVELS, draw_pairs, draw_times, grid

NUM_DRAWS = 2**14
KEY = jax.random.key(3)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("num_steps", [2, 8, 39])
def test_a_grid_falls_from_noise_to_data(name, num_steps):
    points = grid(name, num_steps)
    assert points.dtype == np.float64
    assert points.shape == (num_steps + 1,)
    assert (points[0], points[-1]) == (1.0, 0.0)
    assert (np.diff(points) < 0).all()
    np.testing.assert_array_equal(points[1:-1], LEVELS[name](num_steps)[1:-1])


def test_uniform_points_are_exact():
    np.testing.assert_array_equal(grid("uniform", 8), np.arange(8, -1, -1) / 8)


def test_the_published_levels():
    """ConsistencyTTA's 18 points, and some of SoundCTM's 40."""
    published = (
        ".936 .9121 .8835 .8503 .8132 .773 .7304 .6861 .6407 "
        ".5944 .5472 .4989 .449 .3967 .3404 .2771 .1985 .0283"
    )
    expected = np.array(list(map(float, published.split())))
    np.testing.assert_allclose(LEVELS["vp"](17), expected, atol=5.1e-5)
    places = [0, 1, 2, 10, 20, 30, 39]
    expected = np.array([0.9877, 0.9858, 0.9836, 0.9438, 0.6914, 0.116, 0.002])
    np.testing.assert_allclose(LEVELS["karras"](39)[places], expected, atol=5.1e-5)


def drawn(config: FlowConfig) -> np.ndarray:
    draw = jax.jit(lambda key: draw_times(key, (NUM_DRAWS // 4, 4), config))
    return np.asarray(draw(KEY)).reshape(-1)


def assert_probability(found: np.ndarray, expected: float) -> None:
    """Five standard errors of a share."""
    bound = 5 * (expected * (1 - expected) / found.size) ** 0.5
    assert abs(found.mean() - expected) <= bound


def test_times_have_their_distribution():
    uniform = drawn(FlowConfig(time_distribution="uniform"))
    logistic = drawn(FlowConfig(time_distribution="logit_normal", time_mean=-0.4, time_std=1.0))
    assert ((uniform >= 0) & (uniform < 1)).all()
    assert_probability(uniform < 0.25, 0.25)
    assert_probability(logistic < 1 / (1 + np.exp(0.4)), 0.5)
    assert_probability(logistic < 1 / (1 + np.exp(-0.6)), 0.8413447)
    on_grid = drawn(FlowConfig(time_distribution="grid", grid="vp", grid_steps=5))
    points = np.float32(grid("vp", 5)[:-1])
    assert set(on_grid) == set(points)
    for point in points:
        assert_probability(on_grid == point, 0.2)


def test_pairs_are_in_order_and_have_their_shares():
    config = FlowConfig(equal_share=0.5, endpoint_share=0.2)
    r, t = map(np.asarray, draw_pairs(KEY, (NUM_DRAWS,), config))
    assert r.dtype == t.dtype == np.float32
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()
    at_ends = (t == 1) & (r == 0)
    assert_probability(at_ends, 0.2)
    assert_probability(r == t, 0.5)
    others = ~at_ends & (r != t)
    assert_probability((r < 0.5)[others], 0.75)  # the least of two
    assert_probability((t < 0.5)[others], 0.25)


def test_no_share_is_drawn_by_chance():
    r, t = draw_pairs(KEY, (NUM_DRAWS,), FlowConfig(equal_share=0.0, endpoint_share=0.0))
    assert not bool(jnp.any(t == 1))
    assert float(jnp.mean(r == t)) < 1e-3  # two float32 draws may coincide
    r, t = draw_pairs(KEY, (NUM_DRAWS,), FlowConfig(equal_share=0.75, endpoint_share=0.25))
    assert bool(jnp.all((r == t) | (t - r == 1)))
