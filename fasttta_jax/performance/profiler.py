"""A trace of a window of steps, for TensorBoard's profiler, xprof or Perfetto."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

logger = logging.getLogger(__name__)


class ProfileWindow(NamedTuple):
    """Steps to trace, from `first` to `last`, both of them included."""

    first: int
    last: int


def parse_window(text: str) -> ProfileWindow:
    """ "10:14" as a window of five steps.

    Raises:
      ValueError: it is not FIRST:LAST with 1 <= FIRST <= LAST.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(
            f"--profile is {text!r}; allowed: FIRST:LAST, the steps to trace, such as 10:14"
        )
    return ProfileWindow(int(first), int(last))


class Profiler:
    """Traces the steps of a window; each host writes its own trace.

    Args:
      window: which steps; None traces nothing.
      open_folder: makes a context whose local folder takes the trace.
    """

    def __init__(
        self,
        window: ProfileWindow | None,
        open_folder: Callable[[], AbstractContextManager[pathlib.Path]],
    ) -> None:
        self._window = window
        self._open_folder = open_folder
        self._tracing = contextlib.ExitStack()
        self._is_tracing = False

    def step(self, step: int) -> AbstractContextManager[object]:
        """A context for one step; the first step of the window, or of a run that resumes within
        it, begins the trace."""
        window = self._window
        if window is None or not window.first <= step <= window.last:
            return contextlib.nullcontext()
        if not self._is_tracing:
            folder = self._tracing.enter_context(self._open_folder())
            self._tracing.enter_context(jax.profiler.trace(str(folder)))
            self._is_tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, wait: Callable[[], object]) -> None:
        """Ends the trace with the window; `wait` returns when the devices are done."""
        if self._is_tracing and self._window and step >= self._window.last:
            wait()
            self.close()
            logger.info("steps %d to %d are traced; xprof or TensorBoard shows them", *self._window)

    def close(self) -> None:
        """Ends a trace that is under way."""
        self._tracing.close()
        self._is_tracing = False
