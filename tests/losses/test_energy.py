"""The energy score equals its definition, is proper and unbiased, and has a gradient everywhere."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.losses.energy import energy_score
from tests.support.tolerance import assert_within, worst_rounding

EPSILON = float(np.finfo(np.float32).eps)


def definition(samples: np.ndarray, target: np.ndarray, alpha: float) -> tuple[float, float]:
    """Attraction and repulsion of one token, by double loop in float64."""
    num_draws = len(samples)
    attraction = sum(2 / num_draws * np.linalg.norm(x - target) ** alpha for x in samples)
    repulsion = 0.0
    for i in range(num_draws):
        for j in range(num_draws):
            if i != j:
                distance = np.linalg.norm(samples[i] - samples[j])
                repulsion += distance**alpha / (num_draws * (num_draws - 1))
    return attraction, repulsion


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("num_draws", [2, 3, 4, 5])
def test_equals_its_definition(num_draws, alpha):
    rng = np.random.default_rng(num_draws)
    samples = rng.normal(size=(num_draws, 2, 3, 6)).astype(np.float32)
    target = rng.normal(size=(2, 3, 6)).astype(np.float32)
    scores = np.asarray(energy_score(jnp.asarray(samples), jnp.asarray(target), alpha=alpha))
    assert scores.shape == (2, 3)
    for index in np.ndindex(2, 3):
        attraction, repulsion = definition(
            samples[:, *index].astype(np.float64), target[index].astype(np.float64), alpha
        )
        # every distance rounds at most about once a channel, and so do the two sums
        tolerance = (6 + num_draws**2) * EPSILON * (attraction + repulsion)
        assert abs(scores[index] - (attraction - repulsion)) < tolerance


def test_two_draws_are_the_printed_formula():
    x_1, x_2, y = (
        jnp.asarray(np.random.default_rng(i).normal(size=8), jnp.float32) for i in range(3)
    )
    expected = jnp.linalg.norm(x_1 - y) + jnp.linalg.norm(x_2 - y) - jnp.linalg.norm(x_1 - x_2)
    # the sums of three distances over eight channels, theirs, and as much for what is expected
    magnitudes = jnp.linalg.norm(x_1 - y) + jnp.linalg.norm(x_2 - y) + jnp.linalg.norm(x_1 - x_2)
    bound = worst_rounding(2 * (8 + 3)) * float(magnitudes)
    assert_within(energy_score(jnp.stack([x_1, x_2]), y), expected, bound)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_gradient_is_zero_where_all_points_coincide(alpha):
    point = jnp.ones((4,))
    gradients = jax.grad(lambda x, y: energy_score(x, y, alpha=alpha), argnums=(0, 1))(
        jnp.stack([point, point]), point
    )
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_equal_draws_away_from_the_target_are_pulled_to_it(alpha):
    point = jnp.ones((4,))
    gradient = jax.grad(lambda x: energy_score(x, jnp.zeros((4,)), alpha=alpha))(
        jnp.stack([point, point])
    )
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0], gradient[1])
    assert (np.asarray(gradient) > 0).all()


def test_swapping_draws_changes_nothing():
    samples = jax.random.normal(jax.random.key(0), (4, 10, 3))
    target = jax.random.normal(jax.random.key(1), (10, 3))
    parts = [
        definition(np.float64(samples[:, index]), np.float64(target[index]), 1.0)
        for index in range(10)
    ]
    # sums over 3 channels, 4 targets and 16 pairs, in either order
    bound = worst_rounding(2 * (3 + 4 + 16)) * np.sum(parts, axis=-1)
    assert_within(energy_score(samples[::-1], target), energy_score(samples, target), bound)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _mean_and_error(
    num_draws: int, mean: float, scale: float, dim: int
) -> tuple[jax.Array, jax.Array]:
    num_tokens = 40_000
    sample_key, target_key = jax.random.split(jax.random.key(num_draws))
    samples = mean + scale * jax.random.normal(sample_key, (num_draws, num_tokens, dim))
    scores = energy_score(samples, jax.random.normal(target_key, (num_tokens, dim)))
    return scores.mean(), scores.std() / math.sqrt(num_tokens)


def scores_of_normal(
    num_draws: int, *, mean: float = 0.0, scale: float = 1.0, dim: int = 4
) -> tuple[float, float]:
    """Mean score of normal(mean, scale) samples against standard normal targets, and its error."""
    average, error = _mean_and_error(num_draws, mean, scale, dim)
    return float(average), float(error)


@pytest.mark.parametrize("change", [{"mean": 0.3}, {"mean": -0.3}, {"scale": 0.7}, {"scale": 1.4}])
def test_expected_score_is_least_at_the_true_distribution(change):
    best, best_error = scores_of_normal(2)
    other, other_error = scores_of_normal(2, **change)
    assert other - best > 5 * math.hypot(best_error, other_error)


def test_expected_score_does_not_depend_on_the_number_of_draws():
    reference, reference_error = scores_of_normal(2, mean=0.5)
    for num_draws in (3, 4, 8):
        score, error = scores_of_normal(num_draws, mean=0.5)
        assert abs(score - reference) < 5 * math.hypot(error, reference_error)


def test_published_values_for_normal_targets():
    floor, error = scores_of_normal(2, dim=16)
    assert abs(floor - 5.57) < 0.005 + 5 * error
    at_zero, error = scores_of_normal(2, scale=0.0, dim=16)
    assert abs(at_zero - 7.88) < 0.005 + 5 * error


def test_half_precision_inputs_are_measured_in_float32():
    samples = jax.random.normal(jax.random.key(0), (2, 5, 3)).astype(jnp.bfloat16)
    score = energy_score(samples, jnp.zeros((5, 3)))
    assert score.dtype == jnp.float32


@pytest.mark.parametrize("num_draws", [0, 1])
def test_fewer_than_two_draws_are_refused(num_draws):
    with pytest.raises(ValueError, match=f"2 or more samples, got {num_draws}"):
        energy_score(jnp.zeros((num_draws, 3)), jnp.zeros((3,)))


@pytest.mark.parametrize("alpha", [0.0, 2.0, -1.0])
def test_improper_exponents_are_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; allowed: above 0 and below 2"):
        energy_score(jnp.zeros((2, 3)), jnp.zeros((3,)), alpha=alpha)


@pytest.mark.parametrize("num_draws", [2, 4])
def test_temperature_weighs_the_repulsion_alone(num_draws):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(num_draws, 6)).astype(np.float32)
    target = rng.normal(size=6).astype(np.float32)
    attraction, repulsion = definition(np.float64(samples), np.float64(target), 1.0)
    score = energy_score(jnp.asarray(samples), jnp.asarray(target), temperature=0.9)
    tolerance = (6 + num_draws**2) * EPSILON * (attraction + repulsion)
    assert abs(float(score) - (attraction - 0.9 * repulsion)) < tolerance


def test_a_lower_temperature_wants_narrower_draws():
    """The best scale of gaussian draws for gaussian targets is 1 at temperature 1, and less below.

    With z, z' independent standard normal, s the scale of the draws and w the temperature, the
    expected score is proportional to 2 sqrt(1 + s^2) - w sqrt(2) s, least at
    s = w / sqrt(2 - w^2).
    """
    rng = np.random.default_rng(0)
    draws = jnp.asarray(rng.normal(size=(2, 40_000, 16)), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(40_000, 16)), jnp.float32)

    def slope(scale: float, temperature: float) -> jax.Array:
        def mean_score(scale: jax.Array) -> jax.Array:
            return energy_score(scale * draws, targets, temperature=temperature).mean()

        return jax.grad(mean_score)(jnp.float32(scale))

    for temperature in (1.0, 0.9):
        best = temperature / math.sqrt(2 - temperature**2)
        assert slope(best - 0.1, temperature) < 0 < slope(best + 0.1, temperature)
