"""SIGTERM, turned into one step after which every host saves and stops.

A signal that reaches one host is known to all: jax's preemption service lets them agree on the
first step that none has passed. On one host without jax.distributed our own handler keeps the
signal until the step is done.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType
from typing import Any

from jax.experimental import multihost_utils

from fasttta_jax.multihost import coordination

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """The run was told to stop and has saved its state; the same command goes on from there."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"stopped by SIGTERM after step {step}, which is saved; start the same command to go on"
        )


class Preemption:
    """Watches for SIGTERM while its context is entered.

    With several hosts jax's own handler is in place from `distributed.start()` on, and a signal
    that comes before the first step counts too. SIGINT is left to Python.

    Raises:
      ValueError: entered on one host outside the main thread, where Python allows no handler.
    """

    def __init__(self) -> None:
        self._received = False
        self._handles = False
        self._previous: Any = None

    def __enter__(self) -> Preemption:
        if not coordination.is_running():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._handles = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handles:
            # None stands for a handler that is not Python's, which cannot be put back.
            previous = signal.SIG_DFL if self._previous is None else self._previous
            signal.signal(signal.SIGTERM, previous)
            self._handles = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        logger.warning("SIGTERM: the run stops after this step")

    def reached(self, step: int) -> bool:
        """Whether `step` is the one after which all hosts save and stop.

        To be asked by every host after every step, in order: it is true at one step only.
        Takes less than a microsecond; once a signal has come, the hosts wait here for each other
        briefly.
        """
        if coordination.is_running():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
