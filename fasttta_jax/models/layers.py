"""Layers shared by the backbone and the heads.

Sources: the pre-norm ViT block that MAR uses (timm 0.9), and the residual MLP with adaptive layer
norm of MAR's diffusion head. Every linear layer is Xavier-uniform with zero bias unless said
otherwise.
Dimensions: B clips, S positions, Q positions asked for, D width of the block, H heads, P width of a
head of attention, W width of the token head, C channels of its stream.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.models.attention import attention
from fasttta_jax.parallel.sharding import constrain
from fasttta_jax.typing import AnyArray

NORM_EPSILON = 1e-6
embedding_init = nn.initializers.normal(stddev=0.02)
linear_init = nn.initializers.xavier_uniform()
zeros_init = nn.initializers.zeros_init()
NUM_SINUSOIDS = 256


def sinusoids(number: Float[Array, " ..."] | Int[Array, " ..."]) -> Float[Array, "... 256"]:
    """Cosines and sines of a number at 128 geometric frequencies from 1 to 1e-4, as of a step."""
    half = NUM_SINUSOIDS // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = number[..., None].astype(jnp.float32) * jnp.broadcast_to(
        frequencies, (*number.shape, half)
    )
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def project(
    x: Float[Array, "*in"],
    kernel: Float[AnyArray, "*kernel"],
    bias: Float[AnyArray, "*features"],
    *,
    num_in_axes: int,
    dtype: DTypeLike,
) -> Float[Array, "*out"]:
    """x @ kernel + bias over the last `num_in_axes` axes of x.

    On one device all other axes are flattened before the product, so that the gradient of the
    kernel is one matrix product, which XLA on CPU runs faster. On several they are not: draws,
    clips and tokens in one axis cannot stay split by clips, and every device would get them all.
    """
    split = x.ndim - num_in_axes
    leading, inside = x.shape[:split], x.shape[split:]
    if jax.sharding.get_abstract_mesh().size <= 1:
        x = x.reshape(-1, *inside)
    contracted = tuple(range(x.ndim - num_in_axes, x.ndim)), tuple(range(num_in_axes))
    product = jax.lax.dot_general(x.astype(dtype), kernel.astype(dtype), (contracted, ((), ())))
    product += jnp.expand_dims(bias.astype(dtype), tuple(range(x.ndim - num_in_axes)))
    return product.reshape(*leading, *bias.shape)


def flattened(
    kernel_init: nn.initializers.Initializer, inside: tuple[int, ...], features: tuple[int, ...]
) -> nn.initializers.Initializer:
    """An initializer of shape (*inside, *features) with the bound of the flattened matrix."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return kernel_init(key, (math.prod(inside), math.prod(features)), dtype).reshape(shape)

    return init


class Linear(nn.Module):
    """A biased linear layer over the last axes; parameters in float32.

    Attributes:
      features: axes of the output.
      num_in_axes: how many of the last axes are contracted.
      dtype: type of the product.
      kernel_init: initializer of the flattened kernel.
    """

    features: tuple[int, ...]
    num_in_axes: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "*in"]) -> Float[Array, "*out"]:
        inside = x.shape[x.ndim - self.num_in_axes :]
        init = flattened(self.kernel_init, inside, self.features)
        kernel = self.param("kernel", init, (*inside, *self.features))
        bias = self.param("bias", zeros_init, self.features, jnp.float32)
        return project(x, kernel, bias, num_in_axes=self.num_in_axes, dtype=self.dtype)


def linear(
    features: int | tuple[int, ...],
    *,
    dtype: DTypeLike,
    name: str,
    kernel_init: nn.initializers.Initializer = linear_init,
    num_in_axes: int = 1,
) -> Linear:
    """A `Linear`, Xavier-uniform unless told otherwise."""
    features = (features,) if isinstance(features, int) else features
    return Linear(features, num_in_axes, dtype, kernel_init, name=name)


