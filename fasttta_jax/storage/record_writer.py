"""Files of ArrayRecord, one record a group, as a reader at random wants them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordWriter

from fasttta_jax.storage.files import StorageError


class RecordWriter(contextlib.AbstractContextManager["RecordWriter"]):
    """Writes the records of a file; on leaving it they are all there.

    Args:
      path: of a new file.

    Raises:
      StorageError: the file cannot be written, also in `write` and on leaving: the library writes
        in the background, and raises a RuntimeError late.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        with self._errors():
            self._writer = ArrayRecordWriter(self._path, "group_size:1")

    def write(self, record: bytes) -> None:
        """Adds a record."""
        with self._errors():
            self._writer.write(record)

    def __exit__(self, *error: object) -> None:
        with self._errors():
            self._writer.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split())[:300]
            raise StorageError(
                f"{self._path} cannot be written ({text}); is there room, and may this process "
                "write there?"
            ) from error
