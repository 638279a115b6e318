"""Rows of a table, whatever it is kept as: text (`fasttta_jax.storage.rows`) or parquet.

A column of parquet that embeds files, as those of the Hub do, is read as their place,
"FILE.parquet::ROW" (`data.common.audio_files`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping

from data.common.audio_files import SEPARATOR, embedding_column, open_parquet
from fasttta_jax.storage.rows import TEXT_FORMATS, Check, Found, Reader


def _parquet_rows(table: pathlib.Path, check: Check) -> Iterator[Found]:
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


FORMATS: Mapping[str, Reader] = {**TEXT_FORMATS, ".parquet": _parquet_rows}
