"""The blocks of AudioLDM's VAE: convolutions, group norm, residual blocks, attention in the middle.

Products run in a compute dtype; parameters, biases, norms, softmax and residual sums are float32.
Source: the AutoencoderKL of latent diffusion (github.com/CompVis/latent-diffusion).
Dimensions: B clips; H, W frequency and time of a spectrogram (see `vae`), D channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

NORM_EPSILON = 1e-6


class Conv3x3(nn.Module):
    """A 3x3 convolution that keeps the size, or halves it.

    Halving pads one zero after the last row and column and none before the first.
    """

    features: int
    dtype: DTypeLike
    halve: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w {self.features}"]:
        before, stride = (0, 2) if self.halve else (1, 1)
        kernel, bias = _conv_params(self, x.shape[-1], self.features)
        return _convolve(x, kernel, (before, 1), stride, self.dtype) + bias


# Nearest upsampling makes neighbours equal, so that of the three taps of a convolution behind it
# two fall on the same value: [phase of the output, tap on the small grid, tap of the kernel].
_FOLD = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


class Upsample(nn.Module):
    """Nearest upsampling by 2 and a 3x3 convolution, in one convolution on the small grid.

    Each of the four phases of the output sees 2x2 values of the input, through a kernel with taps
    added up: 4 products where the large grid takes 9.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B 2*H 2*W D"]:
        batch_size, height, width, channels = x.shape
        kernel, bias = _conv_params(self, channels, channels)
        folded = jnp.einsum("apk,bql,klio->pqiabo", _FOLD, _FOLD, kernel, precision="highest")
        folded = folded.reshape(2, 2, channels, 4 * channels)
        phases = _convolve(x, folded, (1, 1), 1, self.dtype)
        phases = phases.reshape(batch_size, height + 1, width + 1, 2, 2, channels)
        rows = [
            jnp.stack([phases[:, a : a + height, b : b + width, a, b] for b in (0, 1)], axis=3)
            for a in (0, 1)
        ]
        large = jnp.stack(rows, axis=2).reshape(batch_size, 2 * height, 2 * width, channels)
        return large + bias


def _conv_params(
    module: nn.Module, features_in: int, features_out: int
) -> tuple[Float[Array, "3 3 I O"], Float[Array, "1 1 1 O"]]:
    shape = (3, 3, features_in, features_out)
    kernel = module.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = module.param("bias", nn.initializers.zeros_init(), (features_out,), jnp.float32)
    return jnp.asarray(kernel), jnp.asarray(bias)[None, None, None]


def _convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "K K I O"],
    padding: tuple[int, int],
    stride: int,
    dtype: DTypeLike,
) -> Float[Array, "B h w O"]:
    products = jax.lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return products.astype(jnp.float32)


class GroupNorm(nn.Module):
    """Group norm over the places and the channels of a group, in float32.

    Sums run over the places first and over the channels of a group last, on as many numbers as
    there are channels; sums over groups of a large grid are slow on a CPU.
    """

    num_groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        batch_size, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        group_size = channels // self.num_groups

        def group_mean(x: Float[Array, "B H W D"]) -> Float[Array, "B 1 1 D"]:
            sums = jnp.sum(x, axis=(1, 2)).reshape(batch_size, self.num_groups, group_size)
            means = jnp.sum(sums, axis=-1) / (height * width * group_size)
            return jnp.repeat(means, group_size, axis=-1)[:, None, None]

        centred = x - group_mean(x)
        factor = jax.lax.rsqrt(group_mean(jnp.square(centred)) + NORM_EPSILON)
        return centred * (factor * scale[None, None, None]) + bias[None, None, None]


def group_norm(num_groups: int, name: str) -> GroupNorm:
    """A named `GroupNorm`."""
    return GroupNorm(num_groups, name=name)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); x is mapped linearly where the channels change."""

    features: int
    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W {self.features}"]:
        hidden = nn.silu(group_norm(self.num_groups, "norm_1")(x))
        hidden = Conv3x3(self.features, self.dtype, name="conv_1")(hidden)
        hidden = nn.silu(group_norm(self.num_groups, "norm_2")(hidden))
        hidden = Conv3x3(self.features, self.dtype, name="conv_2")(hidden)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + hidden


class SelfAttention(nn.Module):
    """x + attention over all H W places, one head of D channels; softmax in float32."""

    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        channels = x.shape[-1]
        places = group_norm(self.num_groups, "norm")(x).reshape(len(x), -1, 1, channels)
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(places)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return x + nn.Dense(channels, dtype=self.dtype, name="output")(mixed).reshape(x.shape)


class Middle(nn.Module):
    """Residual block, self-attention, residual block, on the smallest grid."""

    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        x = ResidualBlock(x.shape[-1], self.num_groups, self.dtype, name="block_0")(x)
        x = SelfAttention(self.num_groups, self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.num_groups, self.dtype, name="block_1")(x)
