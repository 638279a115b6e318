"""Jumps along the flow: by a network's average velocity, by a solver, and chains of them.

Source: the flow map Psi(z, t -> r) = z - (t - r) u(z, r, t) of MeanFlow (Geng et al., 2025); in
Euler form it is CTM's G, and at r = 0 a consistency function. Dimensions: B clips, N tokens, C
channels, P = K + 1 points of a grid; T, the axes of times.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fasttta_jax.flow.path import Velocity, interpolate, over
from fasttta_jax.randomness import fold_in_each, normal_per_clip
from fasttta_jax.typing import AnyArray, Key, SomeArray


def jump(
    z: Float[SomeArray, "... C"],
    u: Float[SomeArray, "... C"],
    r: Float[SomeArray, " *T"],
    t: Float[SomeArray, " *T"],
) -> Float[SomeArray, "... C"]:
    """Where average velocity u leads from z at time t to time r; z itself where r = t."""
    return z - over(t - r, z) * u


def solver_step(
    velocity: Velocity,
    z: Float[Array, "... N C"],
    r: Float[Array, " *T"],
    t: Float[Array, " *T"],
    solver: str,
) -> Float[Array, "... N C"]:
    """One step of the flow's differential equation from time t to r.

    Args:
      velocity: asked for single times alone; "euler" asks once, "heun" also where Euler arrives.
      z: tokens at time t.
      r: where the step ends.
      t: where it starts.
      solver: "euler" or "heun".
    """
    first = velocity(z, t, t)
    there = jump(z, first, r, t)
    if solver == "euler":
        return there
    return jump(z, 0.5 * (first + velocity(there, r, r)), r, t)


def solve(
    velocity: Velocity,
    z: Float[Array, "... N C"],
    points: Float[AnyArray, " P"],
    start: Int[Array, " *T"],
    num_steps: int | jax.Array,
    solver: str,
) -> Float[Array, "... N C"]:
    """Steps of a solver along a grid.

    Args:
      velocity: of the flow.
      z: tokens at the times of the points that they start from.
      points: falling times.
      start: the numbers of those points.
      num_steps: intervals that all of them move on, an array where drawn: no gradient passes then.
      solver: "euler" or "heun".
    """
    times = jnp.asarray(points, z.dtype)

    def step(index: jax.Array, z: jax.Array) -> jax.Array:
        at = start + index
        return solver_step(velocity, z, times[at + 1], times[at], solver)

    return jax.lax.fori_loop(0, num_steps, step, z)


class Sampled(NamedTuple):
    """Where a chain of jumps has led.

    Attributes:
      tokens: at time 0.
      states: behind every jump; at the end the same.
    """

    tokens: Float[Array, "... N C"]
    states: Float[Array, "K ... N C"]


def sample_deterministic(
    velocity: Velocity,
    noise: Float[Array, "... N C"],
    points: Float[AnyArray, " P"],
    time_shape: tuple[int, ...],
) -> Sampled:
    """Clean tokens by jumps from point to point: K evaluations, one in every jump.

    Args:
      velocity: average velocities.
      noise: tokens at the first point.
      points: falling times, the last of them 0.
      time_shape: of the times that `velocity` is given.
    """

    def step(z: jax.Array, ends: jax.Array) -> tuple[jax.Array, jax.Array]:
        t, r = (jnp.broadcast_to(end, time_shape) for end in ends)
        z = jump(z, velocity(z, r, t), r, t)
        return z, z

    times = jnp.asarray(points, noise.dtype)
    return Sampled(*jax.lax.scan(step, noise, jnp.stack([times[:-1], times[1:]], axis=1)))


def sample_renoising(
    velocity: Velocity,
    noise: Float[Array, "B N C"],
    points: Float[AnyArray, " P"],
    time_shape: tuple[int, ...],
    keys: Key,
    temperature: float | jax.Array = 1.0,
) -> Sampled:
    """Clean tokens by jumps to time 0 from every point but the last, with fresh noise between.

    Args:
      velocity: average velocities; those to time 0 are asked for.
      noise: tokens at the first point.
      points: falling times, the last of them 0.
      time_shape: of the times that `velocity` is given.
      keys: one per clip, of the noise.
      temperature: factor on the fresh noise.
    """

    def step(z: jax.Array, this: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, ends = this
        t, following = (jnp.broadcast_to(end, time_shape) for end in ends)
        end = jnp.zeros_like(t)
        clean = jump(z, velocity(z, end, t), end, t)
        fresh = temperature * normal_per_clip(fold_in_each(keys, index), noise.shape[1:])
        z = interpolate(clean, fresh.astype(clean.dtype), following)
        return z, z

    times = jnp.asarray(points, noise.dtype)
    ends = jnp.stack([times[:-1], times[1:]], axis=1)
    return Sampled(*jax.lax.scan(step, noise, (jnp.arange(len(ends)), ends)))
