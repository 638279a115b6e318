"""A backbone of ten tokens and three blocks, and what it reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fasttta_jax.config import BackboneConfig
from fasttta_jax.typing import Conditioning, TextStream
from tests.support.tolerance import block_terms, rounding

NUM_TOKENS, TOKEN_DIM, TEXT, TEXT_WIDTH = 10, 6, 4, 5
CONFIG = BackboneConfig(
    width=24,
    encoder_depth=2,
    decoder_depth=1,
    num_heads=3,
    attention_dropout=0.0,
    projection_dropout=0.0,
)


def backbone_rounding(num_blocks: int = 3) -> float:
    """Of so many blocks, the projections and norms around them, relative to the largest state."""
    block = block_terms(CONFIG.width, 4 * CONFIG.width, TEXT + NUM_TOKENS, 24 // 3)
    return rounding(num_blocks * block + 4 * CONFIG.width)


def conditioning(batch_size: int, seed: int = 0) -> Conditioning:
    """Captions of 0, 1, 2, ... text positions."""
    embeddings = jax.random.normal(jax.random.key(seed), (batch_size, TEXT, TEXT_WIDTH))
    lengths = jnp.arange(batch_size)[:, None] % (TEXT + 1)
    return {"words": TextStream(embeddings, jnp.arange(TEXT)[None] < lengths)}


def inputs(batch_size: int = 5) -> tuple[jax.Array, jax.Array, Conditioning]:
    """Tokens, masks with 10, 8, 6, ... masked positions, and captions."""
    tokens = jax.random.normal(jax.random.key(1), (batch_size, NUM_TOKENS, TOKEN_DIM))
    ranks = jnp.stack(
        [jax.random.permutation(jax.random.key(row), NUM_TOKENS) for row in range(batch_size)]
    )
    masked = ranks < NUM_TOKENS - 2 * jnp.arange(batch_size)[:, None] % NUM_TOKENS
    return tokens, masked, conditioning(batch_size)
