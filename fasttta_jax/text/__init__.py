"""Text encoders: captions to the streams that condition the backbone."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from fasttta_jax.config import TextConfig
from fasttta_jax.text.abstract import abstract_text_encoder
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.text.frozen import FrozenTextEncoder
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.text.networks import copy_networks
from fasttta_jax.text.none import NoText

__all__ = [
    "FrozenTextEncoder",
    "LearnedTextEncoder",
    "NoText",
    "TextBatch",
    "TextEncoder",
    "abstract_text_encoder",
    "load_text_encoder",
    "save_text_encoder",
]


def load_text_encoder(
    folder: str | pathlib.Path,
    config: TextConfig,
    *,
    table_folders: Sequence[str | pathlib.Path] = (),
) -> TextEncoder:
    """The encoder that `config.encoder` names.

    Args:
      folder: the `text/` folder of a dataset or a workdir: a tokenizer, or frozen networks.
      config: kind and sizes.
      table_folders: the `text/` folders with the tables of a frozen encoder; () for `folder`.

    Raises:
      FileNotFoundError: a learned encoder has no tokenizer there.
    """
    if config.encoder == "none":
        return NoText(config.num_positions)
    if config.encoder == "frozen":
        tables = tuple(map(pathlib.Path, table_folders or (folder,)))
        return FrozenTextEncoder(config, pathlib.Path(folder), tables)
    return LearnedTextEncoder.load(folder, config)


def save_text_encoder(
    source: str | pathlib.Path, folder: str | pathlib.Path, config: TextConfig
) -> None:
    """Puts into `folder` what `load_text_encoder` needs of `source`; a table stays where it is.

    Raises:
      FileNotFoundError: a learned encoder has no tokenizer in `source`.
    """
    if config.encoder == "learned":
        LearnedTextEncoder.load(source, config).save(folder)
    elif config.encoder == "frozen":
        copy_networks(source, folder)
