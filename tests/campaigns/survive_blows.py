"""Blows: what happens to a job, when, and how a job may end by it.

A blow falls at a random time of the job's life or, where what matters takes microseconds, before
the n-th time that a process touches one of its files (`struck`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from fasttta_jax.multihost import exit_codes
from tests.campaigns import disk, struck
from tests.campaigns.survive_jobs import ALONE, Command, Job, Layout
from tests.support import commands, launch

Kind = Literal["kill", "terminate", "fill", "remove", "lose a part", "lose an input"]
WEIGHTS: Mapping[Kind, float] = {
    "kill": 40,
    "terminate": 15,
    "fill": 20,
    "remove": 8,
    "lose a part": 10,
    "lose an input": 7,
}
AT_REST = ("lose a part", "lose an input")
"""Kinds that fall between two starts."""
LATEST = 1.1
"""Of an undisturbed life, when a blow falls."""
LIMIT = 180.0
STARTING = "still waits for its job"
"""What a process says a minute after it began, and every minute, while others have not come."""
"""Seconds after which a job hangs."""
POLL = 0.005
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
ENDS = {
    "kill": (0, -signal.SIGKILL),
    "terminate": (0, -signal.SIGTERM, exit_codes.PREEMPTED),
    "fill": (0, exit_codes.ERROR),
    "remove": (0, exit_codes.ERROR),
    "lose an input": (0, exit_codes.ERROR),
}
"""Exit codes of the process that is struck."""
BY_OTHERS = (0, exit_codes.ERROR, *exit_codes.START_AGAIN, -signal.SIGABRT, -signal.SIGKILL)
"""Of the other processes of a distributed job; Gloo, of the CPU alone, at times aborts them."""


OF_THE_SYSTEM = (-signal.SIGABRT, -signal.SIGKILL)
"""Ends in which a process says nothing; what it has started may, at the end of its pipe."""


class Fault(Exception):
    """A job did what it may not."""


@dataclasses.dataclass(frozen=True)
class Life:
    """How an undisturbed job goes.

    Attributes:
      seconds: that it takes.
      touches: of its files, by each process.
    """

    seconds: float
    touches: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Blow:
    """A blow that is to fall.

    Attributes:
      kind: what happens.
      layout: of the start that it falls on.
      victim: number of the process; None for all of them at once.
      after: seconds from the start; None where `touch` says when.
      touch: number of the victim's touches of files; 0 where `after` says when.
      seed: of what is random about it.
    """

    kind: Kind
    layout: Layout
    victim: int | None
    after: float | None
    touch: int
    seed: int

    @classmethod
    def draw(cls, job: Job, lives: Mapping[Layout, Life], rng: random.Random) -> Blow:
        """A random blow for a job."""
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        layout = rng.choice(job.layouts or (ALONE,))
        life = lives[layout]
        victim = rng.randrange(len(life.touches))
        by_touch = rng.random() < 0.5 and life.touches[victim] > 0
        everybody = kind in SIGNALS and not by_touch and rng.random() < 0.3
        return cls(
            kind,
            layout,
            None if everybody else victim,
            None if by_touch else rng.uniform(0, LATEST * life.seconds),
            rng.randint(1, life.touches[victim]) if by_touch else 0,
            rng.getrandbits(31),
        )


@dataclasses.dataclass(frozen=True)
class End:
    """How a start ended.

    Attributes:
      codes: of its processes.
      errors: what they wrote to stderr.
      seconds: that it took.
      touches: of files, by each process.
      fell: whether the blow fell before the end.
    """

    codes: tuple[int, ...]
    errors: tuple[str, ...]
    seconds: float
    touches: tuple[int, ...]
    fell: bool = False


class Running:
    """The processes of one start of a job.

    Args:
      job: what is started.
      lines: a command for each process; one for all processes of a distributed job.
      folder: of the job.
      logs: folder of what they write.
      layout: of a distributed job.
      blow: that the victim does to itself at a touch, if it is of that kind.
    """

    def __init__(
        self,
        job: Job,
        lines: Sequence[Command],
        folder: pathlib.Path,
        logs: pathlib.Path,
        layout: Layout = ALONE,
        blow: Blow | None = None,
    ) -> None:
        self.folder, self.logs = folder, logs
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.iterdir():
            old.unlink()
        count = max(layout.processes, len(lines))
        address = f"localhost:{launch.free_port()}"
        self.begun = time.monotonic()
        self.processes: list[BaseProcess] = []
        for index in range(count):
            line = lines[index % len(lines)]
            env: dict[str, Any] = dict(os.environ)
            if job.layouts and count > 1:
                env["JAX_COORDINATOR_ADDRESS"] = address
                env["JAX_NUM_PROCESSES"], env["JAX_PROCESS_ID"] = str(count), str(index)
            mine = blow is not None and blow.touch > 0 and blow.victim == index
            number, kind = (blow.touch, blow.kind) if mine and blow else (0, "kill")
            striking = ["-m", "tests.campaigns.struck", folder, number, kind, self._count(index)]
            process = commands.start(
                [*striking, "--", *line], logs, f"_{index}", layout.devices, env
            )
            self.processes.append(process)

    def _count(self, index: int) -> pathlib.Path:
        return self.logs / f"touches_{index}"

    @property
    def alive(self) -> bool:
        """Whether a process still runs."""
        return any(process.exitcode is None for process in self.processes)

    def pause(self, until: float) -> bool:
        """Waits for a moment, or the end; says whether the job still runs."""
        while self.alive and time.monotonic() < until:
            time.sleep(POLL)
        return self.alive

    def signal(self, victim: int | None, number: int) -> bool:
        """Sends a signal to a process, or to all; says whether one was there to get it."""
        reached = False
        for index, process in enumerate(self.processes):
            if victim in (None, index) and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, number)
                    reached = True
        return reached

    def wait(self) -> End:
        """The end of all processes.

        Raises:
          Fault: some still run after `LIMIT` seconds; all are killed.
        """
        while self.pause(time.monotonic() + 1.0):
            if time.monotonic() > self.begun + LIMIT:
                self.kill()
                raise Fault(f"still runs after {LIMIT:.0f} s")
            if any((process.exitcode or 0) < 0 for process in self.processes):
                self._launcher_ends_the_start()
        for process in self.processes:
            process.join()
        read = [self._errors(index) for index in range(len(self.processes))]
        said = [self._touches(index) for index in range(len(self.processes))]
        return End(
            tuple(process.exitcode or 0 for process in self.processes),
            tuple(path.read_text(encoding="utf-8", errors="replace") for path in read),
            time.monotonic() - self.begun,
            tuple(count for count, _ in said),
            any(fell for _, fell in said),
        )

    def _launcher_ends_the_start(self) -> None:
        """What a launcher does that has lost a process: the others would wait for ten minutes."""
        for index, process in enumerate(self.processes):
            if process.exitcode is None and STARTING in self._errors(index).read_text():
                os.kill(process.pid or 0, signal.SIGKILL)

    def _errors(self, index: int) -> pathlib.Path:
        return self.logs / f"stderr_{index}"

    def _touches(self, index: int) -> tuple[int, bool]:
        path = self._count(index)
        # It is empty where the process was killed while it wrote it.
        count, fell = (path.read_text().split() if path.exists() else ()) or ("0", "0")
        return int(count), fell == "1"

    def kill(self) -> None:
        """Ends what still runs, with what it has started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join(30)


