"""Swin transformer stages: attention inside square windows, every second block between them.

Source: Swin Transformer (arXiv 2103.14030), as HTS-AT (arXiv 2202.00874) uses it. A block with a
shift rolls the grid by half a window, so that its windows straddle those of the block before; what
the roll brings together from opposite edges is kept apart by a mask. Inference only.
Dimensions: B clips, Y and X rows and columns of the token grid, D width, V windows, A tokens of a
window, H heads, P head width.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from fasttta_jax.models.layers import layer_norm, linear, linear_init

NORM_EPSILON = 1e-5
MASKED = -100.0
"""What the weights were trained with; a softmax of it is not quite zero."""


def partition(x: Float[Array, "B Y X D"], window_size: int) -> Float[Array, "B V A D"]:
    """The grid cut into square windows, row by row; tokens of a window row by row, too."""
    batch_size, height, width, features = x.shape
    rows, columns = height // window_size, width // window_size
    x = x.reshape(batch_size, rows, window_size, columns, window_size, features)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch_size, rows * columns, -1, features)


def merge(windows: Float[Array, "B V A D"], height: int, width: int) -> Float[Array, "B Y X D"]:
    """The inverse of `partition`."""
    batch_size, _, tokens, features = windows.shape
    size = round(tokens**0.5)
    x = windows.reshape(batch_size, height // size, width // size, size, size, features)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch_size, height, width, features)


@functools.cache
def relative_position_index(window_size: int) -> Int[np.ndarray, "A A"]:
    """Row of the bias table for every query and key of a window, int [A, A].

    The table has a row for each offset in both directions, (2 window_size - 1)^2 of them.
    """
    row, column = np.divmod(np.arange(window_size**2), window_size)
    rows = row[:, None] - row[None] + window_size - 1
    columns = column[:, None] - column[None] + window_size - 1
    return rows * (2 * window_size - 1) + columns


@functools.cache
def shift_mask(
    height: int, width: int, window_size: int, shift: int
) -> Float32[np.ndarray, "V A A"]:
    """Added to the logits of a rolled grid: MASKED between tokens that were not neighbours.

    Returns:
      float32 [V, A, A].
    """

    def region(size: int) -> Int[np.ndarray, " {size}"]:
        index = np.arange(size)
        return (index >= size - window_size).astype(int) + (index >= size - shift)

    regions = 3 * region(height)[:, None] + region(width)[None]
    rows, columns = height // window_size, width // window_size
    windows = regions.reshape(rows, window_size, columns, window_size).transpose(0, 2, 1, 3)
    windows = windows.reshape(rows * columns, -1)
    apart = windows[:, :, None] != windows[:, None]
    return np.where(apart, np.float32(MASKED), np.float32(0.0))


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position and head."""

    num_heads: int
    window_size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V A D"], mask: Float[np.ndarray, "V A A"] | None
    ) -> Float[Array, "B V A D"]:
        width = x.shape[-1]
        heads = (*x.shape[:-1], self.num_heads, width // self.num_heads)
        query, key, value = (
            linear(width, dtype=self.dtype, name=name)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        table = self.param(
            "relative_position_bias",
            linear_init,
            ((2 * self.window_size - 1) ** 2, self.num_heads),
            jnp.float32,
        )
        bias = table[relative_position_index(self.window_size)].transpose(2, 0, 1)
        logits = jnp.einsum(
            "bvqhp,bvkhp->bvhqk", query, key, preferred_element_type=jnp.float32
        ) * (heads[-1] ** -0.5)
        logits = logits + bias[None, None]
        if mask is not None:
            logits = logits + mask[None, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bvhqk,bvkhp->bvqhp", weights, value).reshape(x.shape)
        return linear(width, dtype=self.dtype, name="output")(mixed)


class SwinBlock(nn.Module):
    """Pre-norm window attention and an exact-GELU MLP; float32 residual stream.

    Attributes:
      num_heads: H.
      window_size: side of a window, in tokens; divides both sides of the grid.
      shift: tokens by which the windows are moved along both sides; 0 for none.
      mlp_width: hidden width of the MLP.
      norm_epsilon: of both layer norms.
      dtype: type of the matrix products.
    """

    num_heads: int
    window_size: int
    shift: int
    mlp_width: int
    norm_epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        _, height, width, features = x.shape
        hidden = layer_norm(name="norm_1", epsilon=self.norm_epsilon)(x)
        mask = None
        if self.shift:
            hidden = jnp.roll(hidden, (-self.shift, -self.shift), axis=(1, 2))
            mask = shift_mask(height, width, self.window_size, self.shift)
        attend = WindowAttention(self.num_heads, self.window_size, self.dtype, name="attention")
        hidden = merge(attend(partition(hidden, self.window_size), mask), height, width)
        if self.shift:
            hidden = jnp.roll(hidden, (self.shift, self.shift), axis=(1, 2))
        x = x + hidden
        hidden = layer_norm(name="norm_2", epsilon=self.norm_epsilon)(x)
        hidden = linear(self.mlp_width, dtype=self.dtype, name="mlp_in")(hidden)
        hidden = jax.nn.gelu(hidden, approximate=False)
        return x + linear(features, dtype=self.dtype, name="mlp_out")(hidden)


class PatchMerging(nn.Module):
    """Every square of two by two tokens becomes one of twice the width."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y//2 X//2 2*D"]:
        # the lower neighbour comes before the right one
        squares = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        hidden = layer_norm(name="norm", epsilon=NORM_EPSILON)(jnp.concatenate(squares, axis=-1))
        width = 2 * x.shape[-1]
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="reduction")(hidden)


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one shifted, and the merging behind them.

    A grid of a single window has nothing to shift.

    Attributes:
      depth: number of blocks.
      merging: whether the grid is halved at the end.
      num_heads, window_size, mlp_ratio, norm_epsilon, dtype: of each block.
    """

    depth: int
    num_heads: int
    window_size: int
    mlp_ratio: float
    norm_epsilon: float
    merging: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y2 X2 D2"]:
        half = 0 if min(x.shape[1:3]) <= self.window_size else self.window_size // 2
        for index in range(self.depth):
            x = SwinBlock(
                self.num_heads,
                self.window_size,
                half if index % 2 else 0,
                int(self.mlp_ratio * x.shape[-1]),
                self.norm_epsilon,
                self.dtype,
                name=f"block_{index}",
            )(x)
        if self.merging:
            x = PatchMerging(self.dtype, name="merging")(x).astype(jnp.float32)
        return x
