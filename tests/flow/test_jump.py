"""Solvers and samplers on flows that are known exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.flow.jump import sample_deterministic, sample_renoising, solve
from fasttta_jax.flow.path import over
from fasttta_jax.flow.times import grid
from tests.support.gaussian_flow import GaussianFlow, MixtureFlow, euler_tower
from tests.support.tolerance import rounding

FLOW = GaussianFlow()


def integrated(flow, z, num_steps: int, solver: str) -> jax.Array:
    """From noise to data on a uniform grid."""
    start = jnp.zeros(z.shape[:1], jnp.int32)
    return solve(flow, z, grid("uniform", num_steps), start, num_steps, solver)


@pytest.mark.parametrize(
    ("solver", "num_steps", "expected"),
    [
        ("euler", 4, (0.720, 0.341, 0.136)),
        ("euler", 8, (0.851, 0.415, 0.189)),
        ("euler", 32, (0.961, 0.477, 0.234)),
        ("euler", 128, (0.990, 0.494, 0.246)),
        ("heun", 4, (0.990, 0.505, 0.263)),
        ("heun", 8, (0.9987, 0.5024, 0.2553)),
        ("heun", 16, (0.9998, 0.5008, 0.2516)),
    ],
)
def test_solvers_make_the_samples_as_narrow_as_they_do(solver, num_steps, expected):
    """Of data with std 1, .5, .25: the std of samples is the factor on the noise."""
    flow = GaussianFlow(0.0, jnp.array([1.0, 0.5, 0.25]))
    found = integrated(flow, jnp.ones((3, 1, 1)), num_steps, solver)[:, 0, 0]
    np.testing.assert_allclose(found, expected, atol=5.1e-4 if max(expected) <= 0.99 else 5.1e-5)


def test_heun_is_of_second_order_and_euler_of_first():
    z = jnp.full((1, 1, 1), 1.7)
    exact = FLOW.jump(np.float64(1.7), np.float64(0.0), np.float64(1.0))
    for solver, order in (("euler", 1), ("heun", 2)):
        errors = [abs(float(integrated(FLOW, z, k, solver)[0, 0, 0]) - exact) for k in (8, 16, 32)]
        assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.35)
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.6)


def test_clips_start_where_they_are_and_go_as_far():
    """Two steps from points of their own, with a number of steps that is drawn."""
    points = grid("karras", 6)
    start, z = jnp.array([0, 3, 4]), jnp.full((3, 2, 1), 0.4)
    together = jax.jit(lambda steps: solve(FLOW, z, points, start, steps, "heun"))(2)
    for clip, first in enumerate((0, 3, 4)):
        alone = solve(FLOW, z[:1], points[first:], jnp.zeros(1, jnp.int32), 2, "heun")
        np.testing.assert_allclose(together[clip], alone[0], rtol=rounding(60))
    np.testing.assert_array_equal(solve(FLOW, z, points, start, 0, "heun"), z)


def test_directions_of_a_covariance_flow_for_themselves():
    """Of N(m, Sigma) each eigenvector of Sigma is a Gaussian of one dimension."""
    covariance, mean = np.array([[1.0, 0.8], [0.8, 1.2]]), np.array([0.5, -0.3])
    variances, vectors = np.linalg.eigh(covariance)
    flows = [
        GaussianFlow(float(m), float(v) ** 0.5)
        for m, v in zip(mean @ vectors, variances, strict=True)
    ]
    z, zero, one = np.array([1.1, -0.7]) @ vectors, np.float64(0), np.float64(1)
    moved = np.array([f.jump(part, zero, one) for f, part in zip(flows, z, strict=True)])
    np.testing.assert_allclose(vectors @ moved, [1.208995, -0.551646], atol=5.1e-7)

    def velocity(z, r, t):
        """Of the whole vector: e - x given z is affine, by the covariances of both with z."""
        del r
        eye, spread = jnp.eye(2)[None], jnp.asarray(covariance, jnp.float32)[None]
        data, noise = (over(share, z) for share in (1 - t, t))
        gain = (noise * eye - data * spread) @ jnp.linalg.inv(data**2 * spread + noise**2 * eye)
        centre = jnp.asarray(mean, jnp.float32).reshape(1, 1, 2)
        return jnp.einsum("bij,bnj->bni", gain, z - data * centre) - centre

    found = integrated(velocity, jnp.array([[[1.1, -0.7]]]), 64, "heun")[0, 0]
    np.testing.assert_allclose(found, [1.208995, -0.551646], atol=2e-3)


def test_a_mixture_flows_by_quantiles():
    flow = MixtureFlow()
    for z, expected in ((-1.5, -1.1526275), (-0.4, 0.2664006), (0.0, 0.6019179), (0.9, 1.0220045)):
        assert flow.jump(z, 0.0, 1.0) == pytest.approx(expected, abs=5.1e-8)
    assert flow.jump(0.4, 0.3, 0.8) == pytest.approx(0.5796718, abs=5.1e-8)
    # the velocity leads along quantiles: that of z keeps its probability
    z, t, width = 0.4, 0.6, 1e-4
    slope = (flow.jump(z, t + width, t) - flow.jump(z, t - width, t)) / (2 * width)
    assert slope == pytest.approx(flow.velocity(z, t), abs=1e-6)


def test_pairs_of_a_flow_are_joined_by_straight_lines():
    """Reflow on x = m + s e: the line's velocity is a function of z, and one step is exact."""
    noise = np.random.default_rng(0).normal(size=(50, 1, 1))
    x = FLOW.mean + FLOW.std * noise
    t = np.linspace(0, 1, 50)
    z = (1 - over(t, x)) * x + over(t, x) * noise
    gain = over((1 - FLOW.std) / ((1 - t) * FLOW.std + t), z)
    velocity = -FLOW.mean + gain * (z - (1 - over(t, z)) * FLOW.mean)
    np.testing.assert_allclose(velocity, noise - x, atol=1e-13)
    np.testing.assert_allclose(noise - (noise - x), x, atol=1e-13)


