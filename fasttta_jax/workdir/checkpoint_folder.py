"""The folder of a run's checkpoints: which steps are whole, which are kept, which are moved aside.

    checkpoints/120/{rest,ema}/...       named trees
                    metrics/metrics      validation metrics, JSON; absent where none were measured
                    progress/progress    {"format": 2, "progress": {...}}, JSON
                    checksums.json       of all these files
    unreadable/120, unreadable/120.txt   a damaged step, and what was wrong with it

The first host reads and writes, and sends what it found to all, so that all decide alike. Functions
marked so are called by every host, in the same order.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath
from etils.epath import gpath

from fasttta_jax.multihost import coordination, distributed
from fasttta_jax.storage.files import as_path, is_remote
from fasttta_jax.workdir import checksums

T = TypeVar("T")

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
UNREADABLE_FOLDER = "unreadable"
METRICS = "metrics"
PROGRESS = "progress"
FORMAT = 2
"""1 had neither progress nor checksums."""
LATE_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Written as a step is committed, after its checksums."""
SHARED_STORAGE_SECONDS = 10.0
MOST_SHOWN = 3

AllMetrics = Mapping[int, Mapping[str, float]]
"""By step; empty where a step has none."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the last good one."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint has files that are not what was written."""


class Header(NamedTuple):
    """Header of a stored checkpoint.

    Attributes:
      format: of its files; 0 where that cannot be read.
      progress: position of the run, saved beside its trees.
      has_checksums: whether its files can be checked.
    """

    format: int
    progress: dict[str, Any]
    has_checksums: bool


