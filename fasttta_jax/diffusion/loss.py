"""The diffusion loss of a token: squared prediction error plus a bound that trains the variance.

Source: Nichol & Dhariwal (2021), the hybrid objective with learned range, as in MAR: the bound sees
the predicted mean through stop_gradient. Dimensions: C token channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fasttta_jax.diffusion.schedule import Schedule, at, predicted_x_0, prediction_target
from fasttta_jax.typing import AnyArray

LN_2 = math.log(2.0)
BIN = 1.0 / 255.0


def learned_log_variance(
    interpolation: Float[AnyArray, "... C"], time: Int[AnyArray, " ..."], schedule: Schedule
) -> Float[Array, "... C"]:
    """ln variance between the posterior's (interpolation -1) and beta (interpolation 1)."""
    share = (jnp.asarray(interpolation) + 1.0) / 2.0
    return share * at(np.log(schedule.betas), time) + (1.0 - share) * at(
        schedule.posterior_log_variance, time
    )


def posterior_mean(
    x_0: Float[AnyArray, "... C"],
    x_t: Float[AnyArray, "... C"],
    time: Int[AnyArray, " ..."],
    schedule: Schedule,
) -> Float[Array, "... C"]:
    """Mean of q(x_{t-1} | x_t, x_0)."""
    return at(schedule.posterior_mean_x_0, time) * x_0 + at(schedule.posterior_mean_x_t, time) * x_t


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _discretised_nll(
    x: Float[Array, "... C"], mean: Float[Array, "... C"], log_variance: Float[Array, "... C"]
) -> Float[Array, "... C"]:
    """-ln probability of the 2/255-wide bin around x, open-ended beyond +-0.999, as for images."""
    inverse_std = jnp.exp(-0.5 * log_variance)
    upper = _normal_cdf((x - mean + BIN) * inverse_std)
    lower = _normal_cdf((x - mean - BIN) * inverse_std)

    def log(probability: jax.Array) -> jax.Array:
        return jnp.log(jnp.maximum(probability, 1e-12))

    inner = jnp.where(x > 0.999, log(1.0 - lower), log(upper - lower))
    return -jnp.where(x < -0.999, log(upper), inner)


def diffusion_loss(
    output: Float[AnyArray, "... {2*x_0.shape[-1]}"],
    x_0: Float[AnyArray, "... C"],
    x_t: Float[AnyArray, "... C"],
    time: Int[AnyArray, " ..."],
    noise: Float[AnyArray, "... C"],
    *,
    schedule: Schedule,
    prediction: str,
) -> dict[str, Float[Array, " ..."]]:
    """Loss terms of every token, unreduced, float32.

    Args:
      output: of the head: prediction, then variance interpolation.
      x_0: clean tokens.
      x_t: corrupted tokens.
      time: steps, from 0.
      noise: what corrupted them.
      schedule: the training schedule.
      prediction: "epsilon" or "v".

    Returns:
      "mse": squared error of the prediction, mean over channels; "vb": variational bound in bits
      per channel. Their sum is MAR's loss.
    """
    predicted, interpolation = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    target = prediction_target(x_0, time, noise, schedule, prediction)
    mse = jnp.mean(jnp.square(target - predicted), axis=-1)

    frozen = jax.lax.stop_gradient(predicted)
    mean = posterior_mean(
        predicted_x_0(x_t, time, frozen, schedule, prediction), x_t, time, schedule
    )
    true_mean = posterior_mean(x_0, x_t, time, schedule)
    log_variance = learned_log_variance(interpolation, time, schedule)
    true_log_variance = at(schedule.posterior_log_variance, time)
    divergence = 0.5 * (
        log_variance
        - true_log_variance
        - 1.0
        + jnp.exp(true_log_variance - log_variance)
        + jnp.square(true_mean - mean) * jnp.exp(-log_variance)
    )
    first = _discretised_nll(jnp.asarray(x_0), mean, log_variance)
    vb = jnp.where(time[..., None] == 0, first, divergence)
    return {"mse": mse, "vb": jnp.mean(vb, axis=-1) / LN_2}
