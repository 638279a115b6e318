"""Tables of captions read, checked and gathered by clip.

In UTF-8, with one row per caption or per clip (`data.common.rows` has the formats):

    file      the audio file, relative to the audio folder (or: file_name, path, audio)
    caption   what is heard, in any script (or: captions; in JSON a string or a list of strings)
    split     optional: train, validation or test (val, valid, dev, eval mean validation)
    events    optional: names of the sounds, a JSON list, or separated by ";"

That is what `data.folder` takes; `Columns` says what else a table may call them, and where a clip
begins in its file. Further columns are kept. Rows that share a clip add captions and events to it.
Files must lie in the audio folder: subfolders and absolute paths into it are fine, paths that leave
it are refused. That keeps names, and what is derived from them, independent of where the folder
lies, and keeps a table from elsewhere from reading other files.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.common.rows import FORMATS
from fasttta_jax.storage.rows import Reader, read_rows

SPLITS = ("train", "validation", "test")
NAMES = ("metadata.csv", "metadata.jsonl")
SHOWN_PER_REASON = 20
"""Names that a report shows of each reason."""
SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(
    ("val", "valid", "dev", "eval"), "validation"
)
NUMBERED_CAPTION = re.compile(r"caption_?\d+")

Tiers = tuple[tuple[str, ...], ...]
"""Names of columns. Of the first tuple that a table has one of, it must have exactly one."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a table are called.

    Attributes:
      file: the audio file.
      caption: a caption, or a list of them. A table that has none of these may have numbered ones:
        caption_1, caption_2.
      split: the split.
      start: seconds into the file where the clip begins; None where clips are whole files.
      duration: seconds of the clip, where the row has a start; without one it is said of a file.
      required: further columns that must be there.
      formats: suffixes of tables that may be.
    """

    file: Tiers = (("file", "file_name", "path", "audio"),)
    caption: Tiers = (("caption", "captions"),)
    split: str = "split"
    start: str | None = None
    duration: str | None = None
    required: tuple[str, ...] = ()
    formats: tuple[str, ...] = (".csv", ".jsonl")


MANIFEST = Columns(
    file=(
        ("file", "file_name", "filename", "path", "audio", "audio_path", "location", "wav"),
        ("id", "name"),
    ),
    caption=(("ori_cap",), ("caption", "captions", "text")),
    start="start",
    duration="duration",
    formats=tuple(FORMATS),
)
"""Names that are common in public manifests. AudioLCM keeps the captions as they were in ori_cap,
beside a structured form in caption."""


@dataclasses.dataclass
class Entry:
    """What a table says about one clip.

    Attributes:
      file: its audio: a name of `data.common.audio_files`, relative to the audio folder, with "/".
      line: where the table first names it; 0 without a table.
      split: as given, or None without a split column.
      captions: distinct and not blank, in the order of the table; empty if all of them are blank
        or none were asked for.
      events: distinct names, in the order of the table.
      columns: further columns; a list of the distinct values where rows disagree.
      start: seconds into the file where the clip begins.
      duration: seconds of the clip; None for all that follows.
      name: what the clip is called in the dataset; "" for its file and part.
    """

    file: str
    line: int
    split: str | None
    captions: list[str] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: float = 0.0
    duration: float | None = None
    name: str = ""

    @property
    def id(self) -> str:
        """The name, or the file, with the seconds of a part such as "a.wav@30-40"."""
        if self.name or (not self.start and self.duration is None):
            return self.name or self.file
        end = "" if self.duration is None else f"{self.start + self.duration:g}"
        return f"{self.file}@{self.start:g}-{end}"


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that a table names and a dataset lacks: a clip, a piece of one, or a caption."""

    file: str
    reason: str
    detail: str


def report(skipped: Sequence[Skipped], left_out: Sequence[Skipped]) -> str:
    """Reasons, counts and names as a table; an empty string if there is nothing to say."""
    lines = []
    for title, items in (
        ("skipped files", skipped),
        ("captions and pieces left out", left_out),
    ):
        by_reason: dict[str, list[Skipped]] = {}
        for item in items:
            by_reason.setdefault(item.reason, []).append(item)
        if items:
            lines.append(f"{title}: {len(items)}")
        for reason, group in sorted(by_reason.items()):
            lines.append(f"  {reason}: {len(group)}")
            lines += [f"    {item.file}: {item.detail}" for item in group[:SHOWN_PER_REASON]]
            if len(group) > SHOWN_PER_REASON:
                lines.append(f"    and {len(group) - SHOWN_PER_REASON} more")
    return "".join(line + "\n" for line in lines)


