"""The teacher's head: predicts noise or velocity of one noisy token from its context.

Source: MAR's SimpleMLPAdaLN. Dimensions: C token channels, D context width, W head width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fasttta_jax.config import HeadConfig
from fasttta_jax.models.layers import ModulatedMLP, embedding_init, linear, sinusoids, zeros_init


class DiffusionHead(nn.Module):
    """(x_t, t, context) to 2C numbers: the prediction and the interpolated log-variance.

    Attributes:
      config: sizes.
      token_dim: C.
      dtype: type of the matrix products.
      regresses: whether it also guesses the token from the context alone.
    """

    config: HeadConfig
    token_dim: int
    dtype: DTypeLike = jnp.float32
    regresses: bool = False

    def setup(self) -> None:
        width = self.config.width
        self.context = linear(width, dtype=self.dtype, name="context")
        self.time_in = linear(width, dtype=self.dtype, name="time_in", kernel_init=embedding_init)
        self.time_out = linear(width, dtype=self.dtype, name="time_out", kernel_init=embedding_init)
        self.mlp = ModulatedMLP(
            width, self.config.depth, 2 * self.token_dim, self.dtype, name="mlp"
        )
        if self.regresses:
            self.regression = linear(
                self.token_dim, dtype=self.dtype, name="regression", kernel_init=zeros_init
            )

    def guess(self, hidden: Float[Array, "... D"]) -> Float[Array, "... C"]:
        """The token as a linear function of its context; float32."""
        return self.regression(hidden).astype(jnp.float32)

    def time_embedding(self, time: Int[Array, " ..."]) -> Float[Array, "... W"]:
        """Two-layer embedding of the step number 0..num_steps-1."""
        return self.time_out(jax.nn.silu(self.time_in(sinusoids(time))))

    def __call__(
        self,
        noisy: Float[Array, "... C"],
        time: Int[Array, " ..."],
        hidden: Float[Array, "... D"],
    ) -> Float[Array, "... 2*C"]:
        """Prediction in the first C outputs, variance interpolation in the last C; float32."""
        if self.regresses and self.is_initializing():
            self.guess(hidden)
        return self.mlp(noisy, self.time_embedding(time) + self.context(hidden))
