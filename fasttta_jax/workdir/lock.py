"""One training a workdir: a lock that ends with its process, and a note that says whose it is.

    .training.lock    locked by the operating system while the first host of a job trains
    .training.json    its host, process and time of start, for whom the lock keeps out

A process that was killed leaves both behind; the lock is free then, whatever the note says. Object
stores have no locks, so that a workdir there is not guarded.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator

import filelock

from fasttta_jax.multihost import coordination, distributed
from fasttta_jax.storage.files import AnyPath, is_remote, storage_errors, write_json
from fasttta_jax.workdir.folder import WorkdirError

LOCK_FILE = ".training.lock"
OWNER_FILE = ".training.json"


@contextlib.contextmanager
def only_training(workdir: AnyPath) -> Iterator[None]:
    """Keeps other jobs from training in a workdir; every host of the job calls it.

    Raises:
      WorkdirError: another one is training there; names its host and process.
    """
    lock = filelock.FileLock(os.fspath(workdir / LOCK_FILE))
    guarded = not is_remote(workdir)
    if guarded:
        distributed.on_first_host(_take, lock, workdir)
    try:
        yield
    finally:
        if guarded and coordination.index() == 0:
            with contextlib.suppress(OSError):
                (workdir / OWNER_FILE).unlink(missing_ok=True)
            lock.release()


def _take(lock: filelock.BaseFileLock, workdir: AnyPath) -> None:
    with storage_errors(workdir / LOCK_FILE, "locked"):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise WorkdirError(
                f"{workdir} is in use: {_owner(workdir)} trains there. Two trainings would remove "
                "each other's checkpoints; wait for it, stop it, or choose another workdir"
            ) from None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
        write_json(workdir / OWNER_FILE, owner)


def _owner(workdir: AnyPath) -> str:
    try:
        found = json.loads((workdir / OWNER_FILE).read_bytes())
        return f"process {found['process']} on host {found['host']}, since {found['since']},"
    except (OSError, ValueError, KeyError, TypeError):  # it has begun just now
        return "another process"
