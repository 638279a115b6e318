"""Tables that say which sound was made for which caption, in the forms that projects write.

JSON lines, CSV and TSV in UTF-8, with or without a byte order mark; one row a sound, with a column
for the file and one for the caption, and any others.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

TABLES = tuple(
    f"{stem}{suffix}"
    for stem in ("manifest", "metadata", "captions")
    for suffix in (".jsonl", ".csv", ".tsv")
)
"""Names under which a folder's table is found."""
SUFFIXES = (".jsonl", ".csv", ".tsv")
FILE_COLUMNS = ("file", "file_name", "path", "audio", "audio_path", "location", "wav", "name")
CAPTION_COLUMNS = ("prompt", "caption", "captions")


class SoundsError(ValueError):
    """A folder of sounds that cannot be evaluated; names the table and the line."""


class TableRow(NamedTuple):
    """One sound.

    Attributes:
      file: as the table has it.
      caption: what it was made for, stripped.
      columns: the whole row.
    """

    file: str
    caption: str
    columns: Mapping[Any, Any]


def find_table(folder: pathlib.Path) -> pathlib.Path | None:
    """The table of a folder; None where it has none.

    Raises:
      SoundsError: it has several.
    """
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise SoundsError(
            f"{folder} holds several tables of its sounds: {listed}; leave one, or name one"
        )
    return found[0] if found else None


def read_table(table: pathlib.Path) -> list[TableRow]:
    """The rows of a table, in order.

    Raises:
      SoundsError: another form, not UTF-8, a row that lacks a file or a caption, or no row.
    """
    suffix = table.suffix.lower()
    if suffix not in SUFFIXES:
        raise SoundsError(f"{table}: the ending is {table.suffix!r}; allowed: {SUFFIXES}")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SoundsError(f"{table} is not UTF-8 text: {error}") from error
    if suffix == ".jsonl":
        lines = _jsonl_rows(table, text)
    else:
        lines = _csv_rows(table, text, "," if suffix == ".csv" else "\t")
    rows = []
    for line, row in lines:
        file, caption = (_pick(row, columns) for columns in (FILE_COLUMNS, CAPTION_COLUMNS))
        if file is None or caption is None:
            raise SoundsError(
                f"{table}, line {line}: a text named {' or '.join(FILE_COLUMNS)} and one named "
                f"{' or '.join(CAPTION_COLUMNS)} are needed; found: {', '.join(map(str, row))}"
            )
        rows.append(TableRow(file, caption.strip(), row))
    if not rows:
        raise SoundsError(f"{table} has no rows")
    return rows


def _csv_rows(
    table: pathlib.Path, text: str, delimiter: str
) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    # strict: a quote that is never closed would swallow all rows below it
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise SoundsError(
                    f"{table}, line {reader.line_num} has {len(row[None])} cells more than the "
                    f"header: a text that holds {delimiter!r} must stand in quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise SoundsError(
            f"{table}, line {reader.reader.line_num}: {error}; a text with a quote stands in "
            'quotes, and the quote is written twice: "a ""loud"" dog"'
        ) from error


def _jsonl_rows(table: pathlib.Path, text: str) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
            json.dumps(row, ensure_ascii=False).encode()  # half a character has no UTF-8
        except (ValueError, RecursionError) as error:
            raise SoundsError(f"{table}, line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise SoundsError(f"{table}, line {line} is not a JSON object: {content[:60]!r}")
        yield line, row


def _pick(row: Mapping[Any, Any], columns: Sequence[str]) -> str | None:
    found = next((row[name] for name in columns if name in row), None)
    return found if isinstance(found, str) and found.strip() else None
