"""Tokens to a waveform without ends: its last sample flows into its first, so it may be repeated.

Dimensions: B clips, S samples, N tokens, C channels, P token columns in time.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fasttta_jax.codecs.base import Codec
from fasttta_jax.typing import AnyArray, Audio

FADE_SECONDS = 0.05


@runtime_checkable
class CircularCodec(Protocol):
    """A codec that knows how to decode a circle."""

    def decode_circular(self, tokens: Float[AnyArray, "B N C"]) -> Audio:
        """Waveforms of N / G * samples_per_column samples, the first behind the last."""
        ...


def decode_circular(codec: Codec, tokens: Float[AnyArray, "B N C"]) -> Audio:
    """Waveforms [B, S] to be repeated.

    A codec that has no way of its own decodes the circle three times in a row. The second round is
    taken, and begins as the third one does, which follows the second's end, fading into its own.
    """
    if isinstance(codec, CircularCodec):
        return codec.decode_circular(tokens)
    around = jnp.tile(jnp.asarray(tokens), (1, 3, 1))
    rounds = codec.decode(around)
    length = rounds.shape[1] // 3
    second, third = rounds[:, length : 2 * length], rounds[:, 2 * length :]
    fade = min(length, math.ceil(FADE_SECONDS * codec.sample_rate))
    weight = jnp.asarray(np.clip((np.arange(length) + 0.5) / fade, 0, 1), jnp.float32)[None]
    return weight * second + (1 - weight) * third
