"""The TextEncoder protocol: captions to integers on the host, these to streams on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool

from fasttta_jax.typing import Conditioning, Key, Params

TextBatch = Mapping[str, np.ndarray | jax.Array]
"""Arrays by name: on the host as the tokenizer makes them, on the device inside a program."""


@runtime_checkable
class TextEncoder(Protocol):
    """A source of conditioning; hashable, and equal to another where one program serves both.

    Attributes:
      streams: name and number of positions of every stream that `embed` returns.
    """

    @property
    def streams(self) -> tuple[tuple[str, int], ...]: ...

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """Host arrays for a batch of captions, each with the batch as its first axis."""
        ...

    def init(self, key: Key) -> Params:
        """Parameters that train with the backbone; empty where there are none."""
        ...

    def embed(
        self,
        params: Params,
        batch: TextBatch,
        *,
        hidden_tokens: Bool[Array, "B L"] | None = None,
    ) -> Conditioning:
        """Streams for a tokenized batch; a placeholder stands for each of `hidden_tokens`."""
        ...
