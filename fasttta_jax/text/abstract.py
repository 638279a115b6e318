"""A text encoder without files: the shapes of the real ones, for counting and timing.

Captions mean nothing to it; every position holds text.
Dimensions: B captions, L positions, E width of a stream, V vocabulary entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fasttta_jax.config import TextConfig
from fasttta_jax.models.layers import embedding_init
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.text.learned import STREAM
from fasttta_jax.text.none import NoText
from fasttta_jax.typing import Conditioning, Key, Params, TextStream


def abstract_text_encoder(config: TextConfig, vocabulary_size: int = 1000) -> TextEncoder:
    """An encoder with the streams and parameters that `config` leads to.

    Args:
      config: of any kind.
      vocabulary_size: V, of a learned encoder.
    """
    if config.encoder == "none":
        return NoText(config.num_positions)
    return AbstractTextEncoder(config, vocabulary_size)


@dataclasses.dataclass(frozen=True)
class AbstractTextEncoder:
    """Constant content behind the `TextEncoder` protocol.

    Attributes:
      config: kind and sizes.
      vocabulary_size: V, of a learned encoder.
    """

    config: TextConfig
    vocabulary_size: int

    @property
    def _sizes(self) -> tuple[tuple[str, int, int], ...]:
        learned = (STREAM, self.config.num_positions, self.config.width)
        return self.config.streams or (learned,)

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """Those of the encoder it stands for."""
        return tuple((name, positions) for name, positions, _ in self._sizes)

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """As many rows as captions, all the same."""
        rows = len(captions)
        if self.config.encoder == "learned":
            shape = (rows, self.config.num_positions)
            return {"ids": np.ones(shape, np.int32), "mask": np.ones(shape, np.bool_)}
        batch: dict[str, np.ndarray] = {}
        for name, positions, width in self._sizes:
            batch[name] = np.ones((rows, positions, width), np.float16)
            batch[f"{name}_mask"] = np.ones((rows, positions), np.bool_)
        return batch

    def init(self, key: Key) -> dict[str, Any]:
        """The embedding table of a learned encoder, float32 [V, E]."""
        if self.config.encoder != "learned":
            return {}
        shape = (self.vocabulary_size, self.config.width)
        return {"embedding": embedding_init(key, shape, jnp.float32)}

    def embed(
        self,
        params: Params,
        batch: TextBatch,
        *,
        hidden_tokens: Bool[Array, "B L"] | None = None,
    ) -> Conditioning:
        """As the encoder it stands for computes them."""
        del hidden_tokens
        if self.config.encoder == "learned":
            embeddings = params["embedding"][jnp.asarray(batch["ids"])]
            return {STREAM: TextStream(embeddings, jnp.asarray(batch["mask"]))}
        return {
            name: TextStream(
                jnp.asarray(batch[name], jnp.float32), jnp.asarray(batch[f"{name}_mask"])
            )
            for name, _, _ in self._sizes
        }
