"""No text at all: every position is empty, so that the backbone reads its null text.

Source: IMPACT's unconditional pre-training, on audio without captions. The positions are those of
the conditional model that starts from it.
Dimensions: B clips, L positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Conditioning, Key, Params, TextStream

STREAM = "none"


@dataclasses.dataclass(frozen=True)
class NoText:
    """The `TextEncoder` of unconditional training.

    Attributes:
      num_positions: L.
    """

    num_positions: int

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """One stream of L empty positions."""
        return ((STREAM, self.num_positions),)

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """A mask [B, L] that is False everywhere, whatever the captions say."""
        return {"mask": np.zeros((len(captions), self.num_positions), np.bool_)}

    def init(self, key: Key) -> dict[str, Any]:
        """Nothing to train."""
        del key
        return {}

    def embed(
        self,
        params: Params,
        batch: TextBatch,
        *,
        hidden_tokens: Bool[Array, "B L"] | None = None,
    ) -> Conditioning:
        """A stream of width 0."""
        del params, hidden_tokens
        mask = jnp.asarray(batch["mask"])
        return {STREAM: TextStream(jnp.zeros((*mask.shape, 0), jnp.float32), mask)}
