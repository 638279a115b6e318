"""One flow in three coordinate systems: noise added, variance kept, the straight path."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.diffusion.schedule import training_schedule
from fasttta_jax.flow.jump import jump
from fasttta_jax.flow.path import (
    denoised,
    interpolate,
    noise_in,
    over,
    preserved,
    time_of,
    velocity_from_preserved,
)
from tests.support.gaussian_flow import GaussianFlow

RNG = np.random.default_rng(5)
X, NOISE = RNG.normal(size=(2, 6, 3, 4))
TIMES = np.array([0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
SIGMA_T, ALPHA_T = preserved(TIMES)[1], preserved(TIMES)[0]
TOLERANCE = 1e-13
"""Float64: some dozen operations on numbers below 10."""


def test_a_token_goes_from_data_to_noise_and_both_come_back():
    z, v = interpolate(X, NOISE, TIMES), NOISE - X
    np.testing.assert_array_equal(z[0], X[0])
    np.testing.assert_array_equal(z[-1], NOISE[-1])
    np.testing.assert_allclose(denoised(z, v, TIMES), X, atol=TOLERANCE)
    np.testing.assert_allclose(noise_in(z, v, TIMES), NOISE, atol=TOLERANCE)


def test_exploding_variance_is_the_path_rescaled():
    sigma = np.array([0.0, 0.002, 0.5, 1.0, 14.6, 80.0])
    t = time_of(sigma)
    rescaled = (1 - over(t, X)) * (X + over(sigma, X) * NOISE)
    np.testing.assert_allclose(interpolate(X, NOISE, t), rescaled, atol=TOLERANCE)


def test_preserved_variance_is_the_path_rescaled():
    np.testing.assert_allclose(ALPHA_T**2 + SIGMA_T**2, 1.0, rtol=TOLERANCE)
    np.testing.assert_allclose(time_of(SIGMA_T, ALPHA_T), TIMES, atol=TOLERANCE)
    alpha, sigma = over(ALPHA_T, X), over(SIGMA_T, X)
    x_t, v = alpha * X + sigma * NOISE, alpha * NOISE - sigma * X
    z = interpolate(X, NOISE, TIMES)
    np.testing.assert_allclose(x_t / (alpha + sigma), z, atol=TOLERANCE)
    found = velocity_from_preserved(x_t, v, ALPHA_T, SIGMA_T)
    np.testing.assert_allclose(found, NOISE - X, atol=TOLERANCE)


def test_standard_data_have_no_preserved_velocity():
    """Of data N(0, 1) every preserved point is N(0, 1): v' is 0, and the flow moves nothing."""
    flow = GaussianFlow(0.0, 1.0)
    x_t = RNG.normal(size=(6, 3, 4))
    z = x_t / over(ALPHA_T + SIGMA_T, x_t)
    still = velocity_from_preserved(x_t, np.zeros_like(x_t), ALPHA_T, SIGMA_T)
    np.testing.assert_allclose(still, flow(z, TIMES, TIMES), atol=TOLERANCE)
    r = TIMES[::-1].copy()
    alpha, sigma = preserved(r)
    moved = flow.jump(z, r, TIMES) * over(alpha + sigma, z)
    np.testing.assert_allclose(moved, x_t, atol=TOLERANCE)


def test_a_step_of_ddim_is_an_euler_step():
    """With the velocity of the cosine schedule's v, from every time to every earlier one."""
    bars = training_schedule(1000).alpha_bars[[10, 300, 600, 950]]
    alpha, sigma = np.sqrt(bars), np.sqrt(1 - bars)
    x_t, v = RNG.normal(size=(2, 4, 3, 2))
    t, r = time_of(sigma, alpha), time_of(np.append(0.0, sigma[:-1]), np.append(1.0, alpha[:-1]))
    clean = over(alpha, v) * x_t - over(sigma, v) * v
    noise = over(sigma, v) * x_t + over(alpha, v) * v
    before = over(np.append(1.0, alpha[:-1]), v), over(np.append(0.0, sigma[:-1]), v)
    ddim = before[0] * clean + before[1] * noise
    z = x_t / over(alpha + sigma, v)
    euler = jump(z, velocity_from_preserved(x_t, v, alpha, sigma), r, t)
    np.testing.assert_allclose(euler * (before[0] + before[1]), ddim, atol=TOLERANCE)


def test_a_jump_is_the_trajectory_models_map():
    """CTM's G = (s / t) z + (1 - s / t) g with g = z - t u; at s = t g is the denoiser."""
    t, s = np.array([0.3, 0.7, 1.0]), np.array([0.3, 0.2, 0.0])
    z, u = RNG.normal(size=(2, 3, 3, 2))
    ratio = over(s / t, z)
    g = z - over(t, z) * u
    np.testing.assert_allclose(jump(z, u, s, t), ratio * z + (1 - ratio) * g, atol=TOLERANCE)
    np.testing.assert_array_equal(g, denoised(z, u, t))
    np.testing.assert_array_equal(jump(z, u, t, t), z)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda flow: flow(1.7, 0.5, 0.5), 1.56),
        (lambda flow: flow(1.7, 1.0, 1.0), 1.4),
        (lambda flow: flow(1.7, 0.0, 1.0), 0.55),
        (lambda flow: flow(1.7, 0.25, 0.75), 1.0235658),
        (lambda flow: flow.jump(1.7, 0.0, 1.0), 1.15),
        (lambda flow: (flow(1.7, 0.75, 0.75) - flow(1.7, 0.25, 0.75)) / 0.5, 1.2177332),
    ],
)
def test_the_gaussian_flow_of_these_tests(found, expected):
    class Numbers(GaussianFlow):
        def __call__(self, *numbers):
            return super().__call__(*map(np.float64, numbers))

        def jump(self, *numbers):
            return super().jump(*map(np.float64, numbers))

    assert found(Numbers()) == pytest.approx(expected, abs=5e-8)


def test_average_velocities_lead_where_the_flow_does():
    flow = GaussianFlow()
    t, r = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 6))
    z = RNG.normal(size=(6, 6, 2, 3))
    np.testing.assert_allclose(jump(z, flow(z, r, t), r, t), flow.jump(z, r, t), atol=TOLERANCE)
    middle = 0.5 * (t + r)
    there = flow.jump(z, middle, t)
    halves = 0.5 * (flow(z, middle, t) + flow(there, r, middle))
    np.testing.assert_allclose(halves, flow(z, r, t), atol=TOLERANCE)
    np.testing.assert_allclose(flow.jump(there, r, middle), flow.jump(z, r, t), atol=TOLERANCE)


def test_guided_gaussians_flow_as_one_gaussian():
    """Of two with equal variance; the mean is the guided one."""
    conditional, without, scale = GaussianFlow(1.0), GaussianFlow(-0.5), 3.0
    z, t = RNG.normal(size=(6, 2, 3)), TIMES
    guided = without(z, t, t) + scale * (conditional(z, t, t) - without(z, t, t))
    np.testing.assert_allclose(guided, GaussianFlow(4.0)(z, t, t), atol=10 * TOLERANCE)
    found = GaussianFlow(4.0).jump(np.float64(0.7), np.float64(0.0), np.float64(1.0))
    assert found == pytest.approx(4.35)
