"""Tables of captions: `metadata.csv` and `metadata.jsonl` read, checked and gathered by file.

Audio without captions needs no table; one that is there may still give splits and events.

In UTF-8, with one row per caption or per file:

    file      the audio file, relative to the audio folder (or: file_name, path, audio)
    caption   what is heard, in any script (or: captions; in JSON a string or a list of strings)
    split     optional: train, validation or test (val, valid, dev, eval mean validation)
    events    optional: names of the sounds, a JSON list, or separated by ";"

Further columns are kept. Rows that share a file add captions and events to it. Files must lie in
the audio folder: subfolders and absolute paths into it are fine, paths that leave it are refused.
That keeps names, and what is derived from them, independent of where the folder lies, and keeps a
table from elsewhere from reading other files.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

SPLITS = ("train", "validation", "test")
NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file", "file_name", "path", "audio")
CAPTION_COLUMNS = ("caption", "captions")
SHOWN_PER_REASON = 20
"""Names that a report shows of each reason."""
AUDIO_SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(
    ("val", "valid", "dev", "eval"), "validation"
)


@dataclasses.dataclass
class Entry:
    """What a table says about one file.

    Attributes:
      file: its name relative to the audio folder, with "/".
      line: where the table first names it; 0 without a table.
      split: as given, or None without a split column.
      captions: distinct and not blank, in the order of the table; empty if all of them are blank
        or none were asked for.
      events: distinct names, in the order of the table.
      columns: further columns; a list of the distinct values where rows disagree.
    """

    file: str
    line: int
    split: str | None
    captions: list[str] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that a table names and a dataset lacks: a file, a piece of one, or a caption."""

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


def find_audio(audio_dir: pathlib.Path) -> list[Entry]:
    """Every audio file below `audio_dir`, by suffix, sorted by name; hidden files are not taken.

    Raises:
      FileNotFoundError: there is no such folder, or no audio in it.
    """
    if not audio_dir.is_dir():
        raise FileNotFoundError(f"{audio_dir}: there is no such folder of audio")
    found = [
        path.relative_to(audio_dir)
        for path in audio_dir.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    ]
    names = sorted(
        path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)
    )
    if not names:
        raise FileNotFoundError(
            f"{audio_dir}: no audio found in it or below; looked for {', '.join(AUDIO_SUFFIXES)}"
        )
    return [Entry(name, line=0, split=None) for name in names]


