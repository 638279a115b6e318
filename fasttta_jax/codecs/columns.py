"""Waveforms of any length as columns of tokens.

Dimensions: B clips, N tokens, P token columns in time, G tokens per column, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from fasttta_jax.codecs.base import Codec

LENGTH_COLUMNS = 8
"""Waveforms are padded to multiples of so many token columns, so that few programs are compiled."""


def num_columns(num_samples: int, samples_per_column: int) -> int:
    """P, token columns that a waveform covers; the last may hold silence behind it."""
    return math.ceil(num_samples / samples_per_column)


def padded_length(num_samples: int, samples_per_column: int) -> int:
    """Samples of the zero-padded waveform that a codec is given."""
    unit = LENGTH_COLUMNS * samples_per_column
    return math.ceil(num_samples / unit) * unit


def to_columns(values: Any, codec: Codec) -> Float[np.ndarray, "B P G C"]:
    """[B, N, C] as float32 [B, P, G, C]."""
    values = np.asarray(values, np.float32)
    return values.reshape(len(values), -1, codec.tokens_per_column, codec.token_dim)
