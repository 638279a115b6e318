"""Rows of a table kept as text: CSV, TSV, JSON Lines or JSON.

Text is UTF-8, with a byte order mark or without, and lines may end as on any system. A .json file
holds a list of objects, alone or as "data" of an object, or it is JSON Lines by another name.
Rows of CSV, TSV and JSON Lines are read as they are asked for: a table may be of any length.
"""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

UTF8 = "utf-8-sig"
"""With a byte order mark or without."""


class RowError(ValueError):
    """A row that cannot be read; names the table and the line."""


Row = tuple[int, Mapping[str, Any]]
"""Line, or number of the row, and the columns."""
Found = tuple[int, Mapping[str, Any] | RowError]
"""A row, or what is wrong with it."""
Check = Callable[[str, Sequence[str]], object]
"""Raises where a header, of which it is told the place and the columns, lacks something."""
Reader = Callable[[pathlib.Path, Check], Iterator[Found]]


def unchecked(where: str, columns: Sequence[str]) -> None:
    """The check that takes every header."""


def require(columns: Sequence[str]) -> Check:
    """The check that takes headers with these columns, and others beside them."""

    def check(where: str, found: Sequence[str]) -> None:
        if missing := [name for name in columns if name not in found]:
            raise ValueError(
                f"{where}: lacks the columns {', '.join(missing)}; found: "
                f"{', '.join(found) or 'none'}"
            )

    return check


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
    for line, row in find_rows(table, check, formats=formats, readers=readers):
        if isinstance(row, RowError):
            raise row
        yield line, row


def find_rows(
    table: pathlib.Path,
    check: Check = unchecked,
    *,
    formats: Sequence[str] = (),
    readers: Mapping[str, Reader] | None = None,
) -> Iterator[Found]:
    """As `read_rows`, but a malformed row is given as its error, and the rows behind it follow.

    Raises:
      ValueError: another format, a header that lacks something, or a .json that cannot be read.
      OSError: the table cannot be read.
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


def csv_rows(
    table: pathlib.Path, check: Check, dialect: str = "excel", encoding: str = UTF8
) -> Iterator[Found]:
    """Reads CSV, or TSV, the dialect "excel-tab"; a `Reader`.

    Args:
      table: the file.
      check: of its columns.
      dialect: of the module csv.
      encoding: of its text.
    """
    with _open(table, encoding) as file:
        reader = csv.reader(file, dialect, strict=True)
        header: list[str] | None = None
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                fault = f"{table}:{reader.line_num}: malformed {table.suffix[1:].upper()}: {error}"
                if header is None:
                    raise ValueError(fault) from error
                yield reader.line_num, RowError(fault)
                continue
            where = f"{table}:{reader.line_num}"
            if header is None:
                header = [column.strip() for column in values or []]
                if (garbled := _not_text(where, "".join(header), encoding)) is not None:
                    raise garbled
                check(f"{table}:1", header)
            elif values is not None and values:
                garbled = _not_text(where, "".join(values), encoding)
                yield reader.line_num, garbled or _columns(where, header, values, dialect)
            if values is None:
                return


def _columns(
    where: str, header: Sequence[str], values: Sequence[str], dialect: str
) -> Mapping[str, Any] | RowError:
    if len(values) != len(header):
        return RowError(
            f"{where}: has {len(values)} fields, but the header has {len(header)}; a field that "
            f"holds a {_NAMES[dialect]} needs double quotes"
        )
    return dict(zip(header, values, strict=True))


_NAMES = {"excel": "comma", "excel-tab": "tab"}


def _open(table: pathlib.Path, encoding: str = UTF8) -> TextIO:
    """The text, in which bytes that are of another encoding are kept for `_not_text` to find."""
    return open(table, encoding=encoding, errors="surrogateescape", newline="")


def _not_text(where: str, text: str, encoding: str = UTF8) -> RowError | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = "UTF-8" if encoding == UTF8 else encoding
        return RowError(f"{where}: is not {name} text: {error.object[error.start]!a}")
    return None


def _lines(table: pathlib.Path) -> Iterator[tuple[int, str, RowError | None]]:
    """Number, text and fault of the lines that are not blank."""
    with _open(table) as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield line, text.strip(), _not_text(f"{table}:{line}", text)


def _jsonl_rows(table: pathlib.Path, check: Check) -> Iterator[Found]:
    del check
    for line, text, fault in _lines(table):
        if fault is None:
            try:
                yield line, _object(f"{table}:{line}", json.loads(text))
                continue
            except RowError as error:
                fault = error
            except (ValueError, RecursionError) as error:
                fault = RowError(f"{table}:{line}: malformed JSON: {error}")
        yield line, fault


def lines_as(column: str) -> Reader:
    """Reads plain text: a row for each line that is not blank, stripped, with one column."""

    def read(table: pathlib.Path, check: Check) -> Iterator[Found]:
        check(f"{table}:1", [column])
        for line, text, fault in _lines(table):
            yield line, fault or {column: text}

    return read


def _json_rows(table: pathlib.Path, check: Check) -> Iterator[Found]:
    try:
        found = json.loads(table.read_text("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(f"{table}:{error.lineno}: malformed JSON: {error}") from error
        yield from _jsonl_rows(table, check)
        return
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, too deep
        raise ValueError(f"{table}: malformed JSON: {error}") from error
    records = found.get("data") if isinstance(found, dict) else found
    if not isinstance(records, list):
        raise ValueError(
            f"{table}: holds {str(found)[:60]!r}; allowed: a list of JSON objects, an object with "
            'one under "data", or an object a line'
        )
    for number, record in enumerate(records, start=1):
        try:
            yield number, _object(f"{table}:{number}", record)
        except RowError as error:
            yield number, error


def _object(where: str, record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise RowError(f"{where}: {json.dumps(record)[:60]!r} is not a JSON object")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: malformed JSON: half a character, {error}") from error
    return record


TEXT_FORMATS: Mapping[str, Reader] = {
    ".csv": csv_rows,
    ".tsv": functools.partial(csv_rows, dialect="excel-tab"),
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
}
