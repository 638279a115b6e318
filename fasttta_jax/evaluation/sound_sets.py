"""Sets of sounds that are judged: of a folder, with or without a table, of a data set, or clips.

A sound is read when a network asks for it, so that a set of any size takes no memory.

Dimensions: R samples of a file.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import SUFFIXES, read_channels
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.protocols import Key
from fasttta_jax.evaluation.sound_tables import SoundsError, TableRow, find_table, read_table
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.generation.job_folder import MANIFEST_FILE
from fasttta_jax.input_pipeline.records import DatasetError, Records

logger = logging.getLogger(__name__)

MOST_MISSING = 0.01
"""Share of either set that may lack its counterpart; audioldm_eval's bound."""

Samples = tuple[Float[np.ndarray, "R channels"], int]
"""Samples of a file and their number per second."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """One sound of a set.

    Attributes:
      name: of its file, with the ending; what pairs it with that of another set. Where files in
        several folders have one name, it begins with the folder.
      caption: what it is of, or was made for; "" where none is known.
      load: reads it; raises AudioError where it cannot be used.
    """

    name: str
    caption: str
    load: Callable[[], Samples]


@dataclasses.dataclass(frozen=True, eq=False)
class SoundSet:
    """Sounds that are judged together.

    Attributes:
      where: folder, table or data set that they are from.
      sounds: in the order of the table, or of their names.
      generated: whether generate.py wrote them.
      candidates: out of how many each was chosen; None where nothing says so.
    """

    where: str
    sounds: tuple[Sound, ...]
    generated: bool = False
    candidates: int | None = None

    def __len__(self) -> int:
        return len(self.sounds)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sounds."""
        return tuple(sound.name for sound in self.sounds)

    @property
    def captions(self) -> tuple[str, ...]:
        """Of the sounds; "" where one has none."""
        return tuple(sound.caption for sound in self.sounds)

    @property
    def has_captions(self) -> bool:
        """Whether every sound has one."""
        return all(self.captions)


def open_folder(path: str | pathlib.Path) -> SoundSet:
    """The sounds of a folder: those that its table names, or all audio files in it.

    A table is one of `sound_tables.TABLES` in the folder, or `path` itself; its files are relative
    to the folder that it lies in, and may lack their ending.

    Raises:
      SoundsError: there is no such folder, no sound in it, or a table that cannot be used or whose
        files lie elsewhere.
    """
    path = pathlib.Path(path)
    table = find_table(path)
    if table is not None:
        return _open_table(table)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        inside = sorted(file.name for file in path.iterdir())[:3]
        raise SoundsError(
            f"{path} holds no audio file ({', '.join(SUFFIXES)}); found: "
            f"{', '.join(inside) or 'nothing'}"
        )
    return SoundSet(str(path), tuple(Sound(file.name, "", _reader(file)) for file in files))


def open_split(folder: str | pathlib.Path, split: str = "test") -> SoundSet:
    """The clips of a data set's split that have a caption, each with its first one.

    Raises:
      DatasetError: the split is missing, holds no audio, or no caption.
    """
    records = Records(folder, split)
    rate = records.metadata.get("sample_rate")
    if not isinstance(rate, int):
        raise DatasetError(f"{folder} does not say its sample rate: it holds no audio")
    sounds = []
    for row in range(len(records)):
        record = records[row]
        if record["captions"]:
            load = functools.partial(_load_record, records, row, rate)
            sounds.append(Sound(record["id"], record["captions"][0], load))
    if not sounds:
        raise DatasetError(f"no clip of the {split} split of {folder} has a caption")
    return SoundSet(f"{folder}, {split}", tuple(sounds))


