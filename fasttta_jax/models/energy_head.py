"""The student's head: gaussian noise and context to a token, in one evaluation.

Source: AudioDEAR: the residual stream carries the noise, the context modulates every block. The
body is the teacher's, so that a student can start from a trained teacher head
(`from_diffusion_head`).
Dimensions: C token channels, D context width, W head width, Z noise dimensions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasttta_jax.config import HeadConfig
from fasttta_jax.models.diffusion_head import DiffusionHead
from fasttta_jax.models.layers import ModulatedMLP, linear
from fasttta_jax.typing import Params


class EnergyHead(nn.Module):
    """(noise, context) to a token of C channels."""

    config: HeadConfig
    token_dim: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.context = linear(self.config.width, dtype=self.dtype, name="context")
        self.mlp = ModulatedMLP(
            self.config.width, self.config.depth, self.token_dim, self.dtype, name="mlp"
        )

    def __call__(
        self, noise: Float[Array, "... Z"], hidden: Float[Array, "... D"]
    ) -> Float[Array, "... C"]:
        """One draw per noise vector, float32; noise and hidden broadcast against each other."""
        return self.mlp(noise, self.context(hidden))


def from_diffusion_head(head: DiffusionHead, params: Params, time: int) -> dict[str, Any]:
    """Student parameters that make g(noise, h) = -v(x_t = noise, t = time, h), exactly.

    Near the last step x_t is all but pure noise and the velocity is all but minus the clean token,
    so the student starts as the teacher's one-step guess. The time embedding becomes part of the
    context's bias; the final layer keeps its first C outputs, negated.

    Args:
      head: the teacher's head, v-predicting.
      params: its parameters.
      time: the step number to freeze, close to the last.

    Returns:
      A tree for `EnergyHead` with noise_dim = C and the same width and depth, in memory of its own.
    """
    embedding = head.apply({"params": params}, jnp.asarray(time), method="time_embedding")
    student = jax.tree.map(jnp.array, {"context": params["context"], "mlp": params["mlp"]})
    student["context"] = student["context"] | {"bias": student["context"]["bias"] + embedding}
    final = student["mlp"]["final"]
    student["mlp"] = student["mlp"] | {
        "final": {
            "kernel": -final["kernel"][:, : head.token_dim],
            "bias": -final["bias"][: head.token_dim],
        }
    }
    return student
