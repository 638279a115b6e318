"""Embeddings that frozen text encoders made beforehand, looked up by caption.

The table is a folder: `captions.json`, and for each stream `NAME.npy`, float16 [n, L, E], with
`NAME_lengths.npy`, int32 [n], the positions that hold text. The arrays are memory-mapped: a table
larger than memory is fine. `table.json` beside the folder holds shapes and a hash of the contents.
Dimensions: n captions in the table, B captions asked for, L positions, E width of a stream.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fasttta_jax.config import TextConfig
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Conditioning, Key, Params, TextStream

FOLDER = "embeddings"
CAPTIONS_FILE = "captions.json"
SUMMARY_FILE = "table.json"


class EmbeddingError(ValueError):
    """A table of embeddings that is missing, does not fit the config, or lacks a caption."""


def write_table(
    folder: str | pathlib.Path,
    captions: Sequence[str],
    streams: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Writes a table below `folder`, which is the `text/` folder of an encoded dataset.

    Args:
      folder: made if need be.
      captions: n different captions.
      streams: by name, embeddings [n, L, E] and lengths [n].

    Raises:
      EmbeddingError: a caption comes twice, or an array does not fit; names it.
    """
    if len(set(captions)) != len(captions):
        twice = next(caption for caption in captions if captions.count(caption) > 1)
        raise EmbeddingError(f"the caption {twice!r} comes more than once; allowed: once")
    for name, (embeddings, lengths) in streams.items():
        if embeddings.ndim != 3 or len(embeddings) != len(captions):
            raise EmbeddingError(
                f"stream {name!r} has shape {embeddings.shape}; allowed: [{len(captions)} "
                "captions, positions, width]"
            )
        if (
            lengths.shape != (len(captions),)
            or not ((lengths >= 0) & (lengths <= embeddings.shape[1])).all()
        ):
            raise EmbeddingError(
                f"lengths of stream {name!r} have shape {lengths.shape} and values from "
                f"{lengths.min()} to {lengths.max()}; allowed: one a caption, from 0 to its "
                f"{embeddings.shape[1]} positions"
            )
        if not np.isfinite(embeddings).all():
            raise EmbeddingError(f"stream {name!r} holds values that are not finite")
    folder = pathlib.Path(folder)
    table = folder / FOLDER
    table.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(list(captions)).encode())
    shapes = {}
    for name, (embeddings, lengths) in streams.items():
        stored = np.asarray(embeddings, np.float16)
        np.save(table / f"{name}.npy", stored)
        np.save(table / f"{name}_lengths.npy", np.asarray(lengths, np.int32))
        digest.update(name.encode() + stored.tobytes() + np.asarray(lengths, np.int32).tobytes())
        shapes[name] = list(stored.shape)
    (table / CAPTIONS_FILE).write_text(json.dumps(list(captions), ensure_ascii=False) + "\n")
    summary = {"streams": shapes, "sha256": digest.hexdigest()}
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")


class _Table:
    """An opened table: row numbers by caption, and memory-mapped arrays by stream."""

    def __init__(self, folder: pathlib.Path, config: TextConfig) -> None:
        path = folder / CAPTIONS_FILE
        if not path.is_file():
            raise EmbeddingError(
                f"{path} does not exist; `python -m data.embed_text --embeddings` makes a table"
            )
        captions = json.loads(path.read_text())
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, positions, width in config.streams:
            file = folder / f"{name}.npy"
            if not file.is_file():
                found = sorted(path.stem for path in folder.glob("*.npy"))
                raise EmbeddingError(f"text.streams names {name!r}; {folder} holds {found}")
            embeddings = np.load(file, mmap_mode="r")
            if embeddings.shape != (len(captions), positions, width):
                raise EmbeddingError(
                    f"text.streams asks for {name!r} of {positions} positions x {width}; {file} "
                    f"has shape {embeddings.shape} for {len(captions)} captions"
                )
            self.arrays[name] = (embeddings, np.load(folder / f"{name}_lengths.npy"))


@dataclasses.dataclass(frozen=True)
class PrecomputedTextEncoder:
    """A table of embeddings behind the `TextEncoder` protocol.

    Attributes:
      config: names and sizes of the streams.
      folder: the `text/` folder of an encoded dataset.
    """

    config: TextConfig
    folder: pathlib.Path

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """The config's, in its order."""
        return tuple((name, positions) for name, positions, _ in self.config.streams)

    @functools.cached_property
    def _table(self) -> _Table:
        return _Table(self.folder / FOLDER, self.config)

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """Embeddings [B, L, E] float16 and masks [B, L] of every stream; an empty caption is empty.

        Raises:
          EmbeddingError: there is no table, or a caption is not in it.
        """
        missing = [caption for caption in captions if caption and caption not in self._table.rows]
        if missing:
            raise EmbeddingError(
                f"{self.folder / FOLDER} has no embedding of {missing[0]!r}; allowed: the "
                f"{len(self._table.rows)} captions that it was made from"
            )
        batch: dict[str, np.ndarray] = {}
        for name, positions, width in self.config.streams:
            embeddings, lengths = self._table.arrays[name]
            values = np.zeros((len(captions), positions, width), np.float16)
            mask = np.zeros((len(captions), positions), np.bool_)
            for index, caption in enumerate(captions):
                if caption:
                    row = self._table.rows[caption]
                    values[index] = embeddings[row]
                    mask[index, : lengths[row]] = True
            batch |= {name: values, f"{name}_mask": mask}
        return batch

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
        """The looked-up streams, float32."""
        del params, hidden_tokens
        return {
            name: TextStream(
                jnp.asarray(batch[name], jnp.float32), jnp.asarray(batch[f"{name}_mask"])
            )
            for name, _, _ in self.config.streams
        }
