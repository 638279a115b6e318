"""A command that is struck by itself, at the n-th time that it touches a file of a folder.

    python -m tests.campaigns.struck FOLDER N BLOW LOG -- train.py --workdir=...

Blows that come from outside, at a random time, seldom meet the moments that matter. Python reports
what it is about to do (`sys.addaudithook`): opening a file to write, making, renaming, linking and
removing. Each of them below FOLDER counts; before the N-th, BLOW is done. LOG gets the count at the
end of the process, for the next N to be drawn from. With N = 0 nothing happens.

    kill, terminate     the process gets SIGKILL or SIGTERM
    fill                the disk is full from then on: see `disk`
    remove              one unfinished file or folder is gone
"""

from __future__ import annotations

import atexit
import os
import pathlib
import random
import shutil
import signal
import sys
from typing import Any

from tests.campaigns import disk
from tests.support import commands

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TEMPORARY = (".tmp", ".orbax-checkpoint-tmp", "incomplete.")
"""What names of unfinished files and folders hold."""


def unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files and folders below a folder that are still being written, in order of name."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if any(mark in path.name for mark in TEMPORARY) and not path.name.startswith("records.")
    ]


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder, if it is still there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: pathlib.Path, rng: random.Random) -> pathlib.Path | None:
    """Removes one of what is unfinished; None where nothing is."""
    if not (found := unfinished(folder)):
        return None
    remove(chosen := rng.choice(found))
    return chosen


class Striker:
    """Counts what happens below a folder, and strikes once."""

    def __init__(self, folder: str, number: int, blow: str, log: str) -> None:
        self._beginning = os.path.abspath(folder) + os.sep
        self._number = number
        self._blow = blow
        self._log = log
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook."""
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITES:
                return
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"):
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if os.path.abspath(os.fsdecode(path)).startswith(self._beginning):
            self.count += 1
            if self.count == self._number:
                self._strike()

    def _strike(self) -> None:
        self.write(struck=True)
        if self._blow == "fill":
            disk.fill(pathlib.Path(self._beginning), slack=self._number * 997 % 2**15)
        elif self._blow == "remove":
            remove_unfinished(pathlib.Path(self._beginning), random.Random(self._number))
        else:
            number = signal.SIGKILL if self._blow == "kill" else signal.SIGTERM
            os.kill(os.getpid(), number)

    def write(self, struck: bool = False) -> None:
        """Notes the count; not below the folder."""
        pathlib.Path(self._log).write_text(f"{self.count} {int(struck)}")


def main() -> None:
    folder, number, blow, log, _, *command = sys.argv[1:]
    striker = Striker(folder, int(number), blow, log)
    sys.addaudithook(striker)
    if not striker._number:
        atexit.register(striker.write)
    commands.execute(command)


if __name__ == "__main__":
    main()
