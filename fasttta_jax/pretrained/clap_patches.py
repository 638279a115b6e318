"""From log-mel spectrograms to the tokens of CLAP's audio tower: stretching, patches, fusion.

A long clip in a model with fusion has three excerpts beside the spectrogram of the whole; their
patches, three times as wide, stand side by side and are mixed with those of the whole.

Sources: CLAP (arXiv 2211.06687), section 3.3; attentional feature fusion (arXiv 2009.14082).
Inference only.
Dimensions: B clips, C spectrograms of a clip, S side of the image, Y and X rows and columns of the
token grid, D width.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from fasttta_jax.models.layers import layer_norm, linear
from fasttta_jax.pretrained.batch_norm import BatchNorm
from fasttta_jax.pretrained.clap_swin import NORM_EPSILON

EXCERPTS = 3


@functools.cache
def bicubic_matrix(num_out: int, num_in: int) -> Float32[np.ndarray, "{num_out} {num_in}"]:
    """Cubic interpolation as a matrix; first and last stay in place, and go on beyond the ends.

    The kernel has the parameter -0.75, and positions are rounded to float32, both as in torch
    (bicubic, align_corners), with which the published weights were trained.

    Returns:
      float32 [num_out, num_in], with at most four weights in a row, which add up to 1.
    """
    scale = np.float32(num_in - 1) / np.float32(max(num_out - 1, 1))
    position = np.arange(num_out, dtype=np.float32) * scale
    left = np.minimum(np.floor(position).astype(int), num_in - 1)
    offset = (position - left.astype(np.float32))[:, None]
    distance = np.abs(np.arange(-1, 3, dtype=np.float32)[None] - offset)
    a = np.float32(-0.75)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, far)
    columns = np.clip(left[:, None] + np.arange(-1, 3)[None], 0, num_in - 1)
    matrix = np.zeros((num_out, num_in), np.float32)
    np.add.at(matrix, (np.arange(num_out)[:, None], columns), weights)
    return matrix


class FusionWeights(nn.Module):
    """Two linear layers over the channels, each with a batch norm."""

    hidden_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        hidden = linear(self.hidden_width, dtype=self.dtype, name="linear_in")(x)
        hidden = jax.nn.relu(BatchNorm(name="norm_in")(hidden))
        hidden = linear(x.shape[-1], dtype=self.dtype, name="linear_out")(hidden)
        return BatchNorm(name="norm_out")(hidden)


class AttentionalFusion(nn.Module):
    """A mean of two maps, weighted per place and channel by what both hold, there and overall."""

    hidden_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Y X D"], other: Float[Array, "B Y X D"]
    ) -> Float[Array, "B Y X D"]:
        total = x + other
        here = FusionWeights(self.hidden_width, self.dtype, name="local")(total)
        whole = jnp.mean(total, axis=(1, 2), keepdims=True)
        everywhere = FusionWeights(self.hidden_width, self.dtype, name="global")(whole)
        weight = jax.nn.sigmoid(here + jnp.broadcast_to(everywhere, here.shape))
        return 2.0 * x * weight + 2.0 * other * (1.0 - weight)


class PatchEmbedding(nn.Module):
    """Square patches of the image to tokens; with fusion, excerpts of long clips are mixed in.

    Attributes:
      width: D.
      patch_size: side of a patch, in pixels.
      fusion_width: hidden width of the fusion.
      dtype: type of the matrix products.
    """

    width: int
    patch_size: int
    fusion_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, images: Float[Array, "B C S S"], is_longer: Bool[Array, " B"] | None
    ) -> Float[Array, "B Y X D"]:
        tokens = self._convolve(images[:, 0], 1, "projection")
        if is_longer is not None:
            batch_size, height, width, features = tokens.shape
            # three patches wide: the three excerpts side by side have the width of the image
            excerpts = images[:, 1:].reshape(-1, *images.shape[2:])
            excerpts = self._convolve(excerpts, EXCERPTS, "mel_conv2d")
            excerpts = excerpts.reshape(batch_size, EXCERPTS, height, -1, features)
            excerpts = excerpts.transpose(0, 2, 1, 3, 4).reshape(batch_size, height, -1, features)
            missing = width - excerpts.shape[2]
            excerpts = jnp.pad(excerpts, ((0, 0), (0, 0), (0, missing), (0, 0)))
            fusion = AttentionalFusion(self.fusion_width, self.dtype, name="fusion")
            fused = fusion(tokens, excerpts)
            tokens = jnp.where(is_longer[:, None, None, None], fused, tokens)
        return layer_norm(name="norm", epsilon=NORM_EPSILON)(tokens)

    def _convolve(
        self, images: Float[Array, "B S S"], widening: int, name: str
    ) -> Float[Array, "B Y X2 D"]:
        kernel = (self.patch_size, self.patch_size * widening)
        convolution = nn.Conv(
            self.width, kernel, strides=kernel, padding="VALID", dtype=self.dtype, name=name
        )
        return convolution(images[..., None]).astype(jnp.float32)