def strike(
    job: Job, lines: Sequence[Command], folder: pathlib.Path, logs: pathlib.Path, blow: Blow
) -> End:
    """Starts a job, on which a blow falls; waits for its end.

    Raises:
      Fault: a process ends as it may not.
    """
    running = Running(job, lines, folder, logs, blow.layout, blow)
    fell = False
    try:
        if blow.after is not None and running.pause(running.begun + blow.after):
            fell = _fall(running, blow)
        end = running.wait()
    finally:
        running.kill()
        disk.empty(folder)
    fell = fell or end.fell
    check_end(job, end, blow.kind if fell else None, blow.victim)
    return dataclasses.replace(end, fell=fell)


def _fall(running: Running, blow: Blow) -> bool:
    rng = random.Random(blow.seed)
    if blow.kind in SIGNALS:
        return running.signal(blow.victim, SIGNALS[blow.kind])
    if blow.kind == "fill":
        with contextlib.suppress(ProcessLookupError):
            for process in running.processes:
                disk.fill(running.folder, rng.randrange(2**15), process.pid or 0)
            return True
        return False
    return struck.remove_unfinished(running.folder, rng) is not None


def check_end(job: Job, end: End, kind: Kind | None, victim: int | None) -> None:
    """Raises Fault where a process has ended as it may not.

    Args:
      job: that ran.
      end: of it.
      kind: of the blow that fell; None for none.
      victim: of it; None for all.
    """
    for index, (code, text) in enumerate(zip(end.codes, end.errors, strict=True)):
        name = f"process {index}" if len(end.codes) > 1 else "the process"
        if kind is None:
            allowed: tuple[int, ...] = (0,)
        elif victim in (None, index) or kind in ("fill", "remove"):
            allowed = ENDS[kind]
            if job.layouts and len(end.codes) > 1:
                allowed = (*allowed, *BY_OTHERS)
        else:
            allowed = BY_OTHERS if job.layouts else (0,)
            if job.layouts and STARTING in text:
                allowed = (*allowed, -signal.SIGKILL)
        if code not in allowed:
            shown = ", ".join(map(str, sorted(allowed)))
            raise Fault(f"{name} ended with {code} after {kind}; allowed: {shown}")
        if "Traceback (most recent call last)" in text and code not in OF_THE_SYSTEM:
            raise Fault(f"{name} ended with a traceback after {kind}")
        if code == exit_codes.ERROR and "error:" not in text and "error on host" not in text:
            raise Fault(f"{name} ended with {code} after {kind} and says no reason")
