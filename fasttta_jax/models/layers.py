"""Layers shared by the backbone and the heads.

Sources: the pre-norm ViT block that MAR uses (timm 0.9), and the residual MLP with adaptive layer
norm of MAR's diffusion head. Every linear layer is Xavier-uniform with zero bias unless said
otherwise.
Dimensions: B clips, S positions, D width of the block, W width of the head, C token channels.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fasttta_jax.models.attention import attention

NORM_EPSILON = 1e-6
embedding_init = nn.initializers.normal(stddev=0.02)
linear_init = nn.initializers.xavier_uniform()
zeros_init = nn.initializers.zeros_init()


class Linear(nn.Module):
    """A biased linear layer over the last axes; parameters in float32.

    All other axes are flattened before the product, so that the gradient of the kernel is one
    matrix product, which XLA on CPU runs faster. The initial bound is that of the
    flattened matrix.

    Attributes:
      features: axes of the output.
      num_in_axes: how many of the last axes are contracted.
      dtype: type of the product.
      kernel_init: initializer of the flattened kernel.
    """

    features: tuple[int, ...]
    num_in_axes: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "*in"]) -> Float[Array, "*out"]:
        split = x.ndim - self.num_in_axes
        leading, inside = x.shape[:split], x.shape[split:]

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            flat = (math.prod(inside), math.prod(self.features))
            return self.kernel_init(key, flat, jnp.float32).reshape(shape)

        kernel = self.param("kernel", init, (*inside, *self.features))
        bias = self.param("bias", zeros_init, self.features, jnp.float32)
        axes = tuple(range(self.num_in_axes))
        product = jax.lax.dot_general(
            x.reshape(-1, *inside).astype(self.dtype),
            kernel.astype(self.dtype),
            ((tuple(axis + 1 for axis in axes), axes), ((), ())),
        )
        return (product + bias.astype(self.dtype)[None]).reshape(*leading, *self.features)


def linear(
    features: int | tuple[int, ...],
    *,
    dtype: jnp.dtype,
    name: str,
    kernel_init: nn.initializers.Initializer = linear_init,
    num_in_axes: int = 1,
) -> Linear:
    """A `Linear`, Xavier-uniform unless told otherwise."""
    features = (features,) if isinstance(features, int) else features
    return Linear(features, num_in_axes, dtype, kernel_init, name=name)


def layer_norm(*, name: str, affine: bool = True) -> nn.LayerNorm:
    """Layer norm with float32 statistics and output."""
    return nn.LayerNorm(
        epsilon=NORM_EPSILON,
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


class SelfAttention(nn.Module):
    """Multi-head self-attention; q, k and v are one matrix, stored [D, 3, heads, head width]."""

    num_heads: int
    attention_dropout: float
    projection_dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        key_mask: Bool[Array, "B S"] | None,
        deterministic: bool,
    ) -> Float[Array, "B S D"]:
        width = x.shape[-1]
        head_width = width // self.num_heads
        qkv = linear((3, self.num_heads, head_width), dtype=self.dtype, name="qkv")(x)
        query, key, value = (qkv[:, :, index] for index in range(3))
        mixed = attention(
            query,
            key,
            value,
            key_mask=key_mask,
            dropout=nn.Dropout(self.attention_dropout, deterministic=deterministic),
        )
        out = linear(width, num_in_axes=2, dtype=self.dtype, name="projection")(mixed)
        return nn.Dropout(self.projection_dropout, deterministic=deterministic)(out)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and an exact-GELU MLP; float32 residual stream."""

    num_heads: int
    mlp_ratio: int
    attention_dropout: float
    projection_dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        key_mask: Bool[Array, "B S"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B S D"]:
        width = x.shape[-1]
        drop = nn.Dropout(self.projection_dropout, deterministic=deterministic)
        x = x + SelfAttention(
            self.num_heads,
            self.attention_dropout,
            self.projection_dropout,
            self.dtype,
            name="attention",
        )(layer_norm(name="norm_1")(x), key_mask=key_mask, deterministic=deterministic)
        hidden = layer_norm(name="norm_2")(x)
        hidden = linear(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(hidden)
        hidden = drop(jax.nn.gelu(hidden, approximate=False))
        return x + drop(linear(width, dtype=self.dtype, name="mlp_out")(hidden))


class ResidualBlock(nn.Module):
    """x + gate * MLP(norm(x) modulated), with shift, scale and gate read off the modulation."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "... W"], modulation: Float[Array, "... W"]
    ) -> Float[Array, "... W"]:
        width = x.shape[-1]
        shift, scale, gate = jnp.split(
            linear(3 * width, dtype=self.dtype, name="modulation", kernel_init=zeros_init)(
                jax.nn.silu(modulation)
            ),
            3,
            axis=-1,
        )
        hidden = modulate(layer_norm(name="norm")(x), shift, scale)
        hidden = jax.nn.silu(linear(width, dtype=self.dtype, name="mlp_in")(hidden))
        return x + gate * linear(width, dtype=self.dtype, name="mlp_out")(hidden)


class ModulatedMLP(nn.Module):
    """Residual MLP on a stream, every block modulated by the same vector; zero output at the start.

    The last layer runs in float32: an error in it is multiplied by the sampler.
    """

    width: int
    depth: int
    out_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, stream: Float[Array, "... C"], modulation: Float[Array, "... W"]
    ) -> Float[Array, "... out"]:
        x = linear(self.width, dtype=self.dtype, name="stream")(stream)
        for index in range(self.depth):
            x = ResidualBlock(self.dtype, name=f"block_{index}")(x, modulation)
        shift, scale = jnp.split(
            linear(
                2 * self.width, dtype=self.dtype, name="final_modulation", kernel_init=zeros_init
            )(jax.nn.silu(modulation)),
            2,
            axis=-1,
        )
        x = modulate(layer_norm(name="final_norm", affine=False)(x), shift, scale)
        return linear(self.out_dim, dtype=jnp.float32, name="final", kernel_init=zeros_init)(x)
