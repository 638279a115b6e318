"""Finds the host that the others wait for: each writes its progress, and all read when one hangs.

A host that hangs, or is gone, stops all of them in the next collective, where nothing says why. The
files work without jax's service, which a hang of host 0 takes along.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import logging
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from fasttta_jax.multihost import (
    coordination,
    distributed,
    exit_codes,
    failures,
)
from fasttta_jax.storage.files import (
    as_path,
    is_remote,
    write_json,
)

logger = logging.getLogger(__name__)

PHASES = ("start", "data", "step", "evaluation", "save", "samples")
"""Phases of a step, in their order."""
LOCAL_INTERVAL, REMOTE_INTERVAL = 5.0, 10.0
# Well before jax ends the job for a silent host (100 s), in words of its own.
WARN_SECONDS = 45.0


class HostLost(RuntimeError):
    """Other hosts are gone: their processes were killed or their machines stopped.

    Attributes:
      hosts: their numbers.
    """

    def __init__(self, text: str, hosts: Sequence[int]) -> None:
        super().__init__(text)
        self.hosts = tuple(hosts)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a host. Times are seconds since 1970 on that host's clock.

    Attributes:
      step: that it works on.
      phase: one of PHASES.
      since: when it came to this phase.
      written: when it wrote this; changes as long as the host lives.
      ended: None while it runs, "" after an orderly end, else the error.
      run: what all hosts of a job have in common, and no earlier job has.
    """

    step: int = 0
    phase: str = "start"
    since: float = 0.0
    written: float = 0.0
    ended: str | None = None
    run: str = ""

    @property
    def place(self) -> tuple[float, int]:
        """Sort key of hosts; the others wait for the lowest."""
        if self.ended == "":
            return math.inf, 0
        return self.step, PHASES.index(self.phase) if self.phase in PHASES else 0

    def describe(self) -> str:
        """ "phase 'data' of step 120"."""
        return f"phase {self.phase!r} of step {self.step}"


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def find_lost(
    before: Mapping[int, Progress], now: Mapping[int, Progress], count: int
) -> dict[int, str]:
    """Hosts that are gone, each with the reason, from the files read twice.

    Args:
      before: progress by host, a few intervals earlier.
      now: the same, now.
      count: number of hosts.
    """
    gone: dict[int, str] = {}
    for host in range(count):
        progress = now.get(host)
        if progress is None:
            gone[host] = "has not written its progress: it never began, or sees another folder"
        elif progress.ended:
            gone[host] = f"has ended: {progress.ended}"
        elif progress.ended is None and progress == before.get(host):
            gone[host] = (
                f"shows no sign of life since {_clock(progress.written)}, when it was in "
                f"{progress.describe()}: its process is stopped or killed, or its machine is gone"
            )
    return gone


def find_slowest(now: Mapping[int, Progress]) -> list[int]:
    """Living hosts at the lowest step and phase; empty where all are at the same."""
    places = {host: progress.place for host, progress in now.items()}
    lowest = [host for host, place in places.items() if place == min(places.values())]
    return [] if len(lowest) == len(places) else sorted(lowest)


def diagnose(
    before: Mapping[int, Progress], now: Mapping[int, Progress], count: int, index: int
) -> str:
    """A sentence that names the host that the others wait for, from the files read twice.

    Args:
      before: progress by host, a few intervals earlier.
      now: the same, now.
      count: number of hosts.
      index: of this host.
    """
    mine = now.get(index, Progress())
    gone = find_lost(before, now, count)
    if gone:
        return "; ".join(f"host {host} of {count} {text}" for host, text in gone.items())
    if count == 1:
        return f"in {mine.describe()} since {_clock(mine.since)}"
    slowest = find_slowest(now)
    if not slowest:
        return (
            f"all {count} hosts have been in {mine.describe()} since {_clock(mine.since)}: a "
            "collective or a device hangs"
        )
    parts = [
        f"host {host} of {count} has been in {now[host].describe()} since {_clock(now[host].since)}"
        for host in slowest
    ]
    if index in slowest:
        return f"{'; '.join(parts)} (host {index} is this one); the others wait"
    return f"{'; '.join(parts)}; this host, {index}, waits in {mine.describe()}"


