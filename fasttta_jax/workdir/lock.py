"""One training a workdir: a lock that ends with its process, a note that changes while it lives.

    .training.lock    locked by the operating system while the first host of a job trains
    .training.json    its host, process and time of start, and a number that counts on

A lock that is held decides at once, and so does one that is free, for a note of the same machine.
Object stores have no locks, and those of some file systems hold on one host alone. There the note
decides: a training whose number counts on is alive, and one whose number stands still for
`STILL_SECONDS` of the clock of whoever waits is gone. The clocks of two hosts are never compared.

Of two that begin at the same moment, and of a training that stood still and was taken for gone, one
finds the other's note in place of its own: it saves nothing more, and ends.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import filelock

from fasttta_jax.multihost import distributed
from fasttta_jax.storage.files import AnyPath, is_remote, storage_errors, write_json
from fasttta_jax.storage.locks import locked
from fasttta_jax.storage.processes import machine
from fasttta_jax.workdir.folder import WorkdirError

logger = logging.getLogger(__name__)

LOCK_FILE = ".training.lock"
OWNER_FILE = ".training.json"
BEAT_SECONDS = 5.0
STILL_SECONDS = 75.0
"""Shared file systems may show a new file a minute late."""


class Guard:
    """Says that a training lives, and learns when another has taken its place.

    Args:
      workdir: of the run.
    """

    def __init__(self, workdir: AnyPath) -> None:
        self._workdir = workdir
        self._note = workdir / OWNER_FILE
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._own = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
        self._own |= {"machine": machine(), "token": secrets.token_hex(8), "beat": 0}
        self._successor: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="training_note", daemon=True)

    def begin(self) -> None:
        """Writes the note, and counts on; for the first host."""
        write_json(self._note, self._own)
        self._thread.start()

    def end(self) -> None:
        """Takes the note away, unless it is another's."""
        self._ended.set()
        self._thread.join()
        if self._successor is None:
            with contextlib.suppress(Exception):  # every object store has errors of its own
                self._note.unlink(missing_ok=True)

    def check(self) -> None:
        """Every host calls it, before anything is written that another training might write.

        Raises:
          WorkdirError: another training has taken the workdir.
        """
        error = None
        if self._successor is not None:
            error = WorkdirError(
                f"{self._workdir} was taken by {_owner(self._successor)} to train there: this "
                "process had shown no sign of life, or both began at the same moment. It stops "
                "without saving, since both would remove each other's checkpoints"
            )
        distributed.agree_ok(error)

    def _live(self) -> None:
        can_write = True
        while not self._ended.wait(BEAT_SECONDS):
            found = _read(self._note)
            if found is not None and found.get("token") != self._own["token"]:
                self._successor = found
                logger.error("%s was taken by %s to train there", self._workdir, _owner(found))
                return
            self._own["beat"] += 1
            try:
                write_json(self._note, self._own)
                can_write = True
            except Exception as error:  # every object store has errors of its own
                if can_write:
                    logger.warning("%s cannot be kept up to date: %s", self._note, error)
                can_write = False


@contextlib.contextmanager
def only_training(workdir: AnyPath) -> Iterator[Guard]:
    """Keeps other jobs from training in a workdir; every host of the job calls it.

    Raises:
      WorkdirError: another one is training there; names its host and process.
    """
    guard = Guard(workdir)
    with contextlib.ExitStack() as stack:
        distributed.on_first_host(_take, workdir, guard, stack)
        yield guard


def _take(workdir: AnyPath, guard: Guard, stack: contextlib.ExitStack) -> None:
    has_lock = False
    with storage_errors(workdir / LOCK_FILE, "locked"):
        if not is_remote(workdir):
            try:
                has_lock = stack.enter_context(locked(workdir / LOCK_FILE, timeout=0))
            except filelock.Timeout:
                raise _in_use(workdir, _read(workdir / OWNER_FILE)) from None
        found = _read(workdir / OWNER_FILE)
        if found is not None and not (has_lock and _is_of_this_machine(found)):
            logger.info(
                "%s may be in use by %s; watching its note for up to %g s",
                workdir,
                _owner(found),
                STILL_SECONDS,
            )
            if _lives(workdir / OWNER_FILE, found):
                raise _in_use(workdir, found)
            logger.info("%s is gone", _owner(found))
        guard.begin()
        stack.callback(guard.end)


def _lives(note: AnyPath, found: dict[str, Any]) -> bool:
    """Whether a note changes while one waits; one that is taken away has ended in order."""
    deadline = time.monotonic() + STILL_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 2)
        now = _read(note)
        if now != found:
            return now is not None
    return False


def _in_use(workdir: AnyPath, found: dict[str, Any] | None) -> WorkdirError:
    return WorkdirError(
        f"{workdir} is in use by {_owner(found)}. Two trainings would remove each other's "
        "checkpoints; wait for it, stop it, or choose another workdir"
    )


def _read(note: AnyPath) -> dict[str, Any] | None:
    """The note; None where there is none that can be read."""
    try:
        found = json.loads(note.read_bytes())
    except Exception:  # it has begun just now, or of an object store
        return None
    return found if isinstance(found, dict) else None


def _owner(found: dict[str, Any] | None) -> str:
    if found is None or not {"host", "process", "since"} <= found.keys():
        return "another process"
    return f"process {found['process']} on host {found['host']}, since {found['since']}"


def _is_of_this_machine(found: dict[str, Any]) -> bool:
    """Earlier versions noted the name of the host alone."""
    same_host = found.get("host") == socket.gethostname()
    return same_host and found.get("machine", machine()) == machine()