@pytest.mark.parametrize("points", [(1.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.9, 0.2, 0.1, 0.0)])
def test_exact_jumps_need_no_more_than_one(points):
    noise = jax.random.normal(jax.random.key(0), (3, 2, 4))
    exact = FLOW.jump(np.float64(noise), np.zeros(3), np.ones(3))
    found = sample_deterministic(FLOW, noise, jnp.array(points), (3,))
    assert found.states.shape == (len(points) - 1, 3, 2, 4)
    np.testing.assert_array_equal(found.states[-1], found.tokens)
    np.testing.assert_allclose(found.tokens, exact, atol=rounding(20 * len(points)) * 4)


def test_renoising_with_the_exact_jump_keeps_the_distribution():
    """Mean and std of samples within five standard errors; no clip knows its neighbours."""
    num_clips, num_tokens = 64, 256
    points = jnp.array((1.0, 0.7, 0.2, 0.0))
    sample = jax.jit(lambda noise, keys: sample_renoising(FLOW, noise, points, (64,), keys)[0])
    keys = jax.random.split(jax.random.key(1), num_clips)
    noise = jax.random.normal(jax.random.key(2), (num_clips, num_tokens, 1))
    found, count = sample(noise, keys), num_clips * num_tokens
    assert float(jnp.mean(found)) == pytest.approx(FLOW.mean, abs=5 * FLOW.std / count**0.5)
    assert float(jnp.std(found)) == pytest.approx(FLOW.std, abs=5 * FLOW.std / (2 * count) ** 0.5)
    moved = sample(noise[::-1], keys[::-1])[::-1]
    np.testing.assert_array_equal(moved, found)


def test_temperature_is_on_the_fresh_noise():
    noise, keys = jnp.ones((2, 3, 1)), jax.random.split(jax.random.key(1), 2)
    points = jnp.array([1.0, 0.6, 0.0])
    found, states = sample_renoising(FLOW, noise, points, (2,), keys, temperature=0.0)
    np.testing.assert_array_equal(states[-1], found)
    half_way = 0.4 * FLOW.jump(np.float64(1), np.float64(0), np.float64(1))
    expected = FLOW.jump(half_way, np.float64(0), np.float64(0.6))
    np.testing.assert_allclose(found, np.full((2, 3, 1), expected), atol=rounding(60))


def test_each_jump_asks_the_network_once():
    asked = []

    def counting(z, r, t):
        jax.debug.callback(lambda: asked.append(1))
        return FLOW(z, r, t)

    noise, keys = jnp.ones((2, 3, 1)), jax.random.split(jax.random.key(1), 2)
    for num_jumps in (1, 4):
        points = jnp.asarray(grid("uniform", num_jumps), jnp.float32)
        for sample, more in ((sample_deterministic, ()), (sample_renoising, (keys,))):
            sample(counting, noise, points, (2,), *more).tokens.block_until_ready()
            jax.effects_barrier()
            assert len(asked) == num_jumps
            asked.clear()


def test_times_may_be_of_single_tokens():
    noise = jax.random.normal(jax.random.key(0), (2, 3, 4))
    points = jnp.array([1.0, 0.4, 0.0])
    of_clips = sample_deterministic(FLOW, noise, points, (2,)).tokens
    of_tokens = sample_deterministic(FLOW, noise, points, (2, 3)).tokens
    np.testing.assert_allclose(of_clips, of_tokens, rtol=rounding(20))


def test_the_tower_of_halved_jumps_is_eulers():
    """a of these tests' tower is what Euler does, as above."""
    a, b = euler_tower(GaussianFlow(0.0, 0.5), 8)
    assert a[8, 0] == pytest.approx(0.415, abs=5.1e-4)
    np.testing.assert_array_equal(b, np.zeros_like(b))
    a, b = euler_tower(FLOW, 8)
    found = integrated(FLOW, jnp.full((1, 1, 1), 1.7), 8, "euler")
    assert float(found[0, 0, 0]) == pytest.approx(a[8, 0] * 1.7 + b[8, 0], abs=rounding(100) * 2)
