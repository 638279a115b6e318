"""Locks of files, and what happens where the file system has none."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

import filelock

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems say that cannot lock, such as NFS without a lock service."""


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], timeout: float = -1) -> Iterator[bool]:
    """A lock of the operating system, let go at the end, however the process ends.

    Args:
      path: file that is locked, made where it is missing.
      timeout: seconds to wait for another process; -1 for as long as it takes.

    Yields:
      Whether it is locked: False, with a warning, where the file system has no locks.

    Raises:
      filelock.Timeout: another process has it.
      OSError: the file cannot be written.
    """
    # Its files that stand for locks stay behind where a process is killed on another host.
    lock = filelock.FileLock(os.fspath(path), timeout=timeout, fallback_to_soft=False)
    try:
        lock.acquire()
        has_lock = True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        has_lock = False
        logger.warning("%s cannot be locked: %s", path, error.strerror)
    try:
        yield has_lock
    finally:
        if has_lock:
            lock.release()
