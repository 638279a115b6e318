"""Items made ahead: by a thread of this process, and by processes that read for it.

What an accelerator waits for least is what lies on it already. A thread takes items from an
iterator and keeps some of them ready; the processes that may stand behind that iterator are set up
here too.
"""

from __future__ import annotations

import collections
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
CLOSE_SECONDS = 60.0


class _Shared(Generic[T]):
    """What the thread and its consumer share. The thread does not know the consumer, so that one
    which is forgotten without being closed is collected, and closed then.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.items: collections.deque[T] = collections.deque()
        self.error: BaseException | None = None
        self.closed = False


def _produce(shared: _Shared[T], make: Callable[[], Generator[T, None, None]], depth: int) -> None:
    try:
        items = make()
        try:
            while True:
                with shared.changed:
                    shared.changed.wait_for(lambda: shared.closed or len(shared.items) < depth)
                    if shared.closed:
                        return
                item = next(items)
                with shared.changed:
                    shared.items.append(item)
                    shared.changed.notify_all()
        finally:
            items.close()
    except BaseException as error:  # goes to the consumer, an end of the items among others
        with shared.changed:
            shared.error = error
            shared.changed.notify_all()


def _close(shared: _Shared[T], thread: threading.Thread) -> None:
    with shared.changed:
        shared.closed = True
        shared.items.clear()
        shared.changed.notify_all()
    if thread is not threading.current_thread():
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            logger.warning("the reading thread did not end within %.0f s", CLOSE_SECONDS)


class Prefetch(Generic[T]):
    """An iterator whose items are made ahead by a thread.

    Args:
      make: makes the generator of the items; called, used and closed in the thread.
      depth: how many items may wait; while so many do, none is made.
    """

    def __init__(self, make: Callable[[], Generator[T, None, None]], depth: int) -> None:
        self._shared: _Shared[T] = _Shared()
        self._waited = 0.0
        self._thread = threading.Thread(
            target=_produce, args=(self._shared, make, depth), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, _close, self._shared, self._thread)
        self._thread.start()

    @property
    def waited(self) -> float:
        """Seconds that `next` has been waiting for an item, in all."""
        return self._waited

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        """The next item.

        Raises:
          Exception: whatever the thread met, with its traceback; every time from then on.
          ValueError: it is closed.
        """
        shared = self._shared
        start = time.monotonic()
        with shared.changed:
            shared.changed.wait_for(lambda: shared.items or shared.error or shared.closed)
            self._waited += time.monotonic() - start
            if shared.closed:
                raise ValueError("the iterator is closed; make a new one")
            if not shared.items:
                assert shared.error is not None
                raise shared.error.with_traceback(shared.error.__traceback__)
            item = shared.items.popleft()
            shared.changed.notify_all()
        return item

    def close(self) -> None:
        """Ends the thread after the item that it is at; closing twice is allowed."""
        self._finalizer()


def start_reader(index: int, count: int) -> None:
    """Sets up a reading process; to be called in it before it reads.

    It computes on the CPU alone, whose accelerators belong to the process it reads for. A scheduler
    that ends a job sends its signals to every process: the one that it reads for saves first, so
    only that one ends it. If that one is killed, it ends too.

    Args:
      index: which of the reading processes.
      count: how many there are.
    """
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
