"""Runs the project's commands in processes that begin with its libraries imported.

Importing takes seconds, and tests start many commands. A server process, multiprocessing's, imports
once and touches no device; every command is a fork of it with arguments, output and exit code of
its own. Processes that are to be signalled, or to be a job of several, are `multiprocess.launch`'s.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext

REPOSITORY = pathlib.Path(__file__).parents[2]
IMPORTED = ["fasttta_jax.training.loop", "fasttta_jax.generation.sampler", "fasttta_jax.cli"]


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _command(arguments: list[str], folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(REPOSITORY)
    sys.path[:0] = [str(REPOSITORY)]
    sys.orig_argv = [sys.executable, *arguments]  # for a command that starts itself anew
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """What follows `python` on a command line, run from the repository's root to its end.

    Args:
      arguments: a script, or "-m" and a module, and its arguments.
      timeout: seconds, after which the process is killed.

    Raises:
      TimeoutExpired: with the output so far.
    """
    command = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        process = _server().Process(target=_command, args=(command, folder))
        process.start()
        process.join(timeout)
        late = process.exitcode is None
        if late:
            process.kill()
            process.join()
        stdout, stderr = (
            (pathlib.Path(folder) / name).read_text(encoding="utf-8", errors="replace")
            for name in ("stdout", "stderr")
        )
    if late:
        raise subprocess.TimeoutExpired(command, timeout, stdout, stderr)
    return subprocess.CompletedProcess(command, process.exitcode, stdout, stderr)
