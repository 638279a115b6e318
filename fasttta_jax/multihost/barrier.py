"""A barrier for the background threads of all hosts that does not wait for one that has failed.

Threads must not use collectives or `distributed.gather`, whose order is the main thread's. Here
every host writes "arrived", or why it failed, under a name of its own; a plain barrier would hold
the others until its timeout.
"""

from __future__ import annotations

import itertools
import time

from fasttta_jax.multihost import coordination

ARRIVED = "arrived"
MOST_CHARACTERS = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5

_numbers = itertools.count()


class OtherHostFailed(RuntimeError):
    """Another host failed before it came to the barrier; says which, and why."""


class FailingBarrier:
    """The barriers of a task that all hosts repeat, in the same order each time.

    Every host makes it, and calls `begin`, in the same order.
    """

    def __init__(self) -> None:
        self._folder = f"barrier/{next(_numbers)}"
        self._round = 0
        self._visit = 0
        self._left: list[str] = []
        self._left_before: list[str] = []

    def begin(self) -> None:
        """Starts the next round."""
        for key in self._left_before:  # a slow host may still read those of the last round
            coordination.remove(key)
        self._left, self._left_before = [], self._left
        self._round += 1
        self._visit = 0

    def _leave(self, text: str) -> str:
        """Writes a text at the next barrier, and returns its folder."""
        folder = f"{self._folder}/{self._round}/{self._visit}"
        self._visit += 1
        key = f"{folder}/{coordination.index()}"
        coordination.put(key, text[:MOST_CHARACTERS])
        self._left.append(key)
        return folder

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Returns when all hosts have come here.

        Args:
          key: name of the barrier, for errors.
          timeout_ms: milliseconds to wait for the others.

        Raises:
          OtherHostFailed: a host called `fail` instead.
          TimeoutError: a host came in time neither here nor there; names it.
        """
        if coordination.count() == 1:
            return
        folder = self._leave(ARRIVED)
        deadline = time.monotonic() + timeout_ms / 1000
        pause = FIRST_PAUSE
        while True:
            texts = coordination.texts(folder)
            for host, text in sorted(texts.items()):
                if text != ARRIVED:
                    raise OtherHostFailed(f"host {host}: {text}")
            if len(texts) == coordination.count():
                return
            if time.monotonic() > deadline:
                missing = [host for host in range(coordination.count()) if host not in texts]
                raise TimeoutError(f"hosts {missing} did not come to {key} in {timeout_ms} ms")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def fail(self, error: Exception) -> None:
        """Tells hosts that are, or will be, at this host's next barrier that it does not come."""
        if coordination.count() > 1 and not isinstance(error, OtherHostFailed):
            self._leave(f"{type(error).__name__}: {error}")
