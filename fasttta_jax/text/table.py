"""A table of text embeddings on disk: what frozen encoders said of each caption of a dataset.

`embeddings/` holds `captions.json` and a folder for each shard of captions, with `NAME.npy` for
each stream, float16 [P, E], the positions that hold text of one caption after the other, and
`NAME_lengths.npy`, int32 [n], how many each caption has. Shards appear whole, so that a killed run
goes on where it was and several hosts can share the work; they are memory-mapped, so that a table
larger than memory is fine. `table.json` beside the folder is written last: shapes, number of
captions, and a hash of the contents.
Dimensions: n captions, L positions, P positions of all captions of a shard, E width of a stream.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fasttta_jax.storage.files import differences, whole_folder, write_json

FOLDER = "embeddings"
CAPTIONS_FILE = "captions.json"
SUMMARY_FILE = "table.json"
LENGTHS = "_lengths"
SHARD_SIZE = 512

Stream = tuple[str, int, int]
"""Name, positions L, width E."""
Embeddings = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By stream, embeddings [n, L, E] and how many positions of each hold text, [n]."""


class EmbeddingError(ValueError):
    """A table of embeddings that is missing, does not fit the config, or lacks a caption."""


@dataclasses.dataclass(frozen=True)
class TableWriter:
    """Writes a table shard by shard.

    Attributes:
      folder: the `text/` folder of an encoded dataset.
      captions: n different captions.
      streams: names and sizes.
      made_from: what the embeddings come from, as JSON; another value is another table.
    """

    folder: pathlib.Path
    captions: Sequence[str]
    streams: tuple[Stream, ...]
    made_from: Mapping[str, Any]

    @property
    def _table(self) -> pathlib.Path:
        return self.folder / FOLDER

    @property
    def num_shards(self) -> int:
        """Shards of SHARD_SIZE captions."""
        return -(-len(self.captions) // SHARD_SIZE)

    def _plan(self) -> dict[str, Any]:
        return {
            "streams": [list(stream) for stream in self.streams],
            "num_captions": len(self.captions),
            "captions_sha256": hashlib.sha256(json.dumps(list(self.captions)).encode()).hexdigest(),
            "made_from": dict(self.made_from),
        }

    def start(self) -> None:
        """Makes the folder, or checks that what is there belongs to the same table.

        Raises:
          EmbeddingError: a caption comes twice, or another table is there; says what differs.
        """
        if len(set(self.captions)) != len(self.captions):
            seen: set[str] = set()
            twice = next(text for text in self.captions if text in seen or seen.add(text))
            raise EmbeddingError(f"the caption {twice!r} comes more than once; allowed: once")
        plan = self._table / "plan.json"
        if plan.is_file():
            found, wanted = json.loads(plan.read_text()), self._plan()
            if different := differences(found, wanted):
                raise EmbeddingError(
                    f"{self._table} holds another table: {'; '.join(different)}. Remove the folder "
                    "to make it anew"
                )
            return
        self._table.mkdir(parents=True, exist_ok=True)
        write_json(self._table / CAPTIONS_FILE, list(self.captions))
        write_json(plan, self._plan())

    def captions_of(self, shard: int) -> Sequence[str]:
        """The captions of a shard, in order."""
        return self.captions[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]

    def _path(self, shard: int) -> pathlib.Path:
        return self._table / f"{shard:05d}"

    def is_done(self, shard: int) -> bool:
        """Whether the shard is there."""
        return self._path(shard).is_dir()

    def write(self, shard: int, embeddings: Embeddings) -> None:
        """Writes the streams of a shard's captions.

        Raises:
          EmbeddingError: an array does not fit or is not finite in float16; names it.
        """
        arrays = {}
        for name, positions, width in self.streams:
            values, lengths = embeddings[name]
            _check(name, values, lengths, (len(self.captions_of(shard)), positions, width))
            held = np.arange(positions)[None] < lengths[:, None]
            arrays[name] = np.asarray(values, np.float16)[held]
            arrays[name + LENGTHS] = np.asarray(lengths, np.int32)
        with whole_folder(self._path(shard)) as folder:
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array)

    def finish(self) -> bool:
        """Writes `table.json` once every shard is there; returns whether it is."""
        shards = range(self.num_shards)
        if not all(self.is_done(shard) for shard in shards):
            return False
        digest = hashlib.sha256(json.dumps(list(self.captions)).encode())
        for shard in shards:
            for path in sorted(self._path(shard).glob("*.npy")):
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        write_json(self.folder / SUMMARY_FILE, self._plan() | {"sha256": digest.hexdigest()})
        return True


