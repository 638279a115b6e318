"""Ancestral sampling of tokens with learned variance: one scan over the respaced schedule.

Source: MAR's p_sample: guidance in noise space on a single trajectory (two head evaluations a
step), the variance from the conditional branch, temperature on the injected noise only, no noise in
the last step.
Dimensions: B clips, Q tokens, C channels, P = 2C outputs of the head.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fasttta_jax.diffusion.loss import learned_log_variance, posterior_mean
from fasttta_jax.diffusion.schedule import Schedule, predicted_x_0
from fasttta_jax.randomness import fold_in_each, normal_per_clip
from fasttta_jax.typing import AnyArray, Key

Denoiser = Callable[[Float[Array, "B Q C"], Int[Array, "B Q"]], Float[Array, "B Q 2*C"]]


def first_noise(keys: Key, shape: tuple[int, int], schedule: Schedule) -> Float[Array, "B Q C"]:
    """What a chain of `reverse_step` starts from; arguments are those of `ancestral_sample`."""
    return normal_per_clip(fold_in_each(keys, schedule.num_steps), shape)


def reverse_step(
    denoise: Denoiser,
    x_t: Float[Array, "B Q C"],
    index: int | jax.Array,
    keys: Key,
    *,
    schedule: Schedule,
    prediction: str,
    temperature: float | jax.Array = 1.0,
) -> Float[Array, "B Q C"]:
    """One step of the chain, from number `index` of the respaced schedule to the one before.

    The other arguments are those of `ancestral_sample`.
    """
    time = jnp.broadcast_to(index, x_t.shape[:-1])
    original = jnp.asarray(schedule.times, jnp.int32)[time]
    predicted, interpolation = jnp.split(denoise(x_t, original), 2, axis=-1)
    x_0 = predicted_x_0(x_t, time, predicted, schedule, prediction)
    mean = posterior_mean(x_0, x_t, time, schedule)
    std = jnp.exp(0.5 * learned_log_variance(interpolation, time, schedule))
    noise = normal_per_clip(fold_in_each(keys, index), x_t.shape[1:])
    return mean + jnp.where(jnp.asarray(index) > 0, temperature, 0.0) * std * noise


def ancestral_sample(
    denoise: Denoiser,
    keys: Key,
    shape: tuple[int, int],
    *,
    schedule: Schedule,
    prediction: str,
    temperature: float | jax.Array = 1.0,
) -> Float[Array, "B Q C"]:
    """Samples tokens.

    Args:
      denoise: (x_t, training time) to the head's 2C outputs, guidance already applied.
      keys: one key per clip, [B].
      shape: (Q, C).
      schedule: the respaced schedule.
      prediction: "epsilon" or "v".
      temperature: factor on the noise injected between steps.
    """

    def step(x_t: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        settings = {"schedule": schedule, "prediction": prediction, "temperature": temperature}
        return reverse_step(denoise, x_t, index, keys, **settings), None

    indices = jnp.asarray(np.arange(schedule.num_steps)[::-1].copy())
    tokens, _ = jax.lax.scan(step, first_noise(keys, shape, schedule), indices)
    return tokens


def guide(
    conditional: Float[AnyArray, "... P"], unconditional: Float[AnyArray, "... P"], scale: jax.Array
) -> Float[Array, "... P"]:
    """Classifier-free guidance on the prediction; the variance stays the conditional one's.

    Guiding v or epsilon is the same for a given x_t: one is an affine function of the other.
    """
    predicted, interpolation = jnp.split(conditional, 2, axis=-1)
    baseline = jnp.split(unconditional, 2, axis=-1)[0]
    return jnp.concatenate([baseline + scale * (predicted - baseline), interpolation], axis=-1)
