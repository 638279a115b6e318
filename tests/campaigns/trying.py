"""One input of a campaign: what may come of it, and what counts as a failure.

Allowed are the right result, a counted skip, and one clear error: of the classes that commands turn
into a line that begins with `error:`, short enough for a screen, naming the file or field. Failures
are all other exceptions, results that are wrong without a word, hangs, too much memory, a changed
neighbour, and code of an input that was run.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple

from absl import flags

RIGHT, SKIPPED, REFUSED, FAILED = "right", "skipped", "refused", "failed"
Kind = Literal["right", "skipped", "refused", "failed"]

SECONDS = 20.0
"""Longer is a hang; the slowest input takes about one."""
MEMORY = 6 * 2**30
"""Bytes that an input may ask for."""
SCREEN = 3000
"""Characters of the longest message."""
EXPECTED = (ValueError, OSError, RuntimeError, FloatingPointError, flags.Error)
"""What commands turn into one line."""
UNEXPLAINED = (UnicodeError, json.JSONDecodeError, RecursionError, NotImplementedError)
"""Subclasses of those whose texts are for programmers."""
EXECUTIONS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
REPOSITORY = pathlib.Path(__file__).parents[2]


class Refused(Exception):
    """The input was refused, with a clear error."""


class Wrong(Exception):
    """The input led to something that may not be."""


class Hang(BaseException):
    """The input took too long; no part of the code should catch it."""


class Outcome(NamedTuple):
    """What came of an input.

    Attributes:
      kind: of outcome.
      fault: of a failure, a line that is equal for equal faults.
      detail: the error or the traceback.
      seconds: that it took.
    """

    kind: Kind
    fault: str = ""
    detail: str = ""
    seconds: float = 0.0


_executed: list[str] = []
_watching = False


def _audit(event: str, arguments: Any) -> None:
    if _watching and event in EXECUTIONS:
        _executed.append(f"{event} {arguments!r:.200}")


@contextlib.contextmanager
def nothing_runs() -> Iterator[None]:
    """A block in which no program is started, and no plain unpickler looks up a name."""
    global _watching
    if not getattr(sys, "_fuzz_audit", False):
        sys.addaudithook(_audit)  # for good: Python has no way to take one away
        sys._fuzz_audit = True  # type: ignore[attr-defined]
    _executed.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    if _executed:
        raise Wrong(f"the input ran {_executed[0].split()[0]}: {_executed}")


def expect(condition: bool, fault: str) -> None:
    """Raises Wrong with the fault unless the condition holds."""
    if not condition:
        raise Wrong(fault)


@contextlib.contextmanager
def may_refuse(
    *names: str | os.PathLike[str], error: type[Exception] | None = None
) -> Iterator[None]:
    """A block that may raise a clear error.

    Args:
      names: the message has one of them.
      error: the class that it should have; None for any that commands turn into one line.

    Raises:
      Refused: it did.
      Wrong: the error is not clear.
    """
    try:
        yield
    except EXPECTED as caught:
        text = str(caught)
        if isinstance(caught, UNEXPLAINED) or (error is not None and not isinstance(caught, error)):
            raise
        wanted = [os.fspath(name) for name in names]
        if "Traceback" in text or len(text) > SCREEN or not text.strip():
            raise Wrong(f"the message is no line of text: {text[:300]!r}") from caught
        if wanted and not any(name in text for name in wanted):
            raise Wrong(f"the message names neither file nor field: {_where(caught)}") from caught
        raise Refused(text) from caught


def contents(folder: pathlib.Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and inode of every file below a folder, by name."""
    found: dict[str, tuple[int, int, int]] = {}
    pending = [str(folder)]
    while pending:
        current = pending.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                stamp = status.st_size, status.st_mtime_ns, status.st_ino
                found[os.path.relpath(entry.path, folder)] = stamp
    return found


@contextlib.contextmanager
def unchanged(folder: pathlib.Path, free: Collection[str] = ()) -> Iterator[None]:
    """A block that changes, adds and removes no file below a folder, but where it may.

    Args:
      folder: of the input and what lies beside it.
      free: beginnings of the names of files that may change.
    """
    before = contents(folder)
    try:
        yield
    finally:
        after = contents(folder)
        changed = {
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        }
        changed = {name for name in changed if not name.startswith(tuple(free))}
    if changed:
        raise Wrong(f"a neighbour changed: {sorted(changed)[0]}")


def _where(error: BaseException) -> str:
    """Type of an error and the last line of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(REPOSITORY))]
    ours = [frame for frame in ours if "tests/campaigns" not in frame.filename] or ours
    place = ""
    if ours:
        place = f" at {os.path.relpath(ours[-1].filename, REPOSITORY)}:{ours[-1].lineno}"
    return f"{type(error).__name__}{place}"


@contextlib.contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """A block that is stopped when it takes too long, and refused too much memory."""

    def stop(*unused: object) -> None:
        raise Hang(f"longer than {seconds:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def outcome_of(attempt: Callable[[], Kind]) -> Outcome:
    """Makes one attempt and says what came of it."""
    began = time.perf_counter()
    kind, fault, detail = FAILED, "", ""
    try:
        with limited():
            kind = attempt()
    except Refused as refused:
        kind, detail = REFUSED, str(refused)
    except Wrong as wrong:
        fault, detail = str(wrong).partition(":")[0], f"{wrong}\n\n{_trace(wrong)}"
    except Hang as hang:
        fault, detail = f"hang: {_where(hang)}", _trace(hang)
    except SystemExit as stop:
        fault, detail = f"SystemExit: {_where(stop)}", _trace(stop)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # libraries in Rust panic with one of their own
        fault, detail = _where(error), _trace(error)
    return Outcome(kind, fault, detail, time.perf_counter() - began)  # type: ignore[arg-type]


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]
