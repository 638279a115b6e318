"""SIGTERM and Ctrl-C, turned into one step after which every host saves and stops.

A signal that reaches one host is known to all: jax's preemption service lets them agree on the
first step that none has passed. On one host without jax.distributed our own handler keeps the
signal until the step is done.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from jax.experimental import multihost_utils

from fasttta_jax.multihost import coordination

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """The run was told to stop and has saved its state; the same command goes on from there.

    Attributes:
      signal: what told it, "SIGTERM" or "SIGINT".
    """

    def __init__(self, step: int, signal: str = "SIGTERM") -> None:
        super().__init__(
            f"stopped by {signal} after step {step}, which is saved; start the same command to go "
            "on"
        )
        self.signal = signal


class Preemption:
    """Watches for SIGTERM and SIGINT while its context is entered.

    With several hosts jax's own handler is in place from `distributed.start()` on, and a SIGTERM
    that comes before the first step counts too; SIGINT is passed on to it. A second SIGINT is
    Python's again: it ends the process without saving.

    Attributes:
      signal: the one that came to this process; "SIGTERM" where none did.

    Raises:
      ValueError: entered on one host outside the main thread, where Python allows no handler.
    """

    def __init__(self) -> None:
        self.signal = "SIGTERM"
        self._received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        in_main_thread = threading.current_thread() is threading.main_thread()
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell has it behind "&"
        if (in_main_thread or not coordination.is_running()) and not ignored:
            self._handle(signal.SIGINT)
        if not coordination.is_running():
            self._handle(signal.SIGTERM)
        return self

    def _handle(self, number: int) -> None:
        self._previous[number] = signal.signal(number, self._receive)

    def _restore(self, number: int) -> None:
        # None stands for a handler that is not Python's, which cannot be put back.
        previous = self._previous.pop(number)
        signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in list(self._previous):
            self._restore(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            self._restore(number)
            logger.warning("Ctrl-C: the run saves after this step and stops; again: at once")
            if coordination.is_running():
                os.kill(os.getpid(), signal.SIGTERM)
        else:
            logger.warning("SIGTERM: the run stops after this step")
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether `step` is the one after which all hosts save and stop.

        To be asked by every host after every step, in order: it is true at one step only.
        Takes less than a microsecond; once a signal has come, the hosts wait here for each other
        briefly.
        """
        if coordination.is_running():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