class Watchdog:
    """Ends a run that hangs, and names the host that it waited for.

    As a context manager around the training loop, entered by every host. An error of jax that is
    due to a host that is gone leaves it as HostLost.

    Args:
      folder: where the hosts write; all of them see it. May be a URL.
      timeout: seconds without a heartbeat after which this process says why and ends with
        `exit_codes.HUNG`; 0 never does.
      index: of this host; None asks jax.distributed.
      count: number of hosts; None asks jax.distributed.
      interval: seconds between two writes; None is 5, or 10 in an object store.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        timeout: float,
        *,
        index: int | None = None,
        count: int | None = None,
        interval: float | None = None,
    ) -> None:
        self.folder = as_path(folder)
        self.timeout = timeout
        self.index = coordination.index() if index is None else index
        self.count = coordination.count() if count is None else count
        self.interval = interval or (REMOTE_INTERVAL if is_remote(folder) else LOCAL_INTERVAL)
        self._progress = Progress(since=time.time())
        self._heartbeat_at = time.monotonic()
        self._run = ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._warn_after = WARN_SECONDS
        self._can_write = True

    def heartbeat(self, step: int, phase: str) -> None:
        """Records that this host is alive and in `phase` of `step`.

        Takes a few microseconds; the thread writes it later.

        Args:
          step: that it works on, rising.
          phase: one of PHASES. Long phases send more than one.
        """
        now = self._progress
        if step != now.step or phase != now.phase:
            if phase not in PHASES:
                raise ValueError(f"phase is {phase!r}; allowed: one of {PHASES}")
            self._progress = dataclasses.replace(now, step=step, phase=phase, since=time.time())
        self._heartbeat_at = time.monotonic()

    def __enter__(self) -> Watchdog:
        if coordination.count() > 1:
            self._run = distributed.gather(secrets.token_hex(4), what="begin the steps")[0]
        self._heartbeat_at = time.monotonic()
        self._progress = dataclasses.replace(self._progress, since=time.time(), run=self._run)
        if self.count > 1:
            self._write()
        if self.count > 1 or self.timeout:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gone: dict[int, str] = {}
        if self.count > 1 and error and failures.may_come_from_another_host(error):
            gone = self._find_lost(str(error))
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.count > 1:
            ended = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
            self._write(ended=ended)
        if gone:
            text = "; ".join(f"host {host} of {self.count} {why}" for host, why in gone.items())
            raise HostLost(text, list(gone)) from error

    def _find_lost(self, cause: str) -> dict[int, str]:
        """Which hosts are to blame for an error of jax."""
        logger.warning(
            "looking for the host that is gone (host 0, where jax now speaks of the leader), "
            "because of this error: %s",
            cause,
        )
        address = coordination.address()
        for _ in range(3):  # quickly: without host 0 jax ends this process at any moment
            error = coordination.connection_error(address) if address else None
            if error is not None:
                return {0: f"is gone: its process was killed or its machine stopped ({error})"}
            time.sleep(0.1)
        before, now = self._read_twice()
        gone = find_lost(before, now, self.count)
        gone.pop(self.index, None)
        return gone

    def _file(self, host: int) -> Any:
        return self.folder / f"host_{host:05d}.json"

    def _write(self, ended: str | None = None) -> None:
        progress = dataclasses.replace(self._progress, written=time.time(), ended=ended)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._file(self.index), dataclasses.asdict(progress))
            self._can_write = True
        except Exception as error:  # every object store has errors of its own
            if self._can_write:
                logger.warning(
                    "host %d cannot write its progress to %s, and would be taken for lost: %s",
                    self.index,
                    self.folder,
                    error,
                )
            self._can_write = False

    def _read(self) -> dict[int, Progress]:
        found = {}
        for host in range(self.count):
            try:
                progress = Progress(**json.loads(self._file(host).read_text()))
                if progress.run == self._run:
                    found[host] = progress
            except Exception as error:  # as in _write; also of another version
                logger.debug("no progress of host %d: %s", host, error)
        return found

    def _read_twice(self) -> tuple[dict[int, Progress], dict[int, Progress]]:
        """The files now and later; every living host, this one too, writes between the two."""
        if self.count == 1:
            return {}, {self.index: dataclasses.replace(self._progress, written=time.time())}
        before = self._read()
        for _ in range(3):
            time.sleep(self.interval)
            self._write()
        return before, self._read()

    def _watch(self) -> None:
        while not self._stopped.wait(self.interval):
            if self.count > 1:
                self._write()
            heartbeat_at = self._heartbeat_at
            still = time.monotonic() - heartbeat_at
            if self.timeout and still > self.timeout:
                self._end(heartbeat_at)
            elif still < WARN_SECONDS:
                self._warn_after = WARN_SECONDS
            elif self.count > 1 and still > self._warn_after:
                self._warn(still)
                self._warn_after = 2 * still

    def _warn(self, still: float) -> None:
        before, now = self._read_twice()
        gone = find_lost(before, now, self.count)
        gone.pop(self.index, None)
        for host, text in gone.items():
            logger.warning("no step for %.0f s: host %d of %d %s", still, host, self.count, text)

    def _end(self, heartbeat_at: float) -> None:
        before, now = self._read_twice()
        if self._heartbeat_at != heartbeat_at or self._stopped.is_set():
            return  # it went on meanwhile
        still = time.monotonic() - heartbeat_at
        message = f"no step for {still:.0f} s: {diagnose(before, now, self.count, self.index)}"
        print(f"error: {message}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        failures.leave(exit_codes.HUNG, message)
