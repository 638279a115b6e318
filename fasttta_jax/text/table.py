"""A table of text embeddings on disk: what frozen encoders said of each caption of a dataset.

`embeddings/` holds `captions.json` and a folder for each shard of captions, with `NAME.npy` for
each stream, float16 [P, E], the positions that hold text of one caption after the other, and
`NAME_lengths.npy`, int32 [n], how many each caption has. Shards are written as
`storage.shards` says, so that a killed run goes on where it was and several processes can share the
work; they are memory-mapped, so that a table larger than memory is fine. `table.json` beside the
folder is written last: shapes, number of captions, and a hash of the contents.
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

from fasttta_jax.storage.files import damage, read_json, write_json
from fasttta_jax.storage.shards import Shard, ShardedWork
from fasttta_jax.storage.whole import remove_leftovers, whole_folder

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


class TableWriter:
    """Writes a table shard by shard, as one of the processes that share the work.

    Args:
      folder: the `text/` folder of an encoded dataset.
      captions: n different captions.
      streams: names and sizes.
      made_from: what the embeddings come from, as JSON; another value is another table.

    Raises:
      EmbeddingError: a caption comes twice.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        captions: Sequence[str],
        streams: tuple[Stream, ...],
        made_from: Mapping[str, Any],
    ) -> None:
        if len(set(captions)) != len(captions):
            seen: set[str] = set()
            twice = next(text for text in captions if text in seen or seen.add(text))
            raise EmbeddingError(f"the caption {twice!r} comes more than once; allowed: once")
        self._summary = folder / SUMMARY_FILE
        self._captions = captions
        self._streams = streams
        settings = {
            "streams": streams,
            "num_captions": len(captions),
            "captions_sha256": self._captions_hash().hexdigest(),
            "made_from": made_from,
        }
        self.work = ShardedWork(
            folder / FOLDER,
            lengths={"captions": len(captions)},
            shard_size=SHARD_SIZE,
            settings=settings,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the table is there.

        Raises:
          StorageError: another one is; says what differs.
        """
        if not self._summary.is_file():
            return False
        found = read_json(self._summary)
        found.pop("sha256", None)
        self.work.check(found, self._summary)
        return True

    def start(self) -> None:
        """Makes the folder, or checks that what is there belongs to the same table.

        Raises:
          StorageError: another table is there; says what differs.
        """
        self.work.start()
        for shard in self.work.shards:
            files = (self.work.note(shard) or {"sha256": ()})["sha256"]
            if not all((self._shard_folder(shard) / name).is_file() for name in files):
                self.work.forget(shard)  # some of it was removed
        write_json(self.work.folder / CAPTIONS_FILE, list(self._captions))

    def _shard_folder(self, shard: Shard) -> pathlib.Path:
        return self.work.folder / f"{shard.index:05d}"

    def captions_of(self, shard: Shard) -> Sequence[str]:
        """The captions of a shard, in order."""
        return self._captions[shard.start : shard.stop]

    def write(self, shard: Shard, embeddings: Embeddings) -> None:
        """Writes the streams of a shard's captions.

        Raises:
          EmbeddingError: an array does not fit or is not finite in float16; names it.
        """
        arrays = {}
        for name, positions, width in self._streams:
            values, lengths = embeddings[name]
            _check(name, values, lengths, (len(shard.indices), positions, width))
            held = np.arange(positions)[None] < lengths[:, None]
            arrays[f"{name}.npy"] = np.asarray(values, np.float16)[held]
            arrays[f"{name}{LENGTHS}.npy"] = np.asarray(lengths, np.int32)
        with whole_folder(self._shard_folder(shard)) as folder:
            for name, array in arrays.items():
                np.save(folder / name, array)
            files = {name: (folder / name).read_bytes() for name in sorted(arrays)}
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self.work.done(shard, {"sha256": hashes})

    def finish(self) -> bool:
        """Writes `table.json` once every shard is there; returns whether it is."""
        notes = self.work.notes()
        if notes is None:
            return False
        digest = self._captions_hash()
        for note in notes:
            for name, sha256 in note["sha256"].items():
                digest.update(name.encode() + bytes.fromhex(sha256))
        remove_leftovers(self.work.folder)
        write_json(self._summary, self.work.settings | {"sha256": digest.hexdigest()})
        return True

    def _captions_hash(self) -> Any:
        return hashlib.sha256(json.dumps(list(self._captions)).encode())


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
    for shard in writer.work.missing():
        rows = slice(shard.start, shard.stop)
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
                name: _open_stream(folder, name, width) for name, _, width in self.streams
            }
        return self._opened[shard]


def _open_stream(folder: pathlib.Path, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A stream's positions in a shard, and where each caption's end."""
    path, lengths_path = folder / f"{name}.npy", folder / f"{name}{LENGTHS}.npy"
    with damage(lengths_path):
        ends = np.cumsum([0, *np.load(lengths_path)])
    with damage(path):
        values = np.load(path, mmap_mode="r")
        if values.shape != (ends[-1], width):
            raise ValueError(f"its shape is {values.shape}, not {(int(ends[-1]), width)}")
    return values, ends


def read_table(folder: str | pathlib.Path) -> Table | None:
    """The table below a `text/` folder; None where there is no finished one."""
    folder = pathlib.Path(folder)
    if not (folder / SUMMARY_FILE).is_file():
        return None
    summary = read_json(folder / SUMMARY_FILE)
    captions = read_json(folder / FOLDER / CAPTIONS_FILE, list)
    with damage(folder / SUMMARY_FILE):
        streams = tuple((name, positions, width) for name, positions, width in summary["streams"])
    rows = {caption: row for row, caption in enumerate(captions)}
    return Table(folder / FOLDER, rows, streams)
