"""The one-step head: noise and context to a token, in one evaluation.

Sources: AudioDEAR, where the residual stream carries gaussian noise and the context modulates every
block, and EAR, where the context is the stream and uniform noise modulates. The body is the
diffusion head's, so that a head with the first roles can start from a trained one of those
(`from_diffusion_head`).
Dimensions: C token channels, D context width, W head width, Z noise dimensions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasttta_jax.config import HeadConfig, Noise, Roles
from fasttta_jax.models.diffusion_head import DiffusionHead
from fasttta_jax.models.layers import ModulatedMLP, linear
from fasttta_jax.typing import Key, Params


def sample_noise(key: Key, shape: tuple[int, ...], noise: Noise) -> jax.Array:
    """Noise of that distribution, float32: standard gaussian, or uniform on [-1/2, 1/2]."""
    if noise == "gaussian":
        return jax.random.normal(key, shape, jnp.float32)
    return jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5)


class EnergyHead(nn.Module):
    """(noise, context) to a token of C channels; `roles` says which of the two modulates."""

    config: HeadConfig
    roles: Roles
    token_dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        width = self.config.width
        modulator = "context" if self.roles == "noise_stream" else "noise"
        self.modulator = linear(width, dtype=self.dtype, name=modulator)
        self.mlp = ModulatedMLP(width, self.config.depth, self.token_dim, self.dtype, name="mlp")

    def __call__(
        self,
        noise: Float[Array, "... Z"],
        hidden: Float[Array, "... D"],
        temperature: float | jax.Array = 1.0,
    ) -> Float[Array, "... C"]:
        """A sample per noise vector, float32; noise and hidden broadcast against each other.

        Args:
          noise: from `sample_noise`.
          hidden: context vectors.
          temperature: below 1 narrows the samples: factor on the noise where it is the stream, and
            on the shifts of the residual blocks where it modulates, as in EAR.
        """
        if self.roles == "noise_stream":
            return self.mlp(temperature * noise, self.modulator(hidden))
        return self.mlp(hidden, self.modulator(noise), shift_scale=temperature)


def from_diffusion_head(head: DiffusionHead, params: Params, time: int) -> dict[str, Any]:
    """Parameters that make g(noise, h) = -v(x_t = noise, t = time, h), exactly.

    Near the last step x_t is all but pure noise and the velocity is all but minus the clean token,
    so the head starts as the teacher's one-step guess. The time embedding becomes part of the
    context's bias; the final layer keeps its first C outputs, negated.

    Args:
      head: the teacher's head, v-predicting.
      params: its parameters.
      time: the step number to freeze, close to the last.

    Returns:
      A tree for `EnergyHead` with roles "noise_stream", Z = C and the same width and depth, in
      memory of its own.
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
