"""What is left of a save when its arrays are under way: to see that they are there, and tidy up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence

from fasttta_jax.multihost import coordination
from fasttta_jax.multihost.barrier import FailingBarrier
from fasttta_jax.workdir import checksums
from fasttta_jax.workdir.checkpoint_folder import (
    CheckpointFolder,
    DamagedCheckpoint,
    one_line,
    shorten,
)


class Finish(threading.Thread):
    """Waits for a save's writes; the first host then reads it back and removes old steps.

    The files were read once when their checksums were taken, so that contents are not read again:
    all files must have their sizes, and all arrays must open.

    Args:
      wait: returns when everything is committed.
      barrier: where other hosts learn of an error.
      folder: of the checkpoints.
      step: that is saved.
      leaves: what it must hold, dtype and shape by name.
      stored: reads what it holds.
      old_steps: that are removed when it is whole.

    Attributes:
      error: what went wrong; a step that cannot be read back is moved aside.
    """

    def __init__(
        self,
        wait: Callable[[], None],
        barrier: FailingBarrier,
        folder: CheckpointFolder,
        step: int,
        leaves: Mapping[str, str],
        stored: Callable[[], Mapping[str, str]],
        old_steps: Sequence[int],
    ) -> None:
        super().__init__(name="checkpoint_finish")
        self.error: Exception | None = None
        self.old_steps = list(old_steps)
        self._wait, self._barrier = wait, barrier
        self._folder, self._step = folder, step
        self._leaves, self._stored = leaves, stored

    def run(self) -> None:
        try:
            self._wait()
            if coordination.index() == 0:
                self._read_back()
        except Exception as error:
            self.error = error
            self._barrier.fail(error)
            return
        if coordination.index() == 0:
            self._folder.remove(self.old_steps)

    def _read_back(self) -> None:
        try:
            found, wanted = self._stored(), self._leaves
            fault = shorten(
                checksums.wrong_sizes(self._folder.step(self._step))
                + [
                    f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
                    for name in sorted(wanted.keys() | found.keys())
                    if found.get(name) != wanted.get(name)
                ]
            )
        except Exception as error:
            fault = one_line(error)
        if not fault:
            return
        with contextlib.suppress(Exception):
            self._folder.set_aside(self._step, fault)
        raise DamagedCheckpoint(f"it was written, but cannot be read back: {fault}")
