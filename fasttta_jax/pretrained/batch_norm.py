"""Batch norm as a pretrained network has it: by the statistics that its training stored."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch norm over the last axis with stored statistics, float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        shape = x.shape[-1:]
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale = self.param("scale", ones, shape, jnp.float32)
        bias = self.param("bias", zeros, shape, jnp.float32)
        mean = self.param("mean", zeros, shape, jnp.float32)
        variance = self.param("variance", ones, shape, jnp.float32)
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        mean, factor, bias = (
            value.reshape((1,) * (x.ndim - 1) + shape) for value in (mean, factor, bias)
        )
        return (x.astype(jnp.float32) - mean) * factor + bias
