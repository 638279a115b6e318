"""What all commands share: flags, errors that read like sentences, logging, compiled programs."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags
from absl import logging as absl_logging

from fasttta_jax.multihost import (
    coordination,
    distributed,
    exit_codes,
    failures,
)
from fasttta_jax.multihost.preemption import Preempted
from fasttta_jax.multihost.watchdog import HostLost
from fasttta_jax.parallel import compilation_cache
from fasttta_jax.storage.whole import NO_ROOM

# An error of jax may come from another host's, which this host learns of a poll later.
BLAME_SECONDS = 3.0
SCREEN = 2000
"""Characters of an error."""

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs for the next command, or off. Default: that of "
    "JAX_COMPILATION_CACHE_DIR, else fasttta_jax/compiled in the user's cache.",
)

logger = logging.getLogger("fasttta_jax.cli")


def _unknown_field(argv: list[str]) -> str | None:
    """A message for the first --config.* argument that names no field, and the right ones."""
    overrides = [argument for argument in argv if argument.lstrip("-").startswith("config.")]
    sys.argv = [argument for argument in argv if argument not in overrides]  # config_flags reads it
    try:
        flags.FLAGS(sys.argv)
    except flags.Error:
        return None
    if (fault := _config_fault()) is not None:
        return fault
    for argument in overrides:
        name = argument.lstrip("-").split("=")[0]
        node = flags.FLAGS["config"].value
        path = name.split(".")[1:]
        for index, part in enumerate(path):
            where = ".".join(["config", *path[:index]])
            if not isinstance(node, ml_collections.ConfigDict):
                return f"{name} is not a field; {where} is one, and has none of its own"
            if part not in node:
                return f"{name} is not a field; the fields of {where} are: " + ", ".join(node)
            node = node[part]
    return None


def _config_fault() -> str | None:
    """Why the file of --config gave no config; None where it did, or --config names no one file."""
    if "config" not in flags.FLAGS:
        return None
    flag = flags.FLAGS["config"]
    name = getattr(flag, "config_filename", None)
    if name is None or flag.value is None or isinstance(flag.value, ml_collections.ConfigDict):
        return None
    if not os.path.isfile(name.split(":")[0]):
        return f"--config is {name!r}, and there is no such file; allowed: one of configs/"
    found = f"its get_config() returns an object of type {type(flag.value).__name__}"
    cause = getattr(flag.value, "_error", found)
    return f"--config is {name!r}, which cannot be read: {cause}"


def _not_finite() -> str | None:
    """A message for the first flag that is nan or infinite; None without one."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                return f"--{name} is {number}; allowed: a finite number"
    return None


def _a_screen(text: str) -> str:
    """An error's text without the middle of what is longer, such as a flag's value."""
    most = SCREEN // 2
    return text if len(text) <= SCREEN else f"{text[:most]} ... {text[-most:]}"


def _last_line(error: BaseException) -> str:
    """An error's text, of which config_flags makes a traceback where a config file raises it."""
    text = str(error).strip()
    return text.rpartition("\n")[2] if "Traceback (most recent call last)" in text else text


def _at_home(argument: str) -> str:
    """--name=~/folder as a shell reads `--name ~/folder`."""
    name, equals, value = argument.partition("=")
    if equals and re.match(r"~[\w.-]*(/|$)", value):
        return f"{name}={os.path.expanduser(value)}"
    return argument


def _parse(argv: list[str]) -> list[str]:
    argv = [argv[0], *map(_at_home, argv[1:])]
    try:
        rest = flags.FLAGS(argv)
        message = _config_fault() or _not_finite()
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        has_config = "config" in flags.FLAGS
        message = (_unknown_field(argv) if has_config else None) or _last_line(error)
    else:
        if message is None:
            return rest
    sys.exit(f"error: {_a_screen(message)}\n`python {argv[0]} --help` shows every flag.")


def _quiet_logs() -> None:
    # What fails is raised as well; of a full disk, orbax's threads write a thousand lines.
    wanted = TRACEBACK.value
    absl_logging.set_verbosity(absl_logging.ERROR if wanted else absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR if wanted else logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("fasttta_jax")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _quiet_late_writes() -> None:
    """Leaves out what TensorStore's threads print when another of orbax's writes has failed."""
    show = sys.unraisablehook

    def hook(found: sys.UnraisableHookArgs) -> None:
        if str(found.exc_value) != "Event loop is closed":
            show(found)

    sys.unraisablehook = hook


def _logs_of_host() -> None:
    """With several hosts: lines begin with the host, and only host 0 says what is not a warning."""
    if coordination.count() == 1:
        return
    ours = logging.getLogger("fasttta_jax")
    form = f"%(asctime)s [{coordination.index()}/{coordination.count()}] %(message)s"
    ours.handlers[0].setFormatter(logging.Formatter(form, "%H:%M:%S"))
    ours.setLevel(logging.INFO if coordination.index() == 0 else logging.WARNING)


def _keep_compiled() -> None:
    folder, reason = compilation_cache.turn_on(COMPILATION_CACHE.value)
    if reason:
        logger.warning(
            "compiled programs are not kept for the next command: %s; --compilation_cache names "
            "another folder",
            reason,
        )
    elif folder is None:
        logger.info("compiled programs are not kept for the next command")
    else:
        logger.info("compiled programs are kept in %s", folder)


def define_distributed_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of an entry point that several hosts run together; see `start_distributed`."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "host:port where process 0 of the job listens. Together with the next two; none of them on "
        "one host, TPU pods, GKE, Slurm or Open MPI, where the job is detected.",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "Processes of the job.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", flag_values=values)