def read(
    table: pathlib.Path, audio_dir: pathlib.Path, *, with_captions: bool = True
) -> tuple[list[Entry], list[Skipped]]:
    """Reads and checks a table.

    Args:
      table: a .csv or .jsonl file.
      audio_dir: folder that the files in it are relative to.
      with_captions: False reads no captions; the column may be missing then.

    Returns:
      The files in the order of the table, and the captions left out: blank and repeated ones.

    Raises:
      ValueError: the table is malformed; the message names the line, the value and what is allowed.
      OSError: the table cannot be read.
    """
    required = (FILE_COLUMNS, CAPTION_COLUMNS) if with_captions else (FILE_COLUMNS,)
    readers = {
        ".csv": functools.partial(_csv_records, required=required),
        ".jsonl": _jsonl_records,
    }
    if table.suffix not in readers:
        raise ValueError(f"{table}: ends in {table.suffix!r}; allowed: {', '.join(readers)}")
    entries: dict[str, Entry] = {}
    left_out: list[Skipped] = []
    try:
        for line, record in readers[table.suffix](table):
            left_out += _add(
                entries, f"{table}:{line}", line, record, audio_dir, with_captions=with_captions
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: is not UTF-8 text: {error}") from error
    if not entries:
        raise ValueError(f"{table}: has no rows")
    if any(entry.split for entry in entries.values()):
        for entry in entries.values():
            if entry.split is None:
                raise ValueError(f"{table}:{entry.line}: has no split, but other rows have one")
    return list(entries.values()), left_out


def _csv_records(
    table: pathlib.Path, required: Sequence[Sequence[str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            for allowed in required:
                _pick(f"{table}:1", header, allowed)
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise ValueError(
                        f"{table}:{reader.line_num}: has {len(values)} fields, but the header has "
                        f"{len(header)}; a field that holds a comma needs double quotes"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise ValueError(f"{table}:{reader.line_num}: malformed CSV: {error}") from error


def _jsonl_records(table: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(table, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
                json.dumps(record, ensure_ascii=False).encode()  # a lone surrogate fails here
            except ValueError as error:
                raise ValueError(f"{table}:{line}: malformed JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{table}:{line}: {text.strip()[:60]!r} is not a JSON object")
            yield line, record


def _add(
    entries: dict[str, Entry],
    where: str,
    line: int,
    record: Mapping[str, Any],
    audio_dir: pathlib.Path,
    *,
    with_captions: bool,
) -> list[Skipped]:
    """Puts one row into `entries` and returns the captions it left out."""
    file_column = _pick(where, record, FILE_COLUMNS)
    captions: list[str] = []
    if with_captions:
        caption_column = _pick(where, record, CAPTION_COLUMNS)
        captions = _texts(where, caption_column, record[caption_column])
    file = _inside(where, file_column, record[file_column], audio_dir)
    split = _split(where, record.get("split"))
    entry = entries.setdefault(file, Entry(file, line, split))
    if split != entry.split:
        raise ValueError(
            f"{where}: split of {file!r} is {split!r}, but {entry.split!r} on line {entry.line}"
        )
    left_out = []
    for caption in map(str.strip, captions):
        if not caption:
            left_out.append(Skipped(file, "blank caption", f"line {line}"))
        elif caption in entry.captions:
            left_out.append(Skipped(file, "repeated caption", f"line {line}: {caption}"))
        else:
            entry.captions.append(caption)
    events = record.get("events", [])
    events = events.split(";") if isinstance(events, str) else _texts(where, "events", events)
    for event in map(str.strip, events):
        if event and event not in entry.events:
            entry.events.append(event)
    for column, value in record.items():
        if column not in (file_column, *CAPTION_COLUMNS, "split", "events"):
            known = entry.columns.setdefault(column, value)
            values = known if isinstance(known, list) else [known]
            if value != known and value not in values:
                entry.columns[column] = [*values, value]
    return left_out


def _pick(where: str, columns: Iterable[str], allowed: Sequence[str]) -> str:
    """The one of `columns` that is among `allowed`."""
    found = [column for column in columns if column in allowed]
    if len(found) != 1:
        is_plain = allowed is CAPTION_COLUMNS and not found
        hint = "; for audio without captions give --without_captions" if is_plain else ""
        raise ValueError(
            f"{where}: needs exactly one of the columns {', '.join(allowed)}; "
            f"found the columns: {', '.join(columns) or 'none'}{hint}"
        )
    return found[0]


def _split(where: str, value: Any) -> str | None:
    if value is None:
        return None
    if (split := str(value).strip().lower()) not in SPLIT_NAMES:
        raise ValueError(f"{where}: split is {value!r}; allowed: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[split]


def _texts(where: str, column: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise ValueError(f"{where}: {column} is {value!r}; allowed: a string or a list of strings")
    return values


def _inside(where: str, column: str, file: Any, audio_dir: pathlib.Path) -> str:
    """The name of `file` relative to the audio folder; symbolic links are not followed."""
    if not isinstance(file, str) or not file.strip():
        raise ValueError(f"{where}: {column} is {file!r}; it must name an audio file")
    root = os.path.abspath(audio_dir)
    relative = pathlib.Path(os.path.relpath(os.path.join(root, file.strip()), root))
    if relative.parts[:1] in ((), (os.pardir,)):
        raise ValueError(
            f"{where}: {column} {file!r} is not a file inside {root}; for files elsewhere give an "
            "--audio_dir that holds them all and name the table with --metadata"
        )
    return relative.as_posix()
