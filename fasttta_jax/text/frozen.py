"""Text encoders that do not train: T5, CLAP or others, cached in a table beside the dataset.

A caption is looked up in the tables (`fasttta_jax.text.table`), one for each dataset of a run; one
that is in none is encoded by the networks (`fasttta_jax.text.networks`) where the folder has them.
Either way the backbone gets the same float16 values, but for the order of sums.
Dimensions: B captions, L positions, E width of a stream.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fasttta_jax.config import TextConfig
from fasttta_jax.text.base import TextBatch
from fasttta_jax.text.networks import Networks, load_networks
from fasttta_jax.text.table import EmbeddingError, Stream, Table, read_table
from fasttta_jax.typing import Conditioning, Key, Params, TextStream


@dataclasses.dataclass(frozen=True)
class FrozenTextEncoder:
    """Embeddings of frozen networks behind the `TextEncoder` protocol.

    Two are equal where a program reads the same of them, wherever their captions are looked up.

    Attributes:
      config: names and sizes of the streams.
      folder: the `text/` folder of an encoded dataset or a workdir, where networks may be.
      table_folders: the `text/` folders of encoded datasets, where tables may be.
    """

    config: TextConfig
    folder: pathlib.Path = dataclasses.field(compare=False)
    table_folders: tuple[pathlib.Path, ...] = dataclasses.field(compare=False)

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """The config's, in its order."""
        return tuple((name, positions) for name, positions, _ in self.config.streams)

    @functools.cached_property
    def _tables(self) -> list[Table]:
        tables = []
        for folder in self.table_folders:
            if (table := read_table(folder)) is not None:
                self._check(table.streams, f"the table of {folder}")
                tables.append(table)
        return tables

    @functools.cached_property
    def _networks(self) -> Networks | None:
        networks = load_networks(self.folder)
        if networks is not None:
            self._check(networks.streams, f"the networks of {self.folder}")
        return networks

    def _check(self, streams: Sequence[Stream], where: str) -> None:
        for stream in self.config.streams:
            if stream not in streams:
                raise EmbeddingError(
                    f"text.streams asks for {stream} (name, positions, width); {where} has "
                    f"{', '.join(map(str, streams))}"
                )

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        """Embeddings [B, L, E] float16 and masks [B, L] of every stream; an empty caption is empty.

        Raises:
          EmbeddingError: there is neither a table nor networks, or a caption is in no table and
            there are no networks.
        """
        found = self._embeddings(sorted({caption for caption in captions if caption}))
        batch: dict[str, np.ndarray] = {}
        for name, positions, width in self.config.streams:
            values = np.zeros((len(captions), positions, width), np.float16)
            mask = np.zeros((len(captions), positions), np.bool_)
            for index, caption in enumerate(captions):
                if caption:
                    held = found[caption][name]
                    values[index, : len(held)] = held
                    mask[index, : len(held)] = True
            batch |= {name: values, f"{name}_mask": mask}
        return batch

    def _embeddings(self, captions: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """By caption and stream, the positions that hold text, float16."""
        found: dict[str, dict[str, np.ndarray]] = {}
        missing = []
        for caption in captions:
            table = next((each for each in self._tables if caption in each.rows), None)
            if table is None:
                missing.append(caption)
            else:
                found[caption] = table.lookup(caption)
        if missing and self._networks is None:
            raise self._not_known(missing[0])
        if not missing or self._networks is None:
            return found
        for name, (values, lengths) in self._networks.encode(missing).items():
            for caption, row, length in zip(missing, values, lengths, strict=True):
                found.setdefault(caption, {})[name] = row[:length]
        return found

    def _not_known(self, caption: str) -> EmbeddingError:
        where = " and ".join(map(str, self.table_folders))
        if not self._tables:
            return EmbeddingError(
                f"{where} has no finished table of embeddings, and {self.folder} no "
                "networks that make them; `python -m data.embed_text` brings both"
            )
        return EmbeddingError(
            f"{where} has no embedding of {caption!r}; allowed: the "
            f"{sum(len(table.rows) for table in self._tables)} captions that its table was made "
            "from, or any caption where "
            "the networks are there, too (`python -m data.embed_text --encoder`)"
        )

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
        """The streams, float32."""
        del params, hidden_tokens
        return {
            name: TextStream(
                jnp.asarray(batch[name], jnp.float32), jnp.asarray(batch[f"{name}_mask"])
            )
            for name, _, _ in self.config.streams
        }
