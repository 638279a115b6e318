"""What CLAP's towers may lose to rounding, and the text tower as a program."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from fasttta_jax.pretrained.clap_audio import ClapAudioConfig
from fasttta_jax.pretrained.clap_text import ClapText, ClapTextConfig, load
from tests.support.tolerance import ELEMENTARY, block_terms, rounding


@functools.lru_cache(maxsize=1)
def _program(config: ClapTextConfig) -> Any:
    return jax.jit(ClapText(config).apply)


def run(folder: pathlib.Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    config, params = load(folder)
    return np.asarray(_program(config)({"params": params}, ids, mask))


def text_rounding(config: ClapTextConfig, length: int) -> float:
    """Of the norm of the embeddings, all blocks, and the pooler's and two projections' products."""
    width = config.hidden_size
    head_width = width // config.num_attention_heads
    block = block_terms(width, config.intermediate_size, length, head_width)
    after = 2 * width + ELEMENTARY + 2 * config.projection_dim
    return rounding(width // 4 + config.num_hidden_layers * block + after)


def audio_rounding(config: ClapAudioConfig) -> float:
    """Of patches, blocks, the merging of four tokens between stages, and the projections."""
    width = config.patch_embeds_hidden_size
    terms = ELEMENTARY + (2 * config.patch_size) ** 2 + width
    for stage, (depth, heads) in enumerate(
        zip(config.depths, config.num_attention_heads, strict=True)
    ):
        channels = width * 2**stage
        hidden = int(config.mlp_ratio * channels)
        terms += depth * block_terms(channels, hidden, config.window_size**2, channels // heads)
        terms += 5 * channels
    return rounding(terms + 2 * config.projection_dim)
