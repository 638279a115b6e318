"""Files of ArrayRecord, one record a group, as a reader at random wants them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from fasttta_jax.storage.files import StorageError
from fasttta_jax.storage.whole import final_name

READ_AT_ONCE = 64
"""Records that are in memory while a file is read back."""


class RecordWriter(contextlib.AbstractContextManager["RecordWriter"]):
    """Writes the records of a file; on leaving it they are all there, and have been read back.

    Args:
      path: of a new file.

    Raises:
      StorageError: the file cannot be written, also in `write` and on leaving: the library writes
        in the background, and raises a RuntimeError late.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._name = final_name(path)
        self._count = 0
        with self._errors():
            self._writer = ArrayRecordWriter(self._path, "group_size:1")

    def write(self, record: bytes) -> None:
        """Adds a record."""
        with self._errors():
            self._writer.write(record)
        self._count += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._errors():
            self._writer.close()
        if kind is None:
            self._read_back()

    def _read_back(self) -> None:
        """The library checks a hash of its own as it reads."""
        try:
            reader = ArrayRecordReader(self._path)
            found = reader.num_records()
            for start in range(0, found, READ_AT_ONCE):
                reader.read(start, min(start + READ_AT_ONCE, found))
            fault = "" if found == self._count else f"it holds {found} of {self._count} records"
        except (RuntimeError, OSError) as error:
            fault = " ".join(str(error).split()).replace(self._path, self._name)[:300]
        if fault:
            raise StorageError(
                f"{self._name} was written, but cannot be read back ({fault}); is its disk "
                "in order?"
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split()).replace(self._path, self._name)[:300]
            raise StorageError(
                f"{self._name} cannot be written ({text}); is there room, and may this process "
                "write there?"
            ) from error
