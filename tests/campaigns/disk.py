"""A small disk of its own, which can be full: a tmpfs where this process may mount one.

Elsewhere, and in the suite, the stand-in is a limit on the size of files: whatever writes beyond it
gets an OSError, though another number of it, and the folder keeps its room for small files.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import subprocess
from collections.abc import Iterator

FILLER = ".filler"
MARK = ".disk_of_a_campaign"
"""In the disks that may be filled."""
SIZE = 128 * 2**20


@contextlib.contextmanager
def mounted(folder: pathlib.Path, size: int = SIZE) -> Iterator[bool]:
    """A folder that is a disk of so many bytes, empty; says whether it is, or only a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(folder):  # of a campaign that was killed
        subprocess.run(["umount", "--lazy", folder], check=False)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True)
    except FileNotFoundError:
        yield False
        return
    try:
        if done.returncode == 0:
            (folder / MARK).touch()
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=False)


def _disk_of(folder: pathlib.Path) -> pathlib.Path | None:
    """The small disk that a folder lies on."""
    return next((one for one in (folder, *folder.parents) if (one / MARK).exists()), None)


def fill(folder: pathlib.Path, slack: int, process: int = 0) -> None:
    """Leaves so many bytes of the disk that a folder lies on.

    Args:
      folder: on a disk of `mounted`, or anywhere.
      slack: bytes.
      process: which, where there is no such disk, can write no file larger than that from now on; 0
        for this one.

    Raises:
      ProcessLookupError: that process has ended.
    """
    mount = _disk_of(folder)
    if mount is None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (slack, hard))
        return
    descriptor = os.open(mount / FILLER, os.O_WRONLY | os.O_CREAT)
    try:
        while (size := _room(mount) - slack) > 0:
            # Others write at the same time, and may have taken some of it.
            with contextlib.suppress(OSError):
                offset = os.fstat(descriptor).st_size
                os.posix_fallocate(descriptor, offset, size)
    finally:
        os.close(descriptor)


def _room(mount: pathlib.Path) -> int:
    status = os.statvfs(mount)
    return status.f_bavail * status.f_frsize


def empty(folder: pathlib.Path) -> None:
    """Takes away what filled the disk of a folder."""
    mount = _disk_of(folder)
    if mount is not None:
        (mount / FILLER).unlink(missing_ok=True)
