"""Small sound files and tables in public layouts, and what a dataset made of them holds."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import tensorflow_datasets as tfds

RATE = 16_000


def tone(frequency: float = 440, seconds: float = 0.2, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def sounds(folder: pathlib.Path, *names: str, rate: int = RATE, seconds: float = 0.2) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone(300 + 50 * index, seconds, rate), rate)


def encoded(audio: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format="FLAC")
    return file.getvalue()


def delimited(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> None:
    """A table with a byte order mark and the line ends of another system."""
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def json_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def hub_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], group: int = 2) -> None:
    """A parquet file as the Hub keeps audio, in groups of a few rows."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=group)


def contents(dataset: pathlib.Path) -> dict[str, dict[str, dict]]:
    source = tfds.builder_from_directory(str(dataset)).as_data_source()
    return {
        split: {
            example["id"].decode(): {
                "audio": example["audio"],
                "captions": [caption.decode() for caption in example["captions"]],
                "labels": json.loads(example["labels"]),
            }
            for example in examples
        }
        for split, examples in source.items()
    }


def skipped_items(dataset: pathlib.Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (dataset / "skipped.jsonl").read_text().splitlines()]


def kept_metadata(dataset: pathlib.Path) -> dict:
    return tfds.builder_from_directory(str(dataset)).info.metadata