def of_clips(
    clips: Clips, sample_rate: int, where: str, places: Sequence[int] | None = None
) -> SoundSet:
    """A set of clips in memory, named by their places: in order, or as `places` says."""

    def load(row: int) -> Samples:
        return to_float(clips.audio[row])[:, None], sample_rate

    sounds = (
        Sound(f"{place:05d}", prompt, functools.partial(load, row))
        for row, (place, prompt) in enumerate(
            zip(range(len(clips)) if places is None else places, clips.prompts, strict=True)
        )
    )
    return SoundSet(where, tuple(sounds))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which generated sound belongs to which real one.

    Attributes:
      rows: of the generated sounds that have a counterpart, in the order of the real ones.
      reference_rows: the rows of those.
      by: what they were paired by: "name", "stem" or "caption".
      missing: names of real sounds without a generated one.
      unused: names of generated sounds without a real one.
    """

    rows: tuple[int, ...]
    reference_rows: tuple[int, ...]
    by: str
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether more than 99 % of either set have their counterpart."""
        return all(
            number and len(without) < MOST_MISSING * number
            for without, number in (
                (self.missing, len(self.missing) + len(self.rows)),
                (self.unused, len(self.unused) + len(self.rows)),
            )
        )

    def __str__(self) -> str:
        lines = [f"{len(self.rows)} pairs by {self.by}"]
        for without, words in ((self.missing, "have no sound"), (self.unused, "have no real one")):
            if without:
                lines.append(f"{len(without)} {words}, such as {without[0]!r}")
        return "; ".join(lines)


def pair(
    names: Sequence[str],
    captions: Sequence[str],
    reference_names: Sequence[str],
    reference_captions: Sequence[str],
    key: Key,
) -> Pairs:
    """Pairs two sets by the names of their files, or else by their captions.

    Names come first. Where more than 1 % have no counterpart by name, and all sounds of both sets
    have captions, captions are tried: equal ones in their order. What leaves fewer alone counts.

    Args:
      names: of the generated sounds.
      captions: of the generated sounds.
      reference_names: of the real sounds.
      reference_captions: of the real sounds.
      key: whether the ending of a name counts.
    """

    def match(by: str, keys: Sequence[str], reference_keys: Sequence[str]) -> Pairs:
        waiting: dict[str, collections.deque[int]] = collections.defaultdict(collections.deque)
        for row, one in enumerate(keys):
            waiting[one].append(row)
        rows, matched, missing = [], [], []
        for row, one in enumerate(reference_keys):
            if waiting.get(one):
                rows.append(waiting[one].popleft())
                matched.append(row)
            else:
                missing.append(reference_names[row])
        unused = sorted(row for left in waiting.values() for row in left)
        return Pairs(
            tuple(rows),
            tuple(matched),
            by,
            tuple(missing),
            tuple(names[row] for row in unused),
        )

    def of_key(files: Sequence[str]) -> list[str]:
        return [pathlib.PurePath(file).stem if key == "stem" else file for file in files]

    by_name = match(key, of_key(names), of_key(reference_names))
    if by_name.complete or not (all(captions) and all(reference_captions)):
        return by_name
    by_caption = match("caption", captions, reference_captions)
    return by_caption if len(by_caption.rows) > len(by_name.rows) else by_name


def _open_table(table: pathlib.Path) -> SoundSet:
    rows, folder = read_table(table), table.parent
    files = _Files(folder)
    paths = [files.find(row.file) for row in rows]
    if not any(path.is_file() for path in paths):
        raise SoundsError(
            f"{table} names {len(rows)} files, and none of them lies in {folder}; the first is "
            f"{rows[0].file!r}. Put the table into the folder of its files"
        )
    names = _names(paths, folder)
    sounds = tuple(
        Sound(name, row.caption, _reader(path))
        for name, path, row in zip(names, paths, rows, strict=True)
    )
    generated = table.name == MANIFEST_FILE and all("checkpoint" in row.columns for row in rows)
    return SoundSet(str(table), sounds, generated, _candidates(rows))


def _names(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> list[str]:
    """Of the files, or where subfolders have files of one name, their paths below the folder."""
    names = [path.name for path in paths]
    if len(set(names)) == len(set(paths)):
        return names
    return [os.path.relpath(path, folder) for path in paths]


class _Files:
    """Files of a folder, by a name that may lack its ending."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def find(self, name: str) -> pathlib.Path:
        path = self.folder / name
        if path.suffix.lower() in SUFFIXES or not path.name or path.is_file():
            return path
        endings = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
        return next((file for file in endings if file.is_file()), path)


def _candidates(rows: Sequence[TableRow]) -> int | None:
    one = rows[0].columns.get("candidates")
    return (
        one
        if isinstance(one, int) and all(row.columns.get("candidates") == one for row in rows)
        else None
    )


def _reader(path: pathlib.Path) -> Callable[[], Samples]:
    return functools.partial(read_channels, path)


def _load_record(records: Records, row: int, rate: int) -> Samples:
    audio: Mapping[str, Any] = records[row]
    return to_float(np.asarray(audio["audio"]))[:, None], rate
