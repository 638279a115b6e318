"""Times of the path: how training draws them, and grids of them.

Sources: MeanFlow (Geng et al., 2025) for pairs, Stable Diffusion's scaled-linear betas as
ConsistencyTTA and AudioLCM space them, Karras et al. (2022) as SoundCTM has it.
Dimensions: P = K + 1 points of a grid of K intervals; T, the axes of drawn times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from fasttta_jax.config.flow import FlowConfig
from fasttta_jax.flow.path import time_of
from fasttta_jax.randomness import stream
from fasttta_jax.typing import Key

VP_BETAS = (0.00085, 0.012)
VP_STEPS = 1000
KARRAS_SIGMAS = (0.002, 80.0)
KARRAS_RHO = 7.0


def uniform_levels(num_steps: int) -> Float64[np.ndarray, " {num_steps+1}"]:
    """1, 1 - 1/K, ..., 0."""
    return 1.0 - np.arange(num_steps + 1) / num_steps


def vp_levels(num_steps: int) -> Float64[np.ndarray, " {num_steps+1}"]:
    """Even steps of the scaled-linear schedule from its last to its first, in between linear."""
    first, last = np.sqrt(VP_BETAS)
    betas = np.linspace(first, last, VP_STEPS) ** 2
    steps = np.linspace(VP_STEPS - 1, 0, num_steps + 1)
    alpha_bars = np.interp(steps, np.arange(VP_STEPS), np.cumprod(1.0 - betas))
    return time_of(np.sqrt(1.0 - alpha_bars), np.sqrt(alpha_bars))


def karras_levels(num_steps: int) -> Float64[np.ndarray, " {num_steps+1}"]:
    """sigma^(1/rho) falls evenly from 80^(1/rho) to .002^(1/rho)."""
    lowest, highest = np.power(KARRAS_SIGMAS, 1.0 / KARRAS_RHO)
    return time_of(np.linspace(highest, lowest, num_steps + 1) ** KARRAS_RHO)


LEVELS: Mapping[str, Callable[[int], Float64[np.ndarray, " P"]]] = {
    "uniform": uniform_levels,
    "vp": vp_levels,
    "karras": karras_levels,
}
"""Noise levels of a grid's points as times, falling, by the names that `flow.grid` may have."""


@functools.cache
def grid(name: str, num_steps: int) -> Float64[np.ndarray, " {num_steps+1}"]:
    """A grid's points, from 1 to 0.

    The levels but for their ends, which the publications leave just short of noise and of data,
    though they sample from noise and take the last level for data.
    """
    points = LEVELS[name](num_steps).copy()
    points[0], points[-1] = 1.0, 0.0
    points.setflags(write=False)
    return points


def draw_times(key: Key, shape: tuple[int, ...], config: FlowConfig) -> Float[Array, " *T"]:
    """Independent times of `config.time_distribution`, float32."""
    if config.time_distribution == "uniform":
        return jax.random.uniform(key, shape, jnp.float32)
    if config.time_distribution == "logit_normal":
        normal = jax.random.normal(key, shape, jnp.float32)
        return jax.nn.sigmoid(config.time_mean + config.time_std * normal)
    points = jnp.asarray(grid(config.grid, config.grid_steps)[:-1], jnp.float32)
    return points[jax.random.randint(key, shape, 0, config.grid_steps)]


def draw_pairs(
    key: Key, shape: tuple[int, ...], config: FlowConfig
) -> tuple[Float[Array, " *T"], Float[Array, " *T"]]:
    """Times r <= t: from 1 to 0 in `endpoint_share` of the pairs, equal in `equal_share` of them.

    Each pair draws for itself which it is. The others are two sorted draws.
    """
    first = draw_times(stream(key, "first"), shape, config)
    second = draw_times(stream(key, "second"), shape, config)
    kind = jax.random.uniform(stream(key, "kind"), shape, jnp.float32)
    is_endpoint = kind < config.endpoint_share
    is_equal = kind >= 1.0 - config.equal_share
    t = jnp.where(is_endpoint, 1.0, jnp.maximum(first, second))
    r = jnp.where(is_endpoint, 0.0, jnp.where(is_equal, t, jnp.minimum(first, second)))
    return r, t
