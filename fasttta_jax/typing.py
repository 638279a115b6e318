"""Array types shared by every room, and the legend of their dimensions.

B  clips in a batch            N  latent tokens in a clip      C  channels of a latent token
L  text positions              E  width of a text stream       D  backbone width
W  head width                  K  visible tokens (padded)      M  draws per token
T  decoding iterations         S  audio samples                F  mel bands
Q  positions asked for: all N of a clip, or those named

The tests check these annotations, dimensions and kinds of arrays included (`tests/support`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = jax.Array | np.ndarray
"""An array on a device, or of NumPy on the host."""

SomeArray = TypeVar("SomeArray", jax.Array, np.ndarray)
"""What is taken and given back as the same kind."""

Params = Mapping[str, Any]
Key = jax.Array
Metrics = dict[str, jax.Array]


class TextStream(NamedTuple):
    """One source of conditioning: an embedding per text position, and which positions hold text."""

    embeddings: Float[Array, "B L E"]
    mask: Bool[Array, "B L"]


Conditioning = Mapping[str, TextStream]
"""Streams by name; the backbone projects each to D and lays them side by side."""


def unconditional(conditioning: Conditioning) -> Conditioning:
    """The same shapes with every text position empty: the backbone reads its null text."""
    return {
        name: stream._replace(mask=jnp.zeros_like(stream.mask))
        for name, stream in conditioning.items()
    }


Audio = Float[Array, "B S"]
Tokens = Float[Array, "B N C"]
Masked = Bool[Array, "B N"]
Hidden = Float[Array, "B Q D"]
PerToken = Float[Array, "B N"]
TokenIds = Int[AnyArray, "B L"]
