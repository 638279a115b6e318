"""Folders of recordings: which files there are, and the clips that each of them gives.

A file is decoded to mono at one sample rate, levelled as in AudioLDM, and cut into equal
consecutive pieces if it is long. `data.folder` makes a dataset of the clips, `data.common.sources`
hands them to an encoder.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data.common import records as builder
from data.common import tables as metadata_lib
from data.common.tables import Entry, Skipped
from fasttta_jax.audio import files as audio_lib

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides, with the table and the files, which clips there are.

    Attributes:
      sample_rate: samples per second of the clips.
      min_seconds: shorter files are skipped.
      max_seconds: longer files are cut into equal pieces of at most this length.
      validation_fraction: share of files for validation, where the table gives no splits.
      test_fraction: share of files for testing, likewise.
      seed: of the assignment to splits.
      level: remove the mean and scale the peak to 0.5; otherwise only peaks beyond full scale are
        brought down to it.
      with_captions: False keeps no captions, and takes all audio of the folder where there is no
        table.
    """

    sample_rate: int = 16_000
    min_seconds: float = 0.1
    max_seconds: float = 60.0
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    seed: int = 0
    level: bool = True
    with_captions: bool = True

    def __post_init__(self) -> None:
        evaluation = self.validation_fraction + self.test_fraction
        for field, valid, allowed in (
            ("sample_rate", self.sample_rate >= 1000, "at least 1000 Hz"),
            ("min_seconds", self.min_seconds > 0, "above 0"),
            ("max_seconds", self.max_seconds >= 2 * self.min_seconds, "at least 2 min_seconds"),
            ("validation_fraction", self.validation_fraction >= 0, "at least 0"),
            ("test_fraction", self.test_fraction >= 0, "at least 0"),
            ("test_fraction", evaluation < 1, "below 1 together with validation_fraction"),
        ):
            if not valid:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed: {allowed}")


@dataclasses.dataclass(frozen=True)
class Files:
    """The audio files of a folder and what its table says of them, nothing decoded yet.

    Attributes:
      audio_dir: the folder.
      table: where the captions are from; None without a table.
      members: the files of each split.
      left_out: captions that were blank or repeated.
      made_from: what decides the dataset; equal for equal settings, table, file names and sizes.
    """

    audio_dir: pathlib.Path
    table: pathlib.Path | None
    members: Mapping[str, Sequence[Entry]]
    left_out: Sequence[Skipped]
    made_from: Mapping[str, Any]


def find_files(
    audio_dir: str | os.PathLike[str],
    settings: Settings,
    *,
    metadata: str | os.PathLike[str] | None = None,
) -> Files:
    """Lists a folder; `metadata` is the table, looked for in the folder when None.

    Raises:
      ValueError: the table is malformed.
      OSError: there is no such folder, no table where captions are wanted, or no audio.
    """
    audio_dir = pathlib.Path(audio_dir)
    table = _table(audio_dir, metadata, settings.with_captions)
    if table is None:
        entries, left_out = metadata_lib.find_audio(audio_dir), []
    else:
        entries, left_out = metadata_lib.read(
            table, audio_dir, with_captions=settings.with_captions
        )
    members: dict[str, list[Entry]] = {split: [] for split in metadata_lib.SPLITS}
    for entry in entries:
        members[entry.split or assign_split(entry.file, settings)].append(entry)
    made_from = {
        **dataclasses.asdict(settings),
        "metadata_sha256": hashlib.sha256(table.read_bytes()).hexdigest() if table else None,
        "files_sha256": _sizes_sha256(entries, audio_dir),
    }
    members = {split: entries for split, entries in members.items() if entries}
    return Files(audio_dir, table, members, left_out, made_from)


def assign_split(file: str, settings: Settings) -> str:
    """The split of a file: a hash of seed and name, uniform in [0, 1), against the fractions."""
    digest = hashlib.sha256(f"{settings.seed}\n{file}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < settings.test_fraction:
        return "test"
    if position < settings.test_fraction + settings.validation_fraction:
        return "validation"
    return "train"


def read_clips(
    entry: Entry, audio_dir: pathlib.Path, settings: Settings
) -> list[builder.Clip | Skipped]:
    """The clips of a file: decoded, levelled and cut, with what is left out of it and why."""
    if settings.with_captions and not entry.captions:
        detail = f"all of its captions are blank, line {entry.line}"
        return [Skipped(entry.file, "no caption", detail)]
    try:
        audio = audio_lib.read_audio(audio_dir / entry.file, settings.sample_rate)
    except audio_lib.AudioError as error:
        return [Skipped(entry.file, error.reason, error.detail)]
    labels: dict[str, Any] = {"columns": entry.columns}
    if entry.events:
        labels["events"] = entry.events
    return cut_clips(builder.Clip(entry.file, audio, entry.captions, labels), settings)


def cut_clips(whole: builder.Clip, settings: Settings) -> list[builder.Clip | Skipped]:
    """A decoded recording levelled and cut into equal pieces, silent ones left out."""
    seconds = whole.audio.size / settings.sample_rate
    if seconds < settings.min_seconds:
        detail = f"{seconds:g} s, and min_seconds is {settings.min_seconds:g}"
        return [Skipped(whole.id, "too short", detail)]
    if settings.level:
        audio = audio_lib.level(whole.audio)
    else:
        audio = audio_lib.playback_level(whole.audio, rms_dbfs=None, peak_dbfs=0.0)
    pieces = np.array_split(audio, math.ceil(seconds / settings.max_seconds))
    clips: list[builder.Clip | Skipped] = []
    for index, piece in enumerate(pieces):
        clip_id = whole.id if len(pieces) == 1 else f"{whole.id}#{index}"
        if audio_lib.is_silent(piece):
            clips.append(Skipped(clip_id, "silent piece", "of a longer file"))
        else:
            clips.append(dataclasses.replace(whole, id=clip_id, audio=piece))
    return clips


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int | None = None
) -> Generator[R, None, None]:
    """Results in the order of `items`, computed by threads.

    At most `ahead` of them wait at a time (two for each worker when None), so that memory stays
    bounded.
    """
    ahead = 2 * workers if ahead is None else ahead
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _table(
    audio_dir: pathlib.Path, metadata: str | os.PathLike[str] | None, with_captions: bool
) -> pathlib.Path | None:
    """The table that is asked for or found; None where none is needed and none is there."""
    if metadata is not None:
        return pathlib.Path(metadata)
    if not with_captions and not any((audio_dir / name).is_file() for name in metadata_lib.NAMES):
        return None
    return metadata_lib.find(audio_dir)


def _sizes_sha256(entries: Iterable[Entry], audio_dir: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        path = audio_dir / entry.file
        size = os.path.getsize(path) if os.path.isfile(path) else None
        digest.update(f"{entry.file}\n{size}\n".encode())
    return digest.hexdigest()
