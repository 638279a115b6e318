"""Decoding configs of a few iterations, and known tokens at other places in every clip."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.loop import Known


def config(**changes) -> DecodeConfig:
    return DecodeConfig(
        **{"num_iterations": 3, "guidance_scale": 1.0, "max_segments": 2, **changes}
    )


def given_tokens(
    num_known: int, num_tokens: int, token_dim: int, batch_size: int, seed: int = 0
) -> Known:
    """Known tokens at other places in every clip; the first channel is 1 + the position."""
    rng = np.random.default_rng([seed, num_known])
    mask = np.stack([rng.permutation(num_tokens) < num_known for _ in range(batch_size)])
    tokens = rng.normal(size=(batch_size, num_tokens, token_dim)).astype(np.float32)
    tokens[..., 0] = np.arange(1, num_tokens + 1)
    tokens[~mask] = np.nan  # nobody may look there
    return Known(jnp.asarray(tokens), jnp.asarray(mask))
