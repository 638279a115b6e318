"""Which process left a file: its number, and a name for the machine that counts its processes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import socket

BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")
PROCESS_NUMBERS = pathlib.Path("/proc/self/ns/pid")


@functools.cache
def machine() -> str:
    """A name of 12 characters for this machine since it was started, or for this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(BOOT_ID.read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink(PROCESS_NUMBERS))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def is_gone(process: int, of_machine: str) -> bool:
    """Whether a process has ended; False where that cannot be known, as of other machines."""
    if of_machine != machine():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        pass
    return False
