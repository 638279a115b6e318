"""The cosine noise schedule, its tables in float64, respacing, and corruption.

Source: Nichol & Dhariwal (2021) as MAR uses it. Dimensions: R steps, C token channels.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from fasttta_jax.typing import AnyArray

MAX_BETA = 0.999


def cosine_betas(num_steps: int) -> Float64[np.ndarray, " {num_steps}"]:
    """Cosine schedule, float64 [num_steps]: alpha_bar(u) = cos^2(pi/2 (u + .008) / 1.008)."""

    def alpha_bar(u: Float64[np.ndarray, " R"]) -> Float64[np.ndarray, " R"]:
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    steps = np.arange(num_steps, dtype=np.float64)
    return np.minimum(
        1 - alpha_bar((steps + 1) / num_steps) / alpha_bar(steps / num_steps), MAX_BETA
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Tables of a noise schedule, float64 [R].

    Attributes:
      betas: variance added per step.
      times: the step numbers of the training schedule that the network is told.
    """

    betas: Float64[np.ndarray, " R"]
    times: Int[np.ndarray, " R"]

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def alpha_bars(self) -> Float64[np.ndarray, " {self.num_steps}"]:
        """Share of signal variance left after each step."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alpha_bars_before(self) -> Float64[np.ndarray, " {self.num_steps}"]:
        """`alpha_bars` one step earlier; 1 before the first."""
        return np.append(1.0, self.alpha_bars[:-1])

    @functools.cached_property
    def posterior_log_variance(self) -> Float64[np.ndarray, " {self.num_steps}"]:
        """ln variance of q(x_{t-1} | x_t, x_0); entry 0, which is ln 0, takes entry 1."""
        variance = self.betas * (1 - self.alpha_bars_before) / (1 - self.alpha_bars)
        return np.log(np.append(variance[1], variance[1:]))

    @functools.cached_property
    def posterior_mean_x_0(self) -> Float64[np.ndarray, " {self.num_steps}"]:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alpha_bars_before) / (1 - self.alpha_bars)

    @functools.cached_property
    def posterior_mean_x_t(self) -> Float64[np.ndarray, " {self.num_steps}"]:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1 - self.alpha_bars_before) * np.sqrt(1 - self.betas) / (1 - self.alpha_bars)


def at(table: Float64[np.ndarray, " R"], time: Int[AnyArray, " ..."]) -> Float[Array, "... 1"]:
    """Entries of a table as float32, with an axis for the channels."""
    return jnp.asarray(table, jnp.float32)[time][..., None]


@functools.cache
def training_schedule(num_steps: int) -> Schedule:
    """The full cosine schedule."""
    return Schedule(cosine_betas(num_steps), np.arange(num_steps))


@functools.cache
def respaced_schedule(num_steps: int, sampling_steps: int) -> Schedule:
    """`sampling_steps` of the cosine schedule's steps, from the first to the last, evenly strided.

    Positions are the cumulative fractional stride rounded half to even; each new beta bridges the
    gap to the retained step before it.

    Raises:
      ValueError: `sampling_steps` is not between 2 and `num_steps`.
    """
    if not 2 <= sampling_steps <= num_steps:
        raise ValueError(f"sampling_steps is {sampling_steps}; allowed: 2 to {num_steps}")
    stride = (num_steps - 1) / (sampling_steps - 1)
    times = np.round(np.arange(sampling_steps) * stride).astype(np.int64)
    alpha_bars = training_schedule(num_steps).alpha_bars[times]
    return Schedule(1 - alpha_bars / np.append(1.0, alpha_bars[:-1]), times)


def corrupt(
    x_0: Float[AnyArray, "... C"],
    time: Int[AnyArray, " ..."],
    noise: Float[AnyArray, "... C"],
    schedule: Schedule,
) -> Float[Array, "... C"]:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
    return at(np.sqrt(schedule.alpha_bars), time) * x_0 + (
        at(np.sqrt(1 - schedule.alpha_bars), time) * noise
    )


def prediction_target(
    x_0: Float[AnyArray, "... C"],
    time: Int[AnyArray, " ..."],
    noise: Float[AnyArray, "... C"],
    schedule: Schedule,
    prediction: str,
) -> Float[Array, "... C"]:
    """What a head predicts: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
    if prediction == "epsilon":
        return jnp.asarray(noise)
    return at(np.sqrt(schedule.alpha_bars), time) * noise - (
        at(np.sqrt(1 - schedule.alpha_bars), time) * x_0
    )


def predicted_x_0(
    x_t: Float[AnyArray, "... C"],
    time: Int[AnyArray, " ..."],
    predicted: Float[AnyArray, "... C"],
    schedule: Schedule,
    prediction: str,
) -> Float[Array, "... C"]:
    """The clean token that the head's prediction implies, unclipped."""
    if prediction == "epsilon":
        return at(np.sqrt(1 / schedule.alpha_bars), time) * x_t - (
            at(np.sqrt(1 / schedule.alpha_bars - 1), time) * predicted
        )
    return at(np.sqrt(schedule.alpha_bars), time) * x_t - (
        at(np.sqrt(1 - schedule.alpha_bars), time) * predicted
    )
