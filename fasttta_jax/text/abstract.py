"""Text encoders without files: the shapes of the real ones, for counting and timing.

What captions say means nothing to them: every position holds text, and no position of an empty one.
Dimensions: B captions, L positions, E width of a stream.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool

from fasttta_jax.config import TextConfig
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.text.frozen import FrozenTextEncoder
from fasttta_jax.text.learned import HIDDEN_TOKEN, LearnedTextEncoder
from fasttta_jax.text.none import NoText


def abstract_text_encoder(config: TextConfig, vocabulary_size: int = 1000) -> TextEncoder:
    """An encoder with the streams and parameters that `config` leads to.

    Args:
      config: of any kind.
      vocabulary_size: of a learned encoder.
    """
    if config.encoder == "none":
        return NoText(config.num_positions)
    if config.encoder == "frozen":
        return _AbstractFrozen(config, pathlib.Path(), (pathlib.Path(),))
    words = {HIDDEN_TOKEN: 0} | {f"word {index}": index for index in range(1, vocabulary_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=HIDDEN_TOKEN))
    return _AbstractLearned(tokenizer, frozenset(words.values()), config)


class _AbstractFrozen(FrozenTextEncoder):
    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """Ones of the right shapes; an empty caption is empty."""
        batch: dict[str, np.ndarray] = {}
        for name, positions, width in self.config.streams:
            batch[name] = np.ones((len(captions), positions, width), np.float16)
            batch[f"{name}_mask"] = _text_everywhere(captions, positions)
        return batch


class _AbstractLearned(LearnedTextEncoder):
    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """The hidden token everywhere; an empty caption is empty."""
        mask = _text_everywhere(captions, self.config.num_positions)
        return {"ids": np.zeros(mask.shape, np.int32), "mask": mask}


def _text_everywhere(captions: Sequence[str], positions: int) -> Bool[np.ndarray, "B L"]:
    return np.repeat(np.asarray([bool(caption) for caption in captions])[:, None], positions, 1)