def find(audio_dir: pathlib.Path) -> pathlib.Path:
    """The table in `audio_dir`, of which there must be exactly one.

    Raises:
      FileNotFoundError: there is no such folder or no table in it.
      ValueError: there are two tables.
    """
    if not audio_dir.is_dir():
        raise FileNotFoundError(f"{audio_dir}: there is no such folder of audio")
    found = [audio_dir / name for name in NAMES if (audio_dir / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{audio_dir}: holds neither {' nor '.join(NAMES)}; name another table with "
            "--metadata, or give --without_captions to take all audio below the folder"
        )
    if len(found) > 1:
        raise ValueError(f"{audio_dir}: holds {' and '.join(NAMES)}; choose one with --metadata")
    return found[0]


def read(
    table: pathlib.Path | Mapping[pathlib.Path, str | None],
    audio_dir: pathlib.Path,
    *,
    with_captions: bool = True,
    columns: Columns = Columns(),
    path_prefix: str = "",
    readers: Mapping[str, Reader] = FORMATS,
) -> tuple[list[Entry], list[Skipped]]:
    """Reads and checks a table, or several.

    Args:
      table: the file, or files with the split of each, None where a column says it.
      audio_dir: folder that the files in it are relative to.
      with_captions: False reads no captions; the column may be missing then.
      columns: what the columns are called.
      path_prefix: what file names begin with in the table and not in the folder.
      readers: of rows, by suffix.

    Returns:
      The clips in the order of the tables, and the captions left out: blank and repeated ones.

    Raises:
      ValueError: a table is malformed; the message names the line, the value and what is allowed.
      OSError: a table cannot be read.
    """
    tables = {table: None} if isinstance(table, pathlib.Path) else table
    gathered = _Gathered(audio_dir, columns, path_prefix, with_captions)
    for path, split in tables.items():
        before = gathered.num_rows
        for line, record in read_rows(
            path, gathered.check, formats=columns.formats, readers=readers
        ):
            gathered.add(f"{path}:{line}", line, record, split)
        if gathered.num_rows == before:
            raise ValueError(f"{path}: has no rows")
    entries = list(gathered.entries.values())
    if any(entry.split for entry in entries):
        for entry in entries:
            if entry.split is None:
                where = f"{gathered.tables[entry.id]}:{entry.line}"
                raise ValueError(f"{where}: has no split, but other rows have one")
    return entries, gathered.left_out


class _Gathered:
    """The clips of rows, one row after the other."""

    def __init__(
        self, audio_dir: pathlib.Path, columns: Columns, path_prefix: str, with_captions: bool
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.tables: dict[str, str] = {}
        self.left_out: list[Skipped] = []
        self.num_rows = 0
        self._root = os.path.abspath(audio_dir)
        self._columns = columns
        self._prefix = path_prefix
        self._with_captions = with_captions

    def check(self, where: str, header: Sequence[str]) -> None:
        """Raises ValueError where columns are missing."""
        _pick(where, header, self._columns.file)
        if self._with_captions:
            self._caption_columns(where, header)
        for column in self._columns.required:
            _pick(where, header, ((column,),))

    def add(self, where: str, line: int, record: Mapping[str, Any], split: str | None) -> None:
        """Puts one row into `entries`, and what it has of no use into `left_out`."""
        self.num_rows += 1
        self.check(where, list(record))
        columns = self._columns
        file_column = _pick(where, record, columns.file)
        caption_columns = self._caption_columns(where, record) if self._with_captions else []
        given = [_texts(where, column, record[column]) for column in caption_columns]
        file = self._inside(where, file_column, record[file_column])
        split = _split(where, record.get(columns.split)) if split is None else split
        start, duration = self._part(where, record)
        new = Entry(file, line, split, start=start, duration=duration)
        entry = self.entries.setdefault(new.id, new)
        self.tables.setdefault(entry.id, where.rpartition(":")[0])
        if split != entry.split:
            raise ValueError(
                f"{where}: split of {entry.id!r} is {split!r}, but {entry.split!r} on line "
                f"{entry.line} of {self.tables[entry.id]}"
            )
        for caption in (text.strip() for texts in given for text in texts):
            if not caption:
                self.left_out.append(Skipped(entry.id, "blank caption", f"line {line}"))
            elif caption in entry.captions:
                detail = f"line {line}: {caption}"
                self.left_out.append(Skipped(entry.id, "repeated caption", detail))
            else:
                entry.captions.append(caption)
        events = record.get("events") or []
        events = events.split(";") if isinstance(events, str) else _texts(where, "events", events)
        for event in map(str.strip, events):
            if event and event not in entry.events:
                entry.events.append(event)
        self._keep(entry, record, {file_column, *caption_columns})

    def _keep(self, entry: Entry, record: Mapping[str, Any], used: set[str]) -> None:
        """Further columns."""
        columns = self._columns
        used |= {columns.split, columns.start or "", columns.duration or "", "events"}
        if not self._with_captions:
            used |= {name for tier in columns.caption for name in tier}
        for column, value in record.items():
            if column not in used:
                known = entry.columns.setdefault(column, value)
                values = known if isinstance(known, list) else [known]
                if value != known and value not in values:
                    entry.columns[column] = [*values, value]

    def _caption_columns(self, where: str, columns: Iterable[str]) -> list[str]:
        tiers = self._columns.caption
        numbered = [name for name in columns if NUMBERED_CAPTION.fullmatch(name)]
        if numbered and not any(name in columns for tier in tiers for name in tier):
            return numbered
        hint = "; for audio without captions give --without_captions"
        return [_pick(where, columns, tiers, hint)]

    def _part(self, where: str, record: Mapping[str, Any]) -> tuple[float, float | None]:
        """Start and duration of the clip in its file, in seconds."""
        columns = self._columns
        start = _seconds(where, columns.start, record)
        if start is None:
            return 0.0, None
        duration = _seconds(where, columns.duration, record)
        if duration == 0:
            raise ValueError(f"{where}: {columns.duration} is 0; allowed: above 0")
        return start, duration

    def _inside(self, where: str, column: str, file: Any) -> str:
        """The name of `file` relative to the audio folder; symbolic links are not followed."""
        if not isinstance(file, str) or not file.strip():
            raise ValueError(f"{where}: {column} is {file!r}; it must name an audio file")
        name = file.strip().removeprefix(self._prefix)
        if self._prefix:
            name = name.lstrip("/")
        relative = pathlib.Path(os.path.relpath(os.path.join(self._root, name), self._root))
        if relative.parts[:1] in ((), (os.pardir,)):
            raise ValueError(
                f"{where}: {column} {file!r} is not a file inside {self._root}; for files "
                "elsewhere give an --audio_dir that holds them all and name the table with "
                "--metadata or --manifest; --path_prefix of `data.manifest` takes a folder of "
                "another machine off the names"
            )
        return relative.as_posix()


def _pick(where: str, columns: Iterable[str], tiers: Tiers, hint: str = "") -> str:
    """The one of `columns` that is in the first of the tiers with any."""
    columns = list(columns)
    for tier in tiers:
        found = [column for column in columns if column in tier]
        if len(found) == 1:
            return found[0]
        if found:
            hint = ""
            break
    allowed = ", ".join(name for tier in tiers for name in tier)
    raise ValueError(
        f"{where}: needs exactly one of the columns {allowed}; "
        f"found the columns: {', '.join(columns) or 'none'}{hint}"
    )


def _split(where: str, value: Any) -> str | None:
    if value is None:
        return None
    if (split := str(value).strip().lower()) not in SPLIT_NAMES:
        raise ValueError(f"{where}: split is {value!r}; allowed: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[split]


def _seconds(where: str, column: str | None, record: Mapping[str, Any]) -> float | None:
    value = record.get(column) if column is not None else None
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{where}: {column} is {value!r}; allowed: seconds from 0")
    return seconds


def _texts(where: str, column: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise ValueError(f"{where}: {column} is {value!r}; allowed: a string or a list of strings")
    return values
