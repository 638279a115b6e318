"""Records are all in the file, or an error says that they are not."""

from __future__ import annotations

import pathlib

import pytest
from array_record.python.array_record_module import ArrayRecordReader

from fasttta_jax.storage.files import StorageError
from fasttta_jax.storage.record_writer import RecordWriter


def test_records_are_read_back(tmp_path: pathlib.Path) -> None:
    with RecordWriter(tmp_path / "records") as writer:
        for record in (b"one", b"two"):
            writer.write(record)
    assert ArrayRecordReader(str(tmp_path / "records")).read([0, 1]) == [b"one", b"two"]


def test_a_file_that_cannot_be_written_is_named() -> None:
    """A full disk, as Linux has one to try."""
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(StorageError, match="/dev/full cannot be written"),
        RecordWriter("/dev/full") as writer,
    ):
        writer.write(bytes(100_000))
