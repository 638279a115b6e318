"""Event files of TensorBoard, whose errors are those of the file that cannot be written.

tensorboardX's own writer hands events to a thread; where that ends in an error, as on a full disk,
nobody is told, and the run waits forever once its queue is full. Here a thread writes them as well,
and what goes wrong there is raised by the next call.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import pathlib
import re
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

from fasttta_jax.storage.whole import write_errors

EVENT_FILES = "events.out.tfevents.*"


class EventFile:
    """A new event file of a folder.

    TensorBoard reads the files of a folder in order of their names, which begin with a time. This
    one's is later than those of all that are there, whatever the clock of this host says.

    Args:
      folder: that exists.
      purge_step: what earlier files say of this step and those behind it does not count.
      others: names of event files that lie elsewhere and will be beside this one.

    Attributes:
      summary: tensorboardX's functions that make summaries.

    Raises:
      OSError: the file cannot be written; here, and in all methods.
    """

    def __init__(
        self, folder: pathlib.Path, purge_step: int | None = None, others: Iterable[str] = ()
    ) -> None:
        event_pb2, record_writer, self.summary = _tensorboard()
        self._event = event_pb2.Event
        names = [*others, *(path.name for path in folder.glob(EVENT_FILES))]
        found = (re.match(r"events\.out\.tfevents\.(\d+)", name) for name in names)
        times = [int(match[1]) + 1 for match in found if match]
        name = f"{max([int(time.time()), *times])}.{socket.gethostname()}"
        self.path = folder / EVENT_FILES.replace("*", name)
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "events")
        with write_errors(self.path):
            self._file = record_writer.RecordWriter(str(self.path))
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step=purge_step, session_log=start)

    def add(self, summary: Any, step: int) -> None:
        """Writes what a function of `summary` returned, soon."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._add(summary=summary, step=step)

    def _add(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._pending.append(self._thread.submit(self._write, event))

    def _write(self, event: Any) -> None:
        with write_errors(self.path):
            self._file.write(event.SerializeToString())

    def flush(self) -> None:
        """Returns when everything so far is on the disk."""
        while self._pending:
            self._pending.popleft().result()
        with write_errors(self.path):
            self._file.flush()

    def close(self) -> None:
        """Flushes, and closes whether or not that can be done."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(OSError):  # said by `flush`
                self._file.close()


def _tensorboard() -> tuple[Any, Any, Any]:
    """Parts of tensorboardX, kept from importing torch, which takes seconds, where it is there."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # "not installed"
    try:
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_pb2, record_writer, summary
