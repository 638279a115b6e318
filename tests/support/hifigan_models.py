"""A small vocoder with random parameters, and spectrograms for it."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from fasttta_jax.pretrained.hifigan import Hifigan, HifiganConfig

SMALL = HifiganConfig(
    model_in_dim=6,
    upsample_initial_channel=16,
    upsample_rates=(5, 2),
    upsample_kernel_sizes=(16, 4),
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (3,)),
)
"""The odd difference of the published first stage, everything else smaller."""


@functools.cache
def build(config: HifiganConfig) -> tuple[Hifigan, Any]:
    """A vocoder with random parameters that keep activations of order 1."""
    model, rng = Hifigan(config), np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        deviation = 1 / math.sqrt(math.prod(leaf.shape[:2])) if leaf.ndim > 1 else 0.1
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), spectrograms(config, 4))
    return model, jax.tree.map(draw, shapes)


def spectrograms(config: HifiganConfig, num_frames: int, num_clips: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (num_clips, num_frames, config.model_in_dim))
