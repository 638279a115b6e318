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


def test_a_file_without_records_is_right(tmp_path: pathlib.Path) -> None:
    with RecordWriter(tmp_path / "records"):
        pass
    assert ArrayRecordReader(str(tmp_path / "records")).num_records() == 0


def test_records_that_cannot_be_read_back_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records"

    def damaged(name: str) -> ArrayRecordReader:
        content = bytearray(path.read_bytes())
        content[200:300] = bytes(100)  # in the first chunk
        path.write_bytes(content)
        return ArrayRecordReader(name)

    monkeypatch.setattr("fasttta_jax.storage.record_writer.ArrayRecordReader", damaged)
    with (
        pytest.raises(StorageError, match=f"{path} was written, but cannot be read back"),
        RecordWriter(path) as writer,
    ):
        writer.write(bytes(range(256)) * 100)
