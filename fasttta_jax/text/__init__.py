"""Text encoders: captions to the streams that condition the backbone."""

from __future__ import annotations

import pathlib

from fasttta_jax.config import TextConfig
from fasttta_jax.text.abstract import abstract_text_encoder
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.text.none import NoText
from fasttta_jax.text.precomputed import PrecomputedTextEncoder

__all__ = [
    "LearnedTextEncoder",
    "NoText",
    "PrecomputedTextEncoder",
    "TextBatch",
    "TextEncoder",
    "abstract_text_encoder",
    "load_text_encoder",
]


def load_text_encoder(folder: str | pathlib.Path, config: TextConfig) -> TextEncoder:
    """The encoder that `config.encoder` names, from the `text/` folder of a dataset or a workdir.

    Raises:
      FileNotFoundError: a learned encoder has no tokenizer there.
    """
    if config.encoder == "none":
        return NoText(config.num_positions)
    if config.encoder == "precomputed":
        return PrecomputedTextEncoder(config, pathlib.Path(folder))
    return LearnedTextEncoder.load(folder, config)
