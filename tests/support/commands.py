"""Runs the project's commands in processes that begin with its libraries imported.

Importing takes seconds, and tests start many processes. A server process, multiprocessing's,
imports once and touches no device; every command is a fork of it: a session of its own, with its
own arguments, environment, devices, output and exit code, that signals reach and kill.
"""

from __future__ import annotations

import atexit
import functools
import gc
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import ModuleType

import jaxtyping

REPOSITORY = pathlib.Path(__file__).parents[2]
IMPORTED = [
    "tests.support.type_checks",
    "fasttta_jax.training.loop",
    "fasttta_jax.evaluation.evaluator",
    "fasttta_jax.evaluation.folders",
    "fasttta_jax.evaluation.ranking",
    "fasttta_jax.generation.job",
    "fasttta_jax.cli",
    "jax.experimental.multihost_utils",
]


def import_first(modules: Sequence[str]) -> None:
    """What the server imports in place of `IMPORTED`; to be called before the first command."""
    IMPORTED[:] = modules


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def execute(arguments: list[str]) -> None:
    """Does what `python *arguments` does."""
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _command(arguments: list[str], folder: str, suffix: str, env: dict[str, str], cwd: str) -> None:
    os.setsid()
    gc.freeze()  # what the server has imported stays
    for number, name in ((1, "stdout"), (2, "stderr")):
        path = os.path.join(folder, name + suffix)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [cwd]
    sys.orig_argv = [sys.executable, *arguments]  # for a command that starts itself anew
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    import jax  # which has read the environment of the server

    jax.config.update("jax_num_cpu_devices", int(env["JAX_NUM_CPU_DEVICES"]))
    jaxtyping.config.update("jaxtyping_disable", env["JAXTYPING_DISABLE"] == "1")
    code: object = 0
    try:
        execute(arguments)
    except SystemExit as stop:
        code = stop.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    # What ends an interpreter; a process of multiprocessing would leave out what is at its exit.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))  # type: ignore[call-overload]


def start(
    arguments: Sequence[object],
    folder: str | os.PathLike[str],
    suffix: str = "",
    devices: int = 1,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] = REPOSITORY,
) -> BaseProcess:
    """Starts `python *arguments`, whose output goes to files in `folder`.

    Annotations are checked in it where they are in this process.

    Args:
      arguments: a script, "-m" and a module or "-c" and a program, and its arguments.
      folder: where it writes `stdout` and `stderr`.
      suffix: of these two names.
      devices: virtual CPU devices that it has.
      env: all of its variables, in place of those of this process.
      cwd: folder that it starts in.
    """
    variables = dict(os.environ if env is None else env)
    variables["JAX_NUM_CPU_DEVICES"] = str(devices)
    variables["JAXTYPING_DISABLE"] = str(int(jaxtyping.config.jaxtyping_disable))
    for name in ("stdout", "stderr"):  # there to be read at once
        (pathlib.Path(folder) / (name + suffix)).touch()
    process = _server().Process(
        target=_command,
        args=([str(a) for a in arguments], str(folder), suffix, variables, str(cwd)),
    )
    process.start()
    return process


def run(
    *arguments: object, timeout: float = 300, devices: int = 1
) -> subprocess.CompletedProcess[str]:
    """What follows `python` on a command line, run from the repository's root to its end.

    Args:
      arguments: see `start`.
      timeout: seconds, after which the process is killed.
      devices: virtual CPU devices that it has.

    Raises:
      TimeoutExpired: with the output so far.
    """
    command = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        process = start(command, folder, devices=devices)
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
