"""The one regression of average velocities: three distances, one value per token.

Sources: Song & Dhariwal (2024) for "huber", MeanFlow (Geng et al., 2025) for "adaptive".
Dimensions: B clips, N tokens, C channels, R draws; T, the axes of times, as in `targets.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.config.flow import FlowConfig
from fasttta_jax.flow.path import Velocity, over
from fasttta_jax.typing import PerToken

ADAPTIVE_OFFSET = 0.01


class Regression(NamedTuple):
    """What a network answers, and what is wanted: scale * u(z, r, t) near `target`.

    Attributes:
      z: tokens on the path.
      r: where the jump ends.
      t: where it starts; the time of z.
      target: a velocity where `scale` is 1, z less the jump's end where it is t - r: nothing is
        divided by a difference of times.
      scale: of the network's answer, above 0.
      weight: factor of the loss.
    """

    z: Float[Array, "... N C"]
    r: Float[Array, " *T"]
    t: Float[Array, " *T"]
    target: Float[Array, "... N C"]
    scale: Float[Array, " *T"]
    weight: Float[Array, " *T"]


def frozen(regression: Regression) -> Regression:
    """The same, with no way back for a gradient."""
    return jax.tree.map(jax.lax.stop_gradient, regression)


def _adaptive(squares: Float[Array, "... N C"], num_time_axes: int) -> Float[Array, "... N"]:
    """Each token's share of its clip's sum, or of its own where times are of single tokens."""
    axes = tuple(range(num_time_axes, squares.ndim))
    total = jnp.sum(squares, axis=axes, keepdims=True)[..., 0]
    num_tokens = math.prod(squares.shape[num_time_axes:-1])
    divisor = jax.lax.stop_gradient(total) + ADAPTIVE_OFFSET
    return num_tokens * jnp.sum(squares, axis=-1) / divisor


def regress(
    online: Velocity, regression: Regression, config: FlowConfig
) -> tuple[PerToken, PerToken]:
    """The loss of each token, and for people the mean squared error of its velocity.

    Args:
      online: the network in training.
      regression: of a target function.
      config: the run's section `flow`.

    Returns:
      The loss, weighted, a mean over channels and draws; the unweighted squared error of velocities
      over channels and draws. The adaptive loss is near 1 whatever the network does; the error is
      comparable between distances.
    """
    u = online(regression.z, regression.r, regression.t).astype(jnp.float32)
    error = over(regression.scale, u) * u - regression.target
    squares = jnp.square(error)
    if config.distance == "adaptive":
        losses = _adaptive(squares, regression.t.ndim)
    elif config.distance == "huber":
        # sqrt(d^2 + c^2) - c without the difference of nearly equal numbers
        losses = jnp.mean(squares / (jnp.sqrt(squares + config.huber**2) + config.huber), axis=-1)
    else:
        losses = jnp.mean(squares, axis=-1)
    losses = over(regression.weight, losses) * losses
    of_velocity = jnp.mean(jax.lax.stop_gradient(squares), axis=-1)
    of_velocity = of_velocity / jnp.square(over(regression.scale, of_velocity))
    draws = tuple(range(losses.ndim - 2))
    return jnp.mean(losses, axis=draws), jnp.mean(of_velocity, axis=draws)
