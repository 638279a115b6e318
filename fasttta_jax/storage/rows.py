"""Rows of a table kept as text: CSV, TSV, JSON Lines or JSON.

Text is UTF-8, with a byte order mark or without, and lines may end as on any system. A .json file
holds a list of objects, alone or as "data" of an object, or it is JSON Lines by another name.
"""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = tuple[int, Mapping[str, Any]]
"""Line, or number of the row, and the columns."""
Check = Callable[[str, Sequence[str]], object]
"""Raises where a header, of which it is told the place and the columns, lacks something."""
Reader = Callable[[pathlib.Path, Check], Iterator[Row]]


def unchecked(where: str, columns: Sequence[str]) -> None:
    """The check that takes every header."""


def read_rows(
    table: pathlib.Path,
    check: Check = unchecked,
    *,
    formats: Sequence[str] = (),
    readers: Mapping[str, Reader] | None = None,
) -> Iterator[Row]:
    """The rows of a table one after the other; blank lines of text are passed over.

    Args:
      table: the file.
      check: called with the columns of a CSV or TSV before its first row.
      formats: suffixes that may be, in lower case; those of `readers` where there are none.
      readers: by suffix; None for `TEXT_FORMATS`.

    Raises:
      ValueError: the table is malformed; names the line.
      OSError: it cannot be read.
    """
    known = TEXT_FORMATS if readers is None else readers
    allowed = formats or tuple(known)
    suffix = table.suffix.lower()
    if suffix not in allowed:
        raise ValueError(f"{table}: ends in {table.suffix!r}; allowed: {', '.join(allowed)}")
    try:
        yield from known[suffix](table, check)
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: is not UTF-8 text: {error}") from error


def _csv_rows(table: pathlib.Path, check: Check, dialect: str) -> Iterator[Row]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, dialect, strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            check(f"{table}:1", header)
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise ValueError(
                        f"{table}:{reader.line_num}: has {len(values)} fields, but the header has "
                        f"{len(header)}; a field that holds a {_NAMES[dialect]} needs double quotes"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            message = f"{table}:{reader.line_num}: malformed {table.suffix[1:].upper()}: {error}"
            raise ValueError(message) from error


_NAMES = {"excel": "comma", "excel-tab": "tab"}


def _jsonl_rows(table: pathlib.Path, check: Check) -> Iterator[Row]:
    del check
    with open(table, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{table}:{line}: malformed JSON: {error}") from error
            yield line, _object(f"{table}:{line}", record)


def _json_rows(table: pathlib.Path, check: Check) -> Iterator[Row]:
    try:
        found = json.loads(table.read_text("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{table}: malformed JSON: {error}") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(f"{table}:{error.lineno}: malformed JSON: {error}") from error
        yield from _jsonl_rows(table, check)
        return
    records = found.get("data") if isinstance(found, dict) else found
    if not isinstance(records, list):
        raise ValueError(
            f"{table}: holds {str(found)[:60]!r}; allowed: a list of JSON objects, an object with "
            'one under "data", or an object a line'
        )
    for number, record in enumerate(records, start=1):
        yield number, _object(f"{table}:{number}", record)


def _object(where: str, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {json.dumps(record)[:60]!r} is not a JSON object")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: malformed JSON: half a character, {error}") from error
    return record


TEXT_FORMATS: Mapping[str, Reader] = {
    ".csv": functools.partial(_csv_rows, dialect="excel"),
    ".tsv": functools.partial(_csv_rows, dialect="excel-tab"),
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
}
