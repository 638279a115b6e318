"""The straight path from data to noise, and what other coordinates call the same things.

A token on the path is z = (1 - t) x + t e, with data x at time t = 0 and Gaussian noise e at t = 1;
its velocity is e - x. Variance-exploding x + sigma e (EDM) and variance-preserving
alpha x + sigma e (diffusion) are rescaled points of it, so that they have the same trajectories.
Sources: Lipman et al. (2023), Karras et al. (2022). Dimensions: N tokens, C channels; times have
the first axes of tokens, T: one for each clip, or one for each draw, clip and token.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Float

from fasttta_jax.typing import AnyArray, SomeArray

Velocity = Callable[
    [Float[Array, "... N C"], Float[Array, " *T"], Float[Array, " *T"]], Float[Array, "... N C"]
]
"""Of z, r and t: the average velocity u from time r to t, at r = t the velocity v. Parameters, text
or backbone states, and strength of guidance are closed over."""


def over(t: SomeArray, z: AnyArray) -> SomeArray:
    """Times with axes of length 1 for those that z has behind them."""
    return t.reshape(t.shape + (1,) * (z.ndim - t.ndim))


def interpolate(
    x: Float[SomeArray, "... C"], noise: Float[SomeArray, "... C"], t: Float[SomeArray, " *T"]
) -> Float[SomeArray, "... C"]:
    """The point of the path at time t."""
    share = over(t, x)
    return (1.0 - share) * x + share * noise


def denoised(
    z: Float[SomeArray, "... C"], v: Float[SomeArray, "... C"], t: Float[SomeArray, " *T"]
) -> Float[SomeArray, "... C"]:
    """E[x | z], of the velocity v at z; EDM's denoiser."""
    return z - over(t, z) * v


def noise_in(
    z: Float[SomeArray, "... C"], v: Float[SomeArray, "... C"], t: Float[SomeArray, " *T"]
) -> Float[SomeArray, "... C"]:
    """E[e | z], of the velocity v at z; what predicts noise predicts this."""
    return z + (1.0 - over(t, z)) * v


def time_of(
    sigma: Float[SomeArray, " *T"], alpha: Float[SomeArray, " *T"] | float = 1.0
) -> Float[SomeArray, " *T"]:
    """The time whose z is (alpha x + sigma e) / (alpha + sigma); alpha is 1 for EDM."""
    return sigma / (alpha + sigma)


def preserved(t: SomeArray) -> tuple[SomeArray, SomeArray]:
    """alpha and sigma of time t where alpha^2 + sigma^2 = 1."""
    length = ((1.0 - t) ** 2 + t**2) ** 0.5
    return (1.0 - t) / length, t / length


def velocity_from_preserved(
    x_t: Float[SomeArray, "... C"],
    v: Float[SomeArray, "... C"],
    alpha: Float[SomeArray, " *T"],
    sigma: Float[SomeArray, " *T"],
) -> Float[SomeArray, "... C"]:
    """The path's velocity at x_t / (alpha + sigma), of diffusion's v = alpha e - sigma x at x_t."""
    return over(alpha + sigma, x_t) * v + over(sigma - alpha, x_t) * x_t
