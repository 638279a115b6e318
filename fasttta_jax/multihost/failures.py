"""A host that stops tells the others, which then stop within seconds.

Without this the others wait in a collective until jax notices the silence (100 s), and a host that
runs jax's orderly shutdown after an error waits for all the others (300 s).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jax

from fasttta_jax.multihost import coordination, exit_codes

FAILED, STOPPED = "failed", "stopped"
POLL_SECONDS = 1.0
# An error that all hosts meet, such as a loss that is not finite, is printed by each in this time.
GRACE_SECONDS = 2.0
# Host 0 holds what the others read; two polls, the grace and slow machines fit into this.
LINGER_SECONDS = 10.0
REPORT_SECONDS = 3.0
# Not those of this host alone, such as RESOURCE_EXHAUSTED.
STATUS = re.compile(
    "(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|FAILED_PRECONDITION): "
)

_listening = threading.Event()  # set once all hosts have met
_ending = threading.Event()  # set by the first that ends this process, in order or not


class Failure(NamedTuple):
    """Why a host stopped."""

    host: int
    code: int
    text: str

    def describe(self) -> str:
        """One line that names the host."""
        return f"host {self.host} of {coordination.count()} stopped: {self.text}"


def may_come_from_another_host(error: BaseException) -> bool:
    """Whether jax raised it, or its cause, because a collective or the service broke off.

    Which type jax raises depends on the number of devices; the status in the text does not.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, jax.errors.JaxRuntimeError | ValueError) and STATUS.match(str(link)):
            return True
        link = link.__cause__ or link.__context__
    return False


def first() -> Failure | None:
    """The failure that another host has reported; of several, that of the lowest host."""
    mine = coordination.index()
    reported = {host: text for host, text in coordination.texts(FAILED).items() if host != mine}
    if not reported:
        return None
    host = min(reported)
    return Failure(host, **json.loads(reported[host]))


def wait_for_first(seconds: float) -> Failure | None:
    """As `first`, after waiting for it for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RuntimeError):
            if failure := first():
                return failure
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS / 4)


def listen() -> None:
    """Starts the thread that ends this process soon after another host has failed."""
    _listening.set()
    threading.Thread(target=_listen, name="failures", daemon=True).start()


def stop_listening() -> None:
    """For an orderly end: nothing ends this process from here on."""
    _ending.set()


def _listen() -> None:
    while not _ending.wait(POLL_SECONDS):
        try:
            failure = first()
        except Exception:  # the service is gone, or is shut down in order
            return
        if failure is None:
            continue
        if _ending.wait(GRACE_SECONDS):
            return
        _ending.set()
        print(f"error: {failure.describe()}; this host stops too", file=sys.stderr)
        if failure.code == exit_codes.HUNG:
            faulthandler.dump_traceback(all_threads=True)
        _exit(failure.code)


def leave(code: int, text: str, gone: Sequence[int] = ()) -> NoReturn:
    """Ends this process at once, without jax's shutdown, and tells the other hosts why.

    Host 0 first waits until the others have read it, for at most 10 s.

    Args:
      code: one of `exit_codes`; the other hosts end with it too.
      text: why; the other hosts print it.
      gone: hosts that will not read it.
    """
    _ending.set()
    _exit(code, gone, json.dumps({"code": code, "text": text}))


def _exit(code: int, gone: Sequence[int] = (), failure: str | None = None) -> NoReturn:
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():  # reading processes
            child.kill()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    if _listening.is_set() and coordination.count() > 1:
        # In a thread, because a call to a host 0 that is stopped does not return.
        reporter = threading.Thread(target=_report, args=(gone, failure), daemon=True)
        reporter.start()
        reporter.join(LINGER_SECONDS + 1 if coordination.index() == 0 else REPORT_SECONDS)
    os._exit(code)


def _report(gone: Sequence[int], failure: str | None) -> None:
    with contextlib.suppress(RuntimeError):
        if failure is not None:
            coordination.put(f"{FAILED}/{coordination.index()}", failure)
        coordination.put(f"{STOPPED}/{coordination.index()}", "")
        if coordination.index() == 0:
            _linger(coordination.count() - len(gone))


def _linger(num_hosts: int) -> None:
    """On host 0: waits until `num_hosts` have stopped."""
    deadline = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < deadline:
        if len(coordination.texts(STOPPED)) >= num_hosts:
            return
        time.sleep(POLL_SECONDS / 4)