def layer_norm(*, name: str, affine: bool = True, epsilon: float = NORM_EPSILON) -> nn.LayerNorm:
    """Layer norm with float32 statistics and output."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=jnp.float32,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        name=name,
    )


def modulate(
    x: Float[Array, "... W"], shift: Float[Array, "... W"], scale: Float[Array, "... W"]
) -> Float[Array, "... W"]:
    """x (1 + scale) + shift."""
    return x * (1.0 + scale) + shift


Positions = Int[Array, "B Q"] | slice
"""Rows of a sequence: of each clip its own, or the same of all."""


def take_positions(x: Float[Array, "B S D"], positions: Positions | None) -> Float[Array, "B Q D"]:
    """x at the positions; all of it where there are none."""
    if positions is None:
        return x
    if isinstance(positions, slice):
        return x[:, positions]
    return jnp.take_along_axis(x, positions[..., None], axis=1)


class QKV(nn.Module):
    """Queries, keys and values from one matrix, stored [D, 3, heads, head width]."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], positions: Positions | None
    ) -> tuple[Float[Array, "B Q H P"], Float[Array, "B S H P"], Float[Array, "B S H P"]]:
        width = x.shape[-1]
        features = (3, self.num_heads, width // self.num_heads)
        init = flattened(linear_init, (width,), features)
        kernel = self.param("kernel", init, (width, *features))
        bias = self.param("bias", zeros_init, features, jnp.float32)
        run = functools.partial(project, num_in_axes=1, dtype=self.dtype)
        if positions is None:
            qkv = run(x, kernel, bias)
            return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        query = run(take_positions(x, positions), kernel[:, 0], bias[0])
        key_value = run(x, kernel[:, 1:], bias[1:])
        return query, key_value[:, :, 0], key_value[:, :, 1]


class SelfAttention(nn.Module):
    """Multi-head self-attention, for the queries at `positions` or for all."""

    num_heads: int
    attention_dropout: float
    projection_dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        key_mask: Bool[Array, "B S"] | None,
        positions: Positions | None = None,
        deterministic: bool,
    ) -> Float[Array, "B Q D"]:
        qkv = QKV(self.num_heads, self.dtype, name="qkv")(x, positions)
        mixed = attention(
            *(constrain(rows, "batch", None, "head", None) for rows in qkv),
            key_mask=key_mask,
            dropout=nn.Dropout(self.attention_dropout, deterministic=deterministic),
        )
        out = linear(x.shape[-1], num_in_axes=2, dtype=self.dtype, name="projection")(mixed)
        return nn.Dropout(self.projection_dropout, deterministic=deterministic)(out)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and an exact-GELU MLP; float32 residual stream.

    With `positions` [B, Q] only those rows are computed, from keys and values of all of them.
    """

    num_heads: int
    mlp_ratio: int
    attention_dropout: float
    projection_dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        key_mask: Bool[Array, "B S"] | None = None,
        positions: Positions | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B Q D"]:
        x = constrain(x, "batch", None, None)
        width = x.shape[-1]
        drop = nn.Dropout(self.projection_dropout, deterministic=deterministic)
        attend = SelfAttention(
            self.num_heads,
            self.attention_dropout,
            self.projection_dropout,
            self.dtype,
            name="attention",
        )
        mixed = attend(
            layer_norm(name="norm_1")(x),
            key_mask=key_mask,
            positions=positions,
            deterministic=deterministic,
        )
        x = take_positions(x, positions) + constrain(mixed, "batch", None, None)
        hidden = layer_norm(name="norm_2")(x)
        hidden = linear(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(hidden)
        hidden = drop(jax.nn.gelu(constrain(hidden, "batch", None, "hidden"), approximate=False))
        out = constrain(
            linear(width, dtype=self.dtype, name="mlp_out")(hidden), "batch", None, None
        )
        return x + drop(out)


class ResidualBlock(nn.Module):
    """x + gate * MLP(norm(x) modulated), with shift, scale and gate read off the modulation.

    `shift_scale` is a factor on the shift alone (EAR's temperature).
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "... W"],
        modulation: Float[Array, "... W"],
        shift_scale: float | jax.Array = 1.0,
    ) -> Float[Array, "... W"]:
        width = x.shape[-1]
        shift, scale, gate = jnp.split(
            linear(3 * width, dtype=self.dtype, name="modulation", kernel_init=zeros_init)(
                jax.nn.silu(modulation)
            ),
            3,
            axis=-1,
        )
        hidden = modulate(layer_norm(name="norm")(x), shift_scale * shift, scale)
        hidden = jax.nn.silu(linear(width, dtype=self.dtype, name="mlp_in")(hidden))
        return x + gate * linear(width, dtype=self.dtype, name="mlp_out")(hidden)


class ModulatedMLP(nn.Module):
    """Residual MLP on a stream, every block modulated by the same vector; zero output at the start.

    The last layer runs in float32: an error in it is multiplied by the sampler.
    """

    width: int
    depth: int
    out_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        stream: Float[Array, "... C"],
        modulation: Float[Array, "... W"],
        shift_scale: float | jax.Array = 1.0,
    ) -> Float[Array, "... out"]:
        x = linear(self.width, dtype=self.dtype, name="stream")(stream)
        for index in range(self.depth):
            x = ResidualBlock(self.dtype, name=f"block_{index}")(x, modulation, shift_scale)
        shift, scale = jnp.split(
            linear(
                2 * self.width, dtype=self.dtype, name="final_modulation", kernel_init=zeros_init
            )(jax.nn.silu(modulation)),
            2,
            axis=-1,
        )
        x = modulate(layer_norm(name="final_norm", affine=False)(x), shift, scale)
        return linear(self.out_dim, dtype=jnp.float32, name="final", kernel_init=zeros_init)(x)