def one_line(error: BaseException) -> str:
    """An error's type and the beginning of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}" if text else type(error).__name__


def shorten(lines: Sequence[str]) -> str:
    """The first few of many problems."""
    more = "" if len(lines) <= MOST_SHOWN else f"; and {len(lines) - MOST_SHOWN} more"
    return "; ".join(lines[:MOST_SHOWN]) + more


def from_first_host(function: Callable[[], T], where: str) -> T:
    """What `function` returns on the first host, sent to all of them as JSON.

    Raises:
      CheckpointError: on all hosts, what it raised there, after `where`.
    """

    def guarded() -> T:
        try:
            return function()
        except Exception as error:
            raise CheckpointError(f"{where}: {one_line(error)}") from error

    return distributed.on_first_host(guarded)


def best_step(metrics: AllMetrics, name: str) -> int | None:
    """The newest step in which a metric is lowest; None where no step has a finite one."""
    values = {step: float(found[name]) for step, found in metrics.items() if name in found}
    finite = [step for step, value in values.items() if math.isfinite(value)]
    return min(finite, key=lambda step: (values[step], -step), default=None)


def steps_to_keep(metrics: AllMetrics, *, keep: int, keep_every: int, best_metric: str) -> set[int]:
    """Of some steps, those that stay on disk.

    Args:
      metrics: of the steps.
      keep: newest steps that stay.
      keep_every: multiples of this stay; 0 for none.
      best_metric: the step in which it is lowest stays.
    """
    kept = set(sorted(metrics)[-keep:])
    if keep_every:
        kept |= {step for step in metrics if step % keep_every == 0}
    best = best_step(metrics, best_metric)
    return kept if best is None else kept | {best}


class _LocalPath(gpath.PosixGPath):
    """A local path whose own characters mean themselves in `glob`, also those of the folders above.

    Orbax looks for the files that it wrote by patterns. With etils' paths it finds none below a
    folder such as "lr=[0.1]", and calls the checkpoint whole without them.
    """

    def glob(self, pattern: str) -> Iterator[_LocalPath]:
        """What matches below this folder, in order of name; "*" does not match a "/"."""
        first, _, rest = pattern.partition("/")
        for path in sorted(self.iterdir()) if self.is_dir() else ():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)


def unusable_path(workdir: str | os.PathLike[str]) -> str | None:
    """Why TensorStore could not keep checkpoints below a folder; None where it can."""
    path = os.fspath(workdir)
    if is_remote(path):
        return None
    path = os.path.abspath(path)
    if "\\" in path:
        return "has a backslash, which is read as a slash where checkpoints are written"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8, in which checkpoints name their files"
    return None


class CheckpointFolder:
    """The steps of one workdir on disk.

    Args:
      workdir: the run's folder, local or gs://.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        if is_remote(workdir):
            self.path = epath.Path(as_path(workdir)) / FOLDER
        else:
            self.path = _LocalPath(os.path.abspath(workdir)) / FOLDER
        self.unreadable = self.path.parent / UNREADABLE_FOLDER

    def __str__(self) -> str:
        """For messages."""
        return str(self.path)

    def step(self, step: int) -> epath.Path:
        """Where a step lies."""
        return self.path / str(step)

    def is_complete(self, path: epath.Path) -> bool:
        """Whether a folder is a complete step; in an object store the last file marks it."""
        if not path.name.isdecimal():
            return False
        return not is_remote(path) or (path / LATE_FILES[1]).exists()

    def all_metrics(self) -> dict[int, dict[str, float]]:
        """Metrics of all complete steps; {} where they are absent or damaged. Every host calls it.

        Raises:
          CheckpointError: the folder cannot be listed.
        """
        found = from_first_host(self._all_metrics, f"{self} cannot be listed")
        return dict(found)

    def _all_metrics(self) -> list[tuple[int, dict[str, float]]]:
        if not self.path.exists():
            return []
        steps = [int(path.name) for path in self.path.iterdir() if self.is_complete(path)]
        return [(step, self._metrics(step)) for step in sorted(steps)]

    def _json(self, step: int, item: str) -> dict[str, Any]:
        """A small item; raises ValueError where its file is not what was written."""
        path = self.step(step) / item / item
        found = json.loads(path.read_bytes())
        expected = (checksums.read(self.step(step)) or {}).get(f"{item}/{item}")
        if not isinstance(found, dict) or (expected and checksums.damage(path, expected)):
            raise ValueError(f"{path} is not what was written")
        return found

    def _metrics(self, step: int) -> dict[str, float]:
        try:
            return {name: float(value) for name, value in self._json(step, METRICS).items()}
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def _header(self, step: int) -> Header:
        has_checksums = (self.step(step) / checksums.FILE).exists()
        try:
            found = self._json(step, PROGRESS)
            return Header(int(found["format"]), dict(found["progress"]), has_checksums)
        except FileNotFoundError:
            return Header(1, {}, has_checksums)
        except (ValueError, KeyError, TypeError):
            return Header(0, {}, has_checksums)

    def check(self, step: int, items: Sequence[str]) -> Header:
        """The header of a step that is whole and can be read here. Every host calls it.

        Args:
          step: a complete one.
          items: those whose files are looked at; the hosts share them out.

        Raises:
          DamagedCheckpoint: files are not what was written.
          CheckpointError: a newer version wrote it, or its storage fails.
        """
        where = f"step {step} in {self}"
        header = Header(*from_first_host(lambda: self._header(step), f"{where} cannot be read"))
        if header.format > FORMAT:
            raise CheckpointError(
                f"{where} has format {header.format}; allowed: up to {FORMAT}. A newer version of "
                "fasttta_jax wrote it: go on with that one, or start in a new workdir"
            )
        if header.format == 1 and not header.has_checksums:
            return header
        began = time.monotonic()
        mine, error = [], None
        try:
            mine = checksums.problems(
                self.step(step),
                prefixes=[f"{name}/" for name in (*items, PROGRESS)],
                index=coordination.index(),
                count=coordination.count(),
            )
        except Exception as caught:
            error = CheckpointError(f"{where} cannot be read: {one_line(caught)}")
        distributed.agree_ok(error)
        found = {line for lines in distributed.gather(mine[: MOST_SHOWN + 1]) for line in lines}
        if found:
            raise DamagedCheckpoint(f"{where} is damaged: {shorten(sorted(found))}")
        if header.format == 0:
            raise DamagedCheckpoint(f"{where} is damaged: {PROGRESS}/{PROGRESS} cannot be read")
        logger.info("%s is whole (checked in %.1f s)", where, time.monotonic() - began)
        return header

    def check_writable(self) -> None:
        """Makes the folder; raises unless all hosts can write there. Every host calls it.

        Raises:
          CheckpointError: it is not writable, or not the same folder on all hosts.
        """
        token = distributed.gather(secrets.token_hex(8))[0]
        probes = [self.path / f".{token}_{host}" for host in range(coordination.count())]
        own = probes[coordination.index()]
        try:
            distributed.agree_ok(self._write_error(own))
            distributed.agree_ok(self._sharing_error(probes))
        finally:
            with contextlib.suppress(Exception):
                own.unlink(missing_ok=True)

    def _write_error(self, probe: epath.Path) -> CheckpointError | None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_text("can be written")
        except Exception as error:
            return CheckpointError(
                f"checkpoints cannot be written to {self}: {one_line(error)}. Choose another "
                "workdir, or make it writable"
            )
        return None

    def _sharing_error(self, probes: Sequence[epath.Path]) -> CheckpointError | None:
        """Shared storage may show new files late."""
        deadline = time.monotonic() + SHARED_STORAGE_SECONDS
        while missing := [host for host, path in enumerate(probes) if not path.exists()]:
            if time.monotonic() > deadline:
                return CheckpointError(
                    f"{self} is not the same folder on all hosts: what hosts {missing} write "
                    "there is not seen. Put the workdir on storage that all of them share, such "
                    "as NFS or gs://"
                )
            time.sleep(0.5)
        return None

    def probe(self) -> None:
        """Raises OSError where nothing more can be written."""
        path = self.path / f".probe_{coordination.index()}"
        try:
            path.write_text("can be written")
        finally:
            path.unlink(missing_ok=True)

    def remove_half_written(self) -> None:
        """Removes what a killed or failed save has left; for the first host alone."""
        for path in self.path.iterdir() if self.path.exists() else ():
            step = path.name.split(".")[0]
            if step.isdecimal() and path.is_dir() and not self.is_complete(path):
                logger.warning("the half-written checkpoint %s is removed", path)
                path.rmtree()

    def remove(self, steps: Sequence[int]) -> None:
        """Removes steps; for the first host alone. What cannot be removed is only warned of."""
        for step in steps:
            try:
                self.step(step).rmtree()
            except Exception as error:
                logger.warning("%s cannot be removed (%s)", self.step(step), one_line(error))

    def move_aside(self, step: int, reason: str) -> None:
        """Moves a step to `unreadable/`, with the reason beside it. Every host calls it.

        Raises:
          CheckpointError: it cannot be moved.
        """
        from_first_host(
            lambda: self.set_aside(step, reason),
            f"{self.step(step)} cannot be moved to {self.unreadable / str(step)}",
        )

    def set_aside(self, step: int, reason: str) -> None:
        """As `move_aside`; for the first host alone."""
        aside = self.unreadable / str(step)
        message = "checkpoint of step %d cannot be read and is moved to %s (%s)"
        logger.warning(message, step, aside, reason)
        self.unreadable.mkdir(parents=True, exist_ok=True)
        # First, because an object store has a folder only where it has a file.
        (self.unreadable / f"{step}.txt").write_text(reason + "\n")
        if aside.exists():
            aside.rmtree()
        self.step(step).rename(aside)
