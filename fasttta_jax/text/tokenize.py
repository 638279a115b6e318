"""Captions to token ids with the tokenizer of a converted text encoder, as transformers does it.

The tokenizer is the `tokenizer.json` beside the converted weights, so that neither transformers nor
torch is needed. Nothing here changes a tokenizer: one may serve several threads and lengths.
Dimensions: n captions, L positions.
"""

from __future__ import annotations

import logging
import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from fasttta_jax.storage.weights import ConvertedError

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"


class TruncationLog:
    """Warns that captions are truncated: the first by its text, then a count at powers of ten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self, caption: str, found: int, kept: int) -> None:
        """One more caption of `found` tokens, of which the first `kept` count."""
        with self._lock:
            self._count += 1
            count = self._count
        if count == 1:
            logger.warning(
                "caption %.60r has %d tokens; the first %d count. Further captions that are too "
                "long are cut without a word, but for their number",
                caption,
                found,
                kept,
            )
        elif str(count).strip("0") == "1":
            logger.warning("%d captions so far were too long and have been cut", count)


truncation_log = TruncationLog()
"""Of this process."""


def check_entries(tokenizer: tokenizers.Tokenizer) -> None:
    """Raises ValueError where padding or special tokens are no entries of the vocabulary.

    A lookup beyond the embeddings would take another one without a word. A tokenizer whose parts do
    not fit each other panics as it encodes, which is no Exception in Python.
    """
    try:
        special, _ = (tokenizer.encode(text).ids for text in ("", "a dog"))
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"it cannot encode a text: {error}") from error
    entries = set(tokenizer.get_vocab().values())
    padding = [] if tokenizer.padding is None else [tokenizer.padding["pad_id"]]
    for token in (*padding, *special):
        if token not in entries:
            raise ValueError(f"{token} is no entry of the vocabulary")


def load_tokenizer(folder: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    """The tokenizer of a folder of converted weights.

    Raises:
      ConvertedError: it is missing, damaged, or does not say with which id it pads.
    """
    path = pathlib.Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise ConvertedError(
            f"{folder} holds no tokenizer: {path.name} is missing; `python -m fasttta_jax.convert` "
            "writes it beside the weights of a text encoder"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ConvertedError(f"{path} is damaged: {error}; convert again") from error
    padding = tokenizer.padding
    if padding is None or padding["length"] is not None or tokenizer.truncation is not None:
        raise ConvertedError(
            f"{path} has padding {padding} and truncation {tokenizer.truncation}; allowed: padding "
            "to the longest of a batch, and no truncation; convert again"
        )
    try:
        check_entries(tokenizer)
    except ValueError as error:
        raise ConvertedError(f"{path} is damaged: {error}; convert again") from error
    return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer, captions: Sequence[str], length: int
) -> tuple[Int[np.ndarray, "n L"], Bool[np.ndarray, "n L"]]:
    """Token ids with the special tokens around them, cut and padded to one length.

    A caption that is too long loses its last words, never the special tokens, and a warning says
    so. An empty caption is its special tokens.

    Args:
      tokenizer: from `load_tokenizer`.
      captions: n texts.
      length: L.

    Returns:
      Ids int32, with the tokenizer's padding id where the mask is False, and the mask.

    Raises:
      ValueError: the special tokens alone do not fit, or the tokenizer knows no padding id.
    """
    padding = tokenizer.padding
    if padding is None:
        raise ValueError("the tokenizer has no padding; allowed: one from load_tokenizer")
    special = tokenizer.num_special_tokens_to_add(False)
    if length < max(special, 1):
        raise ValueError(
            f"length is {length}; allowed: at least {max(special, 1)}, since the tokenizer adds "
            f"{special} special tokens to each caption"
        )
    ids = np.full((len(captions), length), padding["pad_id"], np.int32)
    mask = np.zeros((len(captions), length), np.bool_)
    for row, caption in enumerate(captions):
        encoding = tokenizer.encode(caption, add_special_tokens=False)
        if len(encoding) + special > length:
            truncation_log.add(caption, len(encoding) + special, length)
            encoding.truncate(length - special)
        found = tokenizer.post_process(encoding).ids
        ids[row, : len(found)] = found
        mask[row, : len(found)] = True
    return ids, mask
