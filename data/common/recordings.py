"""Folders of recordings: which files there are, and the clips that each of them gives.

A file, or the part of it that a table names, is decoded to mono at one sample rate, levelled as in
AudioLDM, and cut into equal consecutive pieces if it is long. `data.common.making` makes a dataset
of the clips, `data.common.sources` hands them to an encoder.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data.common import records as builder
from data.common import tables as metadata_lib
from data.common.audio_files import SEPARATOR, AudioFiles
from data.common.tables import Entry, Skipped
from fasttta_jax.audio import files as audio_lib
from fasttta_jax.audio.files import SUFFIXES
from fasttta_jax.storage.content import combined

PARTIAL = ("silent piece", "ends early")
"""Reasons for which a piece of a clip is missing, and not the clip."""
LONGEST = 86_400.0
SHORTFALL = 1e-3
"""Seconds by which a part may be shorter than the table says without being counted."""

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
            ("max_seconds", self.max_seconds <= LONGEST, f"at most {LONGEST:g}, a day"),
            ("validation_fraction", self.validation_fraction >= 0, "at least 0"),
            ("test_fraction", self.test_fraction >= 0, "at least 0"),
            ("test_fraction", evaluation < 1, "below 1 together with validation_fraction"),
        ):
            if not valid:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed: {allowed}")


@dataclasses.dataclass(frozen=True)
class Files:
    """The clips of a folder and what its table says of them, nothing decoded yet.

    Attributes:
      audio: the files.
      table: where the captions are from, for messages; None without a table.
      members: the clips of each split.
      left_out: captions that were blank or repeated, and clips that were not wanted.
      made_from: what decides the dataset; equal for equal settings, table and files, with their
        names and contents.
    """

    audio: AudioFiles
    table: pathlib.Path | None
    members: Mapping[str, Sequence[Entry]]
    left_out: Sequence[Skipped]
    made_from: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        audio: AudioFiles,
        entries: Sequence[Entry],
        left_out: Sequence[Skipped],
        settings: Settings,
        *,
        table: pathlib.Path | None,
        metadata_sha256: str | None = "",
    ) -> Files:
        """Entries put into splits.

        Args:
          audio: the files.
          entries: the clips, of different ids.
          left_out: what is listed behind what is skipped.
          settings: decide the clips, and the split where an entry has none.
          table: where the entries are from, for messages.
          metadata_sha256: hash of what the entries were made from; "" for one of the entries.
        """
        members: dict[str, list[Entry]] = {split: [] for split in metadata_lib.SPLITS}
        usable = [entry for entry in entries if entry.split is None and not _shown(entry.file)]
        splits = _assign_splits({entry.name or entry.file for entry in usable}, settings)
        for entry in entries:
            split = entry.split or splits.get(entry.name or entry.file, "train")
            members[split].append(entry)
        if metadata_sha256 == "":
            said = [json.dumps(dataclasses.asdict(entry), sort_keys=True) for entry in entries]
            metadata_sha256 = hashlib.sha256("\n".join(said).encode()).hexdigest()
        made_from = {
            **dataclasses.asdict(settings),
            "metadata_sha256": metadata_sha256,
            "files_sha256": combined((entry.file, audio.size(entry.file)) for entry in entries),
            "contents_sha256": _contents_sha256(entries, audio),
        }
        members = {split: entries for split, entries in members.items() if entries}
        return cls(audio, table, members, left_out, made_from)


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
    audio = AudioFiles(audio_dir)
    if table is None:
        entries, left_out = find_audio(audio), []
    else:
        entries, left_out = metadata_lib.read(
            table, audio_dir, with_captions=settings.with_captions
        )
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest() if table else None
    return Files.of(audio, entries, left_out, settings, table=table, metadata_sha256=sha256)


def find_audio(audio: AudioFiles) -> list[Entry]:
    """Every audio file that is not in an archive, sorted by name.

    Raises:
      FileNotFoundError: there is none.
    """
    names = [name for name in audio.names if SEPARATOR not in name]
    if not names:
        raise FileNotFoundError(
            f"{audio.folder}: no audio found in it or below; looked for {', '.join(SUFFIXES)}"
        )
    return [Entry(name, line=0, split=None, name=_shown(name)) for name in names]


def _shown(name: str) -> str:
    """What a clip of a name that is not UTF-8 is called; "" for the name itself."""
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "" if shown == name else shown


def _position(file: str, settings: Settings) -> float:
    """A hash of seed and name, uniform in [0, 1)."""
    name = f"{settings.seed}\n{file}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def _assign_splits(files: Collection[str], settings: Settings) -> dict[str, str]:
    """The splits of files that no table puts into one.

    Few files may leave a split empty that is wanted. It gets one of the largest split then, that
    with the lowest hash: first training has one, then validation, then testing.
    """
    found = {file: assign_split(file, settings) for file in files}
    wanted = {
        "train": True,
        "validation": settings.validation_fraction > 0,
        "test": settings.test_fraction > 0,
    }
    for split in (name for name, is_wanted in wanted.items() if is_wanted):
        counts = collections.Counter(found.values())
        if not files or counts[split]:
            continue
        giver = max(wanted, key=lambda name: counts[name])
        if counts[giver] < 2:
            order = tuple(wanted)
            later = [name for name in order[order.index(split) :] if counts[name]]
            if not later:
                continue
            giver = later[-1]
        given = (file for file in files if found[file] == giver)
        found[min(given, key=lambda file: _position(file, settings))] = split
    return found


def assign_split(file: str, settings: Settings) -> str:
    """The split of a file among many: `_position` against the fractions."""
    position = _position(file, settings)
    if position < settings.test_fraction:
        return "test"
    if position < settings.test_fraction + settings.validation_fraction:
        return "validation"
    return "train"


def read_clips(entry: Entry, files: AudioFiles, settings: Settings) -> list[builder.Clip | Skipped]:
    """The clips of an entry: decoded, levelled and cut, with what is left out of it and why."""
    if _shown(entry.file):
        return [Skipped(entry.id, "name is not UTF-8", "rename the file")]
    if settings.with_captions and not entry.captions:
        detail = f"all of its captions are blank, line {entry.line}"
        return [Skipped(entry.id, "no caption", detail)]
    try:
        audio = files.read(
            entry.file, settings.sample_rate, start=entry.start, duration=entry.duration
        )
    except audio_lib.AudioError as error:
        return [Skipped(entry.id, error.reason, error.detail)]
    labels: dict[str, Any] = {"columns": entry.columns}
    if entry.events:
        labels["events"] = entry.events
    clips = cut_clips(builder.Clip(entry.id, audio, entry.captions, labels), settings)
    seconds = audio.size / settings.sample_rate
    is_short = entry.duration is not None and seconds < entry.duration - SHORTFALL
    if is_short and any(isinstance(clip, builder.Clip) for clip in clips):
        detail = f"the file ends {seconds:g} s after the start of a clip of {entry.duration:g} s"
        clips.append(Skipped(entry.id, "ends early", detail))
    return clips


def cut_clips(whole: builder.Clip, settings: Settings) -> list[builder.Clip | Skipped]:
    """A decoded recording levelled and cut into equal pieces, silent ones left out."""
    seconds = whole.audio.size / settings.sample_rate
    if seconds < settings.min_seconds:
        detail = f"{seconds:g} s, and min_seconds is {settings.min_seconds:g}"
        return [Skipped(whole.id, "too short", detail)]
    if settings.level:
        audio = audio_lib.level(whole.audio)
    else:
        audio = audio_lib.playback_level(whole.audio, peak_dbfs=0.0)
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


def _contents_sha256(entries: Iterable[Entry], audio: AudioFiles) -> str:
    """What tells files of equal names and sizes apart: one that was denoised in its place."""
    names = [entry.file for entry in entries]
    contents = audio.contents(names)
    return combined((name, contents[name]) for name in names)
