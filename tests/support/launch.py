"""Starts several Python processes on this machine as one job, as several hosts would be.

They are forks of the server of `commands`, which has imported what they need. Each process gets
its own virtual CPU devices and, where there is more than one, the three environment variables that
`fasttta_jax.multihost.distributed.start()` reads. `train.py` calls that itself; a script of a test
starts with

    from fasttta_jax.multihost import distributed
    distributed.start()

and ends with `distributed.finish()`: jax aborts the others where host 0 just ends.

Example:

    with launch.start(["train.py", "--config=..."], num_processes=2) as job:
        job.wait_for(1, "step 20")
        job.signal(1, signal.SIGTERM)
        results = job.wait(timeout=120)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NamedTuple

from tests.support import commands

POLL_SECONDS = 0.1


class Result(NamedTuple):
    """How one process ended; a returncode of -9 means killed by signal 9."""

    returncode: int
    stdout: str
    stderr: str


class JobTimeout(AssertionError):
    """Processes that did not end, or did not print what was waited for; holds their output."""


def free_port() -> int:
    """A port of localhost that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _environment(
    index: int, address: str, num_processes: int, extra: Mapping[str, str] | None
) -> dict[str, str]:
    place = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(index),
    }
    kept = {name: value for name, value in os.environ.items() if name not in place}
    return {**kept, **(place if num_processes > 1 else {}), **(extra or {})}


class Job:
    """Running processes; as a context manager it leaves none behind.

    Attributes:
      processes: in the order of their index; one that has ended has an `exitcode`.
      folder: holds `stdout_<index>` and `stderr_<index>`.
    """

    def __init__(self, processes: list[BaseProcess], folder: pathlib.Path) -> None:
        self.processes = processes
        self.folder = folder

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def stdout(self, index: int) -> str:
        """What a process has printed so far."""
        return (self.folder / f"stdout_{index}").read_text(encoding="utf-8", errors="replace")

    def stderr(self, index: int) -> str:
        """What a process has logged so far."""
        return (self.folder / f"stderr_{index}").read_text(encoding="utf-8", errors="replace")

    def signal(self, index: int, number: int) -> None:
        """Sends a signal to one process (not to its children)."""
        process = self.processes[index]
        assert process.pid is not None
        if process.exitcode is None:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """Ends what still runs, children of the processes included."""
        for process in self.processes:
            assert process.pid is not None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # which has no group of its own yet
        for process in self.processes:
            process.join(30)

    def wait_for(self, index: int, text: str, timeout: float = 60.0) -> None:
        """Returns when a process has printed or logged `text`.

        Raises:
          JobTimeout: it ended, or `timeout` seconds passed, before that.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self.processes[index].exitcode is not None
            if text in self.stdout(index) or text in self.stderr(index):
                return
            if ended or time.monotonic() > deadline:
                self.kill()
                what = "ended" if ended else f"ran {timeout} s"
                raise JobTimeout(f"process {index} {what} without {text!r}\n{self.outputs()}")
            time.sleep(POLL_SECONDS)

    def wait(self, timeout: float = 120.0) -> list[Result]:
        """How all processes ended, by index; checks nothing else.

        Raises:
          JobTimeout: some still ran after `timeout` seconds; all were killed.
        """
        deadline = time.monotonic() + timeout
        while any(process.exitcode is None for process in self.processes):
            if time.monotonic() > deadline:
                late = [index for index, p in enumerate(self.processes) if p.exitcode is None]
                self.kill()
                raise JobTimeout(f"processes {late} ran {timeout} s\n{self.outputs()}")
            time.sleep(POLL_SECONDS)
        return [self._result(index) for index in range(len(self.processes))]

    def _result(self, index: int) -> Result:
        code = self.processes[index].exitcode
        assert code is not None
        return Result(code, self.stdout(index), self.stderr(index))

    def outputs(self, characters: int = 3000) -> str:
        """The end of what every process said, for messages of tests."""
        parts = []
        for index, process in enumerate(self.processes):
            parts.append(f"--- process {index}, return code {process.exitcode}, stdout:")
            parts.append(self.stdout(index)[-characters:])
            parts.append(f"--- process {index}, stderr:")
            parts.append(self.stderr(index)[-characters:])
        return "\n".join(parts)


def start(
    command: Sequence[str],
    num_processes: int = 2,
    devices_per_process: int = 4,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] = commands.REPOSITORY,
) -> Job:
    """Starts `python *command` num_processes times as one job on a free port.

    Args:
      command: what follows `python`: ["train.py", "--workdir=..."] or ["-c", script, ...].
      num_processes: with 1 there is no coordinator and nothing to detect.
      devices_per_process: virtual CPU devices of each.
      env: variables beside those of this process.
      cwd: folder that they start in.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fasttta_jax_job_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = f"localhost:{free_port()}"
    processes = [
        commands.start(
            command,
            folder,
            f"_{index}",
            devices_per_process,
            _environment(index, address, num_processes, env),
            cwd,
        )
        for index in range(num_processes)
    ]
    return Job(processes, folder)


def run(
    command: Sequence[str],
    num_processes: int = 2,
    devices_per_process: int = 4,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] = commands.REPOSITORY,
    timeout: float = 120.0,
) -> list[Result]:
    """`start`, then waits; all processes must end with 0.

    Raises:
      JobTimeout: see `Job.wait`.
      AssertionError: a process ended otherwise; holds every output.
    """
    with start(command, num_processes, devices_per_process, env, cwd) as job:
        results = job.wait(timeout)
        assert not any(result.returncode for result in results), job.outputs()
        return results


def finished_steps(workdir: pathlib.Path) -> list[int]:
    """Checkpoints of a run that are on disk as a whole."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def wait_for_step(job: Job, workdir: pathlib.Path, step: int, timeout: float = 400) -> None:
    """Returns when a checkpoint of `step` or a later one is there; all processes must still run."""
    deadline = time.monotonic() + timeout
    while max(finished_steps(workdir), default=0) < step:
        assert all(process.exitcode is None for process in job.processes), job.outputs()
        assert time.monotonic() < deadline, job.outputs()
        time.sleep(0.02)


def killed_at(command: Sequence[str], workdir: pathlib.Path, step: int) -> None:
    """Starts a training command as one process, and kills it when a checkpoint of `step` is there.

    Raises:
      AssertionError: the run ended before.
    """
    with start(command, num_processes=1, devices_per_process=1) as job:
        wait_for_step(job, workdir, step)
        job.signal(0, signal.SIGKILL)
        (killed,) = job.wait()
    assert killed.returncode == -signal.SIGKILL, "the run ended before it could be killed"