def _check(name: str, values: np.ndarray, lengths: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise EmbeddingError(
            f"stream {name!r} has shape {values.shape}; allowed: {shape}, captions, positions and "
            "width"
        )
    if lengths.shape != shape[:1] or not ((lengths >= 0) & (lengths <= shape[1])).all():
        raise EmbeddingError(
            f"lengths of stream {name!r} have shape {lengths.shape} and values from "
            f"{lengths.min()} to {lengths.max()}; allowed: one a caption, from 0 to its "
            f"{shape[1]} positions"
        )
    if not (np.abs(values) <= np.finfo(np.float16).max).all():
        raise EmbeddingError(
            f"stream {name!r} holds values that are not finite in float16, in which they are kept"
        )


def write_table(
    folder: str | pathlib.Path,
    captions: Sequence[str],
    streams: Embeddings,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Writes a whole table in place of an older one.

    Args:
      folder: the `text/` folder of an encoded dataset; made if need be.
      captions: n different captions.
      streams: by name, embeddings [n, L, E] and lengths [n].
      made_from: what the embeddings come from.

    Raises:
      EmbeddingError: a caption comes twice, or an array does not fit; names it.
    """
    folder = pathlib.Path(folder)
    for name, (values, lengths) in streams.items():
        if values.ndim != 3:
            raise EmbeddingError(f"stream {name!r} has shape {values.shape}; allowed: 3 axes")
        _check(name, values, lengths, (len(captions), *values.shape[1:]))
    sizes = tuple((name, *values.shape[1:]) for name, (values, _) in streams.items())
    writer = TableWriter(folder, captions, sizes, made_from or {})
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    writer.start()
    for shard in range(writer.num_shards):
        rows = slice(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
        writer.write(
            shard,
            {name: (values[rows], lengths[rows]) for name, (values, lengths) in streams.items()},
        )
    writer.finish()


@dataclasses.dataclass(frozen=True)
class Table:
    """A finished table, its shards read as they are asked for.

    Attributes:
      folder: `embeddings/`.
      rows: the number of each caption.
      streams: names and sizes.
    """

    folder: pathlib.Path
    rows: Mapping[str, int]
    streams: tuple[Stream, ...]

    def lookup(self, caption: str) -> dict[str, np.ndarray]:
        """The positions that hold text, float16 [length, E], of every stream.

        Raises:
          KeyError: the caption is not in the table.
        """
        shard, row = divmod(self.rows[caption], SHARD_SIZE)
        opened = self._shard(shard)
        found = {}
        for name, _, _ in self.streams:
            values, ends = opened[name]
            found[name] = values[ends[row] : ends[row + 1]]
        return found

    @functools.cached_property
    def _opened(self) -> dict[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
        return {}

    def _shard(self, shard: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if shard not in self._opened:
            folder = self.folder / f"{shard:05d}"
            self._opened[shard] = {
                name: (
                    np.load(folder / f"{name}.npy", mmap_mode="r"),
                    np.cumsum([0, *np.load(folder / f"{name}{LENGTHS}.npy")]),
                )
                for name, _, _ in self.streams
            }
        return self._opened[shard]


def read_table(folder: str | pathlib.Path) -> Table | None:
    """The table below a `text/` folder; None where there is no finished one."""
    folder = pathlib.Path(folder)
    if not (folder / SUMMARY_FILE).is_file():
        return None
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    captions = json.loads((folder / FOLDER / CAPTIONS_FILE).read_text())
    streams = tuple((name, positions, width) for name, positions, width in summary["streams"])
    rows = {caption: row for row, caption in enumerate(captions)}
    return Table(folder / FOLDER, rows, streams)
