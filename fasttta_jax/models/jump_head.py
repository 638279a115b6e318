"""The head of a jump: the average velocity of a noisy token between two times, given its context.

Times and the stretch between them enter by their own numbers, not by steps of a schedule, so that
the head may be differentiated by them. A stretch of 0 is embedded as nothing, and its layer starts
from zero: a head that has learned velocities alone gives them for every stretch.
Sources: the body is that of MAR's diffusion head; MeanFlow embeds a time and a stretch as they are.
Dimensions: C token channels, D context width, W head width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasttta_jax.config import HeadConfig
from fasttta_jax.models.layers import (
    ModulatedMLP,
    embedding_init,
    linear,
    sinusoids,
    zeros_init,
)


class JumpHead(nn.Module):
    """(z_t, r, t, context) to the C channels of u(z, r, t)."""

    config: HeadConfig
    token_dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        width = self.config.width
        self.context = linear(width, dtype=self.dtype, name="context")
        self.time_in = linear(width, dtype=self.dtype, name="time_in", kernel_init=embedding_init)
        self.stretch_in = linear(width, dtype=self.dtype, name="stretch_in", kernel_init=zeros_init)
        self.time_out = linear(width, dtype=self.dtype, name="time_out", kernel_init=embedding_init)
        self.mlp = ModulatedMLP(width, self.config.depth, self.token_dim, self.dtype, name="mlp")

    def time_embedding(
        self, r: Float[Array, " ..."], t: Float[Array, " ..."]
    ) -> Float[Array, "... W"]:
        """Two layers on sinusoids of the time t and of the stretch t - r."""
        stretch = t - r
        features = sinusoids(stretch) - sinusoids(jnp.zeros_like(stretch))
        embedded = self.time_in(sinusoids(t)) + self.stretch_in(features)
        return self.time_out(jax.nn.silu(embedded))

    def __call__(
        self,
        z: Float[Array, "*b C"],
        r: Float[Array, " ..."],
        t: Float[Array, " ..."],
        hidden: Float[Array, "... D"],
    ) -> Float[Array, "*b C"]:
        """The average velocity from t down to r, float32; leading axes broadcast."""
        return self.at(z, self.time_embedding(r, t), hidden)

    def at(
        self,
        z: Float[Array, "*b C"],
        embedded: Float[Array, "... W"],
        hidden: Float[Array, "... D"],
    ) -> Float[Array, "*b C"]:
        """The same at times that are embedded already."""
        return self.mlp(z, embedded + self.context(hidden))  # type: ignore[return-value]
