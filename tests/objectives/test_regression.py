"""The regression's distances against their definitions, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import FlowConfig
from fasttta_jax.objectives.regression import ADAPTIVE_OFFSET, Regression, regress
from tests.support.tolerance import rounding

RNG = np.random.default_rng(2)


def a_regression(time_shape: tuple[int, ...]) -> tuple[np.ndarray, Regression]:
    """What a network answers, and what is wanted, of tokens [..., 4, 3, 2]."""
    shape = (*time_shape[:-2], 4, 3, 2)
    answer, z, target = RNG.normal(size=(3, *shape)).astype(np.float32)
    r, t, scale, weight = RNG.uniform(0.1, 1.0, size=(4, *time_shape)).astype(np.float32)
    return answer, Regression(*map(jnp.asarray, (z, r, t, target, scale, weight)))


def expected(answer: np.ndarray, found: Regression, config: FlowConfig) -> np.ndarray:
    """By loops over draws, clips and tokens."""
    z, target, scale, weight = (
        np.float64(each) for each in (found.z, found.target, found.scale, found.weight)
    )
    draws = z.shape[0] if z.ndim == 4 else 1
    error = np.reshape(target, (draws, 4, 3, 2)) * -1.0
    answer = np.reshape(np.float64(answer), (draws, 4, 3, 2))
    behind = (draws, 4, 1 if scale.ndim == 1 else 3)
    scale, weight = scale.reshape(behind), weight.reshape(behind)
    losses = np.zeros((4, 3))
    for draw, clip, token in np.ndindex(draws, 4, 3):
        own = token if behind[2] == 3 else 0
        tokens = [token] if behind[2] == 3 else range(3)
        residual = {
            n: scale[draw, clip, own] * answer[draw, clip, n] + error[draw, clip, n] for n in tokens
        }
        squares = residual[token] ** 2
        if config.distance == "mse":
            loss = squares.mean()
        elif config.distance == "huber":
            loss = (np.sqrt(squares + config.huber**2) - config.huber).mean()
        else:
            total = sum((each**2).sum() for each in residual.values())
            loss = len(tokens) * squares.sum() / (total + ADAPTIVE_OFFSET)
        losses[clip, token] += weight[draw, clip, own] * loss / draws
    return losses


@pytest.mark.parametrize("time_shape", [(4,), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("distance", ["mse", "huber", "adaptive"])
def test_losses_are_their_definitions(distance, time_shape):
    answer, regression = a_regression(time_shape)
    config = FlowConfig(distance=distance, huber=0.03)

    @jax.jit
    def computed(regression):
        return regress(lambda *_: jnp.asarray(answer), regression, config)

    losses, errors = computed(regression)
    np.testing.assert_allclose(
        losses, expected(answer, regression, config), rtol=rounding(20), atol=rounding(20)
    )
    assert errors.shape == (4, 3)


def test_the_error_is_that_of_velocities():
    """Whatever scale, weight and distance."""
    answer, regression = a_regression((4,))
    scale = np.asarray(regression.scale).reshape(4, 1, 1)
    wanted = answer + np.float32(0.5)
    regression = regression._replace(target=jnp.asarray(scale * wanted))
    for distance in ("mse", "adaptive"):
        config = FlowConfig(distance=distance)
        _, errors = regress(lambda z, r, t: jnp.asarray(answer), regression, config)
        np.testing.assert_allclose(errors, np.full((4, 3), 0.25), rtol=1e-4)  # over scale >= .1


def test_adaptive_losses_descend_the_logarithm():
    """Its gradient is that of log(error^2 + c), so that two points pull to the nearer: no mean."""
    answer, regression = a_regression((4,))

    def through(function):
        return jax.jit(jax.grad(lambda shift: function(jnp.asarray(answer) + shift)))(0.0)

    config = FlowConfig(distance="adaptive")
    ones = jnp.ones_like(regression.t)
    regression = regression._replace(scale=ones, weight=ones)
    found = through(lambda u: jnp.mean(regress(lambda *_: u, regression, config)[0]))

    def squares(u):
        return jnp.sum(jnp.square(u - regression.target), axis=(1, 2))

    wanted = through(lambda u: jnp.mean(jnp.log(squares(u) + ADAPTIVE_OFFSET)))
    np.testing.assert_allclose(found, wanted, rtol=rounding(60))


@pytest.mark.parametrize("distance", ["mse", "huber", "adaptive"])
def test_a_loss_of_nothing_has_a_gradient_of_nothing(distance):
    _, regression = a_regression((4,))
    ones = jnp.ones_like(regression.t)
    regression = regression._replace(scale=ones)
    config = FlowConfig(distance=distance)

    def total(u):
        return jnp.sum(regress(lambda *_: u, regression, config)[0])

    loss, gradient = jax.jit(jax.value_and_grad(total))(regression.target)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