def define_share_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of a command whose work several processes share without being one job; see `share`."""
    flags.DEFINE_integer(
        "process_id",
        None,
        "Number of this process, from 0, among those that share the work: each is started by "
        "itself, and they need a file system in common.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "Processes that share the work.", flag_values=values
    )


def share(
    process_id: Callable[[], int] = lambda: 0, num_processes: Callable[[], int] = lambda: 1
) -> tuple[int, int]:
    """--process_id and --num_processes; the arguments say them where a flag is not given."""
    values = flags.FLAGS
    index = process_id() if values.process_id is None else values.process_id
    count = num_processes() if values.num_processes is None else values.num_processes
    return index, count


def start_distributed() -> None:
    """Joins the job that flags, environment or cluster tell of; nothing on one host.

    To be called first in `main`, before a device is touched.

    Raises:
      ValueError, StartError: see `distributed.start`.
    """
    values = flags.FLAGS
    distributed.start(values.coordinator_address, values.num_processes, values.process_id)
    _logs_of_host()


def _stop(code: int, text: str, gone: Sequence[int] = ()) -> None:
    """Ends with a message; with several hosts, all but those that are `gone` already."""
    if coordination.count() == 1:
        print(f"error: {text}", file=sys.stderr)
        sys.exit(code)
    host = f"host {coordination.index()} of {coordination.count()}"
    print(f"error on {host}: {text}", file=sys.stderr)
    failures.leave(code, text, gone)


def _preempted(stop: Preempted) -> None:
    """All hosts come here after the same step; only the first says so."""
    code = exit_codes.INTERRUPTED if stop.signal == "SIGINT" else exit_codes.PREEMPTED
    if coordination.index() == 0:
        print(stop, file=sys.stderr)
    try:
        distributed.finish(timeout=60)
    except (RuntimeError, TimeoutError) as error:  # a host that was killed after it had saved
        logging.getLogger("fasttta_jax").warning("%s", error)
        failures.leave(code, str(stop))
    sys.exit(code)


def _said(error: BaseException) -> str:
    """The text of an error that is expected."""
    if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is not None:
        return (
            f"{os.fsdecode(error.filename)} cannot be written: {os.strerror(error.errno)}. Make "
            "room, then give the same command"
        )
    return str(error)


def _failed(error: BaseException) -> None:
    expected = isinstance(error, ValueError | OSError | RuntimeError | FloatingPointError)
    lost = isinstance(error, HostLost)
    if coordination.count() > 1 and (lost or failures.may_come_from_another_host(error)):
        seconds = 0 if lost else BLAME_SECONDS
        failure = failures.wait_for_first(seconds)
        if failure is not None:
            _stop(failure.code, f"{failure.describe()}; this host stops too")
    if TRACEBACK.value or not expected:
        if coordination.count() == 1:
            raise error
        traceback.print_exception(error)
    text = _a_screen(_said(error) if expected else f"{type(error).__name__}: {error}")
    gone = error.hosts if isinstance(error, HostLost) else ()
    by_others = isinstance(error, HostLost | distributed.StartError | TimeoutError)
    _stop(exit_codes.LOST if by_others else exit_codes.ERROR, text, gone)


def run(main: Callable[..., None], arguments: str = "") -> None:
    """Parses flags, runs `main`, and turns its end into a message and one of `exit_codes`.

    `arguments` names those that stand without a flag, such as "KIND SOURCE"; `main` is given them.

    With several hosts, an end that is not orderly on one ends all of them.
    """

    def guarded(argv: list[str]) -> None:
        names = arguments.split()
        if len(argv) - 1 != len(names):
            if not names:
                sys.exit(f"error: {argv[1]!r} is not a flag; flags look like --name=value")
            sys.exit(
                f"error: {len(argv) - 1} arguments, expected {len(names)}: {arguments} [flags]; "
                "--help says more"
            )
        _quiet_logs()
        _quiet_late_writes()
        for stream in (sys.stdout, sys.stderr):  # names may hold what a terminal cannot show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            _keep_compiled()
            main(*argv[1:])
            distributed.finish()
        except Preempted as stop:
            _preempted(stop)
        except Exception as error:
            _failed(error)
        except BaseException as error:  # Ctrl-C, sys.exit
            if coordination.count() == 1 or getattr(error, "code", 1) in (0, None):
                raise
            _failed(error)

    app.run(guarded, flags_parser=_parse)
