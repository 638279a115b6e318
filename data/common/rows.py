"""Rows of a table, whatever it is kept as: CSV, TSV, JSON Lines, JSON or parquet.

Text is UTF-8, with a byte order mark or without, and lines may end as on any system. A .json file
holds a list of objects, alone or as "data" of an object, or it is JSON Lines by another name. A
column of parquet that embeds files, as those of the Hub do, is read as their place,
"FILE.parquet::ROW" (`data.common.audio_files`).
"""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data.common.audio_files import SEPARATOR, embedding_column, open_parquet

Row = tuple[int, Mapping[str, Any]]
"""Line, or number of the row, and the columns."""
Check = Callable[[str, Sequence[str]], object]
"""Raises where a header, of which it is told the place and the columns, lacks something."""


def read_rows(
    table: pathlib.Path, check: Check = lambda where, columns: None, *, formats: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of a table one after the other; blank lines of text are passed over.

    Args:
      table: the file.
      check: called with the columns of a CSV or TSV before its first row.
      formats: suffixes that may be; those of `FORMATS` where there are none.

    Raises:
      ValueError: the table is malformed; names the line.
      OSError: it cannot be read.
    """
    allowed = formats or tuple(FORMATS)
    if table.suffix not in allowed:
        raise ValueError(f"{table}: ends in {table.suffix!r}; allowed: {', '.join(allowed)}")
    try:
        yield from FORMATS[table.suffix](table, check)
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


def _parquet_rows(table: pathlib.Path, check: Check) -> Iterator[Row]:
    file = open_parquet(table)
    embedding = embedding_column(file)
    check(f"{table}:1", file.schema_arrow.names)
    columns = [column for column in file.schema_arrow.names if column != embedding]
    number = 0
    for batch in file.iter_batches(columns=columns):
        for record in batch.to_pylist():
            row = json.loads(json.dumps(record, default=str))  # a date and the like as text
            if embedding is not None:
                row[embedding] = f"{table.absolute()}{SEPARATOR}{number}"
            number += 1
            yield number, row


FORMATS: Mapping[str, Callable[[pathlib.Path, Check], Iterator[Row]]] = {
    ".csv": functools.partial(_csv_rows, dialect="excel"),
    ".tsv": functools.partial(_csv_rows, dialect="excel-tab"),
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}
