"""Tables that say which sound was made for which caption, in the forms that projects write.

JSON lines, CSV and TSV in UTF-8, with or without a byte order mark; one row a sound, with a column
for the file and one for the caption, and any others.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fasttta_jax.storage.rows import read_rows

SUFFIXES = (".jsonl", ".csv", ".tsv")
TABLES = tuple(
    f"{stem}{suffix}" for stem in ("manifest", "metadata", "captions") for suffix in SUFFIXES
)
"""Names under which a folder's table is found."""
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


def find_table(path: pathlib.Path) -> pathlib.Path | None:
    """The table of a folder, or the table that `path` is; None for a folder without one.

    Raises:
      SoundsError: a folder has several, or is not there.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise SoundsError(f"{path}: there is no such folder")
    found = [path / name for name in TABLES if (path / name).is_file()]
    if len(found) > 1:
        listed = ", ".join(table.name for table in found)
        raise SoundsError(
            f"{path} holds several tables of its sounds: {listed}; leave one, or name one"
        )
    return found[0] if found else None


def read_table(table: pathlib.Path) -> list[TableRow]:
    """The rows of a table, in order.

    Raises:
      SoundsError: another form, not UTF-8, a row that lacks a file or a caption, or no row.
    """
    try:
        lines = list(read_rows(table, formats=SUFFIXES))
    except ValueError as error:
        raise SoundsError(str(error)) from error
    rows = []
    for line, row in lines:
        file, caption = (_pick(row, columns) for columns in (FILE_COLUMNS, CAPTION_COLUMNS))
        if file is None or caption is None:
            raise SoundsError(
                f"{table}:{line}: a text named {' or '.join(FILE_COLUMNS)} and one named "
                f"{' or '.join(CAPTION_COLUMNS)} are needed; found: {', '.join(map(str, row))}"
            )
        rows.append(TableRow(file, caption.strip(), row))
    if not rows:
        raise SoundsError(f"{table} has no rows")
    return rows


def _pick(row: Mapping[Any, Any], columns: Sequence[str]) -> str | None:
    found = next((row[name] for name in columns if name in row), None)
    return found if isinstance(found, str) and found.strip() else None
