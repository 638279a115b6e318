"""Log of a run's metrics: TensorBoard events for people, metrics.jsonl for programs.

metrics.jsonl holds one JSON object a line, in the order of writing: {"step": 100, "loss": 0.52}.
Each line is flushed as it is written. JSON knows no NaN or infinity, so both are written as null;
TensorBoard gets the value itself. Audio and images go to TensorBoard only.

A resumed run leaves the same file as one that was never interrupted: lines beyond the step it
resumes from, left by the run that was killed after its last checkpoint, are dropped before the
first write.

In an object store nothing can be appended to: there, files are written in a folder of this machine,
and `flush` uploads metrics.jsonl anew and the events since the last upload as a file of their own.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float

from fasttta_jax.storage.files import AnyPath, as_path, is_remote, storage_errors, write_atomically
from fasttta_jax.storage.whole import write_errors
from fasttta_jax.workdir.events import EVENT_FILES, EventFile

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """The writer of one run, used by one process.

    It is a context manager, and closes at the end. Values are converted on the way in, which waits
    for a device array to be computed: hand over arrays that are ready.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, start_step: int = 0, enabled: bool = True
    ) -> None:
        """Opens `workdir`/metrics.jsonl and an event file next to it.

        Args:
          workdir: folder of the run, made if it is missing, or its URL in an object store.
          start_step: the last step whose results are kept: that of the checkpoint a run resumes
            from. 0 starts a new run and drops whatever an earlier one wrote there.
          enabled: False makes every method do nothing, for all processes of a run but one.

        Raises:
          ValueError: `start_step` is negative, or metrics.jsonl has a broken line before its last.
          StorageError: the object store cannot be read.
          OSError: a file cannot be written; here, and in all methods.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; it must be at least 0")
        self._enabled = enabled
        if not enabled:
            return
        self._remote: AnyPath | None = None
        others: list[str] = []
        if is_remote(workdir):
            self._remote = as_path(workdir)
            self._folder = pathlib.Path(tempfile.mkdtemp(prefix="fasttta_jax_metrics_"))
            with storage_errors(self._remote / METRICS_FILE, "read"):
                if (self._remote / METRICS_FILE).exists():
                    content = (self._remote / METRICS_FILE).read_bytes()
                    (self._folder / METRICS_FILE).write_bytes(content)
                    others = [path.name for path in self._remote.iterdir()]
        else:
            self._folder = pathlib.Path(workdir)
            self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / METRICS_FILE
        _keep_until(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8", newline="\n")
        self._events = EventFile(self._folder, start_step + 1 if start_step else 0, others)

    def write_scalars(self, step: int | np.integer, scalars: Mapping[str, Any]) -> None:
        """Writes named numbers: Python, NumPy or JAX scalars.

        Raises:
          ValueError: a name is "step".
        """
        if not self._enabled:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self._write_line(
            step, {name: x if math.isfinite(x) else None for name, x in values.items()}
        )
        for name, value in values.items():
            self._events.add(self._events.summary.scalar(name, value), int(step))

    def write_text(self, step: int, name: str, text: str) -> None:
        """Writes a text; TensorBoard shows it as Markdown."""
        if not self._enabled:
            return
        self._write_line(step, {name: text})
        self._events.add(self._events.summary.text(name, text), step)

    def write_audio(
        self, step: int, name: str, audio: Float[np.ndarray, " S"], sample_rate: int
    ) -> None:
        """Writes a waveform to TensorBoard; what lies outside [-1, 1] is clipped."""
        if not self._enabled:
            return
        audio = np.clip(np.asarray(audio, np.float32), -1.0, 1.0)
        self._events.add(self._events.summary.audio(name, audio, sample_rate=sample_rate), step)

    def write_image(self, step: int, name: str, image: bytes | np.ndarray) -> None:
        """Writes an image to TensorBoard: the bytes of a PNG, or an array [height, width, 3]."""
        if not self._enabled:
            return
        if isinstance(image, bytes):
            image = np.asarray(PIL.Image.open(io.BytesIO(image)).convert("RGB"))
        summary = self._events.summary.image(name, np.asarray(image), dataformats="HWC")
        self._events.add(summary, step)

    def flush(self) -> None:
        """Hands everything written so far to the operating system, or to the object store.

        A store that cannot be reached does not end the run: a warning says so, and the next flush
        tries again.
        """
        if not self._enabled:
            return
        if self._remote is None:
            self._events.flush()
            return
        self._events.close()
        self._upload(self._remote)
        self._events = EventFile(self._folder, others=[self._events.path.name])

    def _upload(self, remote: AnyPath) -> bool:
        """Uploads what is new; returns whether everything is there now."""
        try:
            (remote / METRICS_FILE).write_bytes((self._folder / METRICS_FILE).read_bytes())
            for path in sorted(self._folder.glob(EVENT_FILES)):
                (remote / path.name).write_bytes(path.read_bytes())
                path.unlink()
        except Exception as error:  # every store has errors of its own
            logger.warning(
                "metrics cannot be written to %s and are still in %s: %s",
                remote,
                self._folder,
                error,
            )
            return False
        return True

    def close(self) -> None:
        """Flushes and closes; closing twice is allowed."""
        if not self._enabled or self._file.closed:
            return
        try:
            with write_errors(self._path):
                self._file.close()
        finally:
            self._events.close()
        if self._remote is not None and self._upload(self._remote):
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_line(self, step: int | np.integer, values: Mapping[str, Any]) -> None:
        if "step" in values:
            raise ValueError('"step" cannot be the name of a value: every line has one already')
        line = json.dumps({"step": int(step), **values}, ensure_ascii=False, allow_nan=False)
        with write_errors(self._path):
            self._file.write(line + "\n")
            self._file.flush()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a metrics.jsonl, or that of the folder `path`; either may be the URL of a store.

    A last line that is not finished (the run is alive, or was killed) is left out, and null becomes
    NaN.

    Raises:
      ValueError: another line is broken.
    """
    path = as_path(path)
    if path.is_dir():
        path = path / METRICS_FILE
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _rows(path)
    ]


def _rows(path: AnyPath) -> list[tuple[bytes, dict[str, Any]]]:
    """The finished lines of a file, raw and decoded."""
    lines = path.read_bytes().split(b"\n")[:-1]  # the last piece is empty, or a torn line
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number} is {line[:80]!r}; expected a JSON object with a step"
            ) from error
        rows.append((line, row))
    return rows


def _keep_until(path: pathlib.Path, start_step: int) -> None:
    """Drops a torn last line, and what is beyond `start_step` (everything if that is 0)."""
    if not path.exists():
        return
    rows = _rows(path) if start_step else []
    kept = b"".join(line + b"\n" for line, row in rows if row["step"] <= start_step)
    if kept != path.read_bytes():
        write_atomically(path, kept)
