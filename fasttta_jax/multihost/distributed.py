"""Many hosts as one job: start-up, small exchanges, and checks that all hosts agree.

A "host" is one process of the job. Exchanges go through the service that jax.distributed runs, not
through devices, so they can say who is missing. Every host calls them in the same order, from its
main thread. With one host all of them are trivially right, and `start` does nothing.
"""

from __future__ import annotations

import builtins
import collections
import functools
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fasttta_jax.config import flatten
from fasttta_jax.multihost import coordination, failures
from fasttta_jax.multihost.startup import StartError, initialize

__all__ = [
    "HostsDisagree",
    "StartError",
    "agree_ok",
    "check_agreement",
    "code_version",
    "finish",
    "gather",
    "on_first_host",
    "start",
    "to_host",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a host may do while others wait for it: read a dataset's index, convert weights, copy them.
WAIT_SECONDS = 3600.0
FINISH_SECONDS = 600.0
MOST_CHARACTERS = 60
PACKAGE = pathlib.Path(__file__).parents[1]
"""The folder of this package."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

_numbers = itertools.count()


class HostsDisagree(ValueError):
    """Hosts of one job were started with different configs, data or code; says where."""


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: float = 600.0,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins this process to its job; to be called before anything else touches a device.

    The place in the job is given (all three arguments, or the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), or detected by jax on TPU pods,
    GKE, Slurm and Open MPI. Where there is nothing to detect this is one host, and nothing is done.
    A second call does nothing.

    Args:
      coordinator_address: host:port where process 0 will listen.
      num_processes: processes of the job.
      process_id: this one's number, from 0.
      start_timeout: seconds to wait for all processes. Pods of a job start minutes apart.
      heartbeat_timeout: seconds of silence after which jax takes a host for dead and ends the job.
        Moving a virtual machine to other hardware may silence it for a minute.

    Raises:
      ValueError: only some of the three are given, one is out of range, or processes were given
        different numbers of processes.
      StartError: the coordinator cannot be reached, or a process did not come.
    """
    if coordination.is_running():
        return
    initialize(coordinator_address, num_processes, process_id, start_timeout, heartbeat_timeout)
    if not coordination.is_running():
        return
    failures.listen()
    logger.info(
        "host %d of %d: %d of %d devices (%s)",
        coordination.index(),
        coordination.count(),
        jax.local_device_count(),
        jax.device_count(),
        jax.devices()[0].device_kind,
    )


def finish(timeout: float = FINISH_SECONDS) -> None:
    """Leaves the job in order: waits until all hosts have come here, then shuts the service down.

    Raises:
      TimeoutError: a host did not come within `timeout` seconds; names it.
    """
    if not coordination.is_running():
        return
    gather(None, what="the end of the run", timeout=timeout)
    failures.stop_listening()
    jax.distributed.shutdown()


def gather(value: Any, *, what: str = "", timeout: float = WAIT_SECONDS) -> list[Any]:
    """The values of all hosts, in order of their index; the same list on every host.

    Args:
      value: anything that JSON can hold; a tuple comes back as a list.
      what: what the hosts are doing, for errors.
      timeout: seconds to wait for the others.

    Raises:
      TimeoutError: hosts did not come in time; names them.
      RuntimeError: hosts are at different places of the program.
    """
    text = json.dumps([what, value])
    if coordination.count() == 1:
        return [json.loads(text)[1]]
    number = next(_numbers)
    coordination.put(f"gather/{number}/{coordination.index()}", text)
    found = [json.loads(text) for text in _wait_for_all(number, what, timeout)]
    if number:  # that all are here means that all have read the one before
        coordination.remove(f"gather/{number - 1}/{coordination.index()}")
    places = {repr(place): host for host, (place, _) in enumerate(found)}
    if len(places) > 1:
        shown = ", ".join(f"host {host} at {place}" for place, host in places.items())
        raise RuntimeError(f"hosts are at different places of the program: {shown}")
    return [value for _, value in found]


def _wait_for_all(number: int, what: str, timeout: float) -> list[str]:
    """Polls, unlike a barrier, so that Ctrl-C works and the missing are known."""
    deadline = time.monotonic() + timeout
    pause = 0.002
    while True:
        texts = coordination.texts(f"gather/{number}")
        if len(texts) == coordination.count():
            return [texts[host] for host in range(len(texts))]
        if time.monotonic() > deadline:
            missing = [host for host in range(coordination.count()) if host not in texts]
            place = f" to {what}" if what else ""
            raise TimeoutError(
                f"{_named(missing)} of {coordination.count()} did not come{place} within "
                f"{timeout:g} s, for which host {coordination.index()} waits"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _named(hosts: Sequence[int]) -> str:
    """ "host 3", "hosts 0 to 2, 5"."""
    runs: list[list[int]] = []
    for host in hosts:
        if runs and runs[-1][-1] == host - 1:
            runs[-1].append(host)
        else:
            runs.append([host])
    parts = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(host) for host in run]
    return ("host " if len(hosts) == 1 else "hosts ") + ", ".join(parts)


def check_agreement(values: Mapping[str, Any]) -> None:
    """Compares the hosts' values; only a hash is exchanged where they are equal.

    Args:
      values: what must be equal, such as {"config": ..., "data": hash, "code": code_version()};
        nested mappings of values that JSON can hold.

    Raises:
      HostsDisagree: on every host; one line for each key that differs, with the hosts of each
        value.
    """
    mine = json.loads(json.dumps(flatten(values)))
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest, what="compare configs, data and code"))) == 1:
        return
    everyone = gather(mine, what="find the differences of configs, data and code")
    lines = []
    for key in sorted({key for theirs in everyone for key in theirs}):
        hosts = collections.defaultdict(list)
        for host, theirs in enumerate(everyone):
            hosts[_shown(theirs[key]) if key in theirs else "absent"].append(host)
        if len({json.dumps(theirs.get(key)) for theirs in everyone}) > 1 or len(hosts) > 1:
            each = "; ".join(f"{value} on {_named(which)}" for value, which in hosts.items())
            lines.append(f"  {key}: {each}")
    raise HostsDisagree(
        "the hosts of this job differ, and would train different things:\n"
        + "\n".join(lines)
        + "\nStart all of them with the same command, data and code"
    )


def _shown(value: Any) -> str:
    """A value in a message; long ones by their ends, and a hash that tells them apart."""
    text = repr(value)
    if len(text) <= MOST_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[:24]}...{text[-8:]} (sha256 {digest})"


@functools.cache
def code_version() -> dict[str, str]:
    """What runs here: a hash of this package's files, and the versions of what it builds on."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.glob("**/*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"fasttta_jax": f"files {digest.hexdigest()[:12]}", **versions}


def on_first_host(function: Callable[..., T], *arguments: Any) -> T:
    """Runs `function` on host 0 while the others wait, and returns its result on all of them.

    Args:
      function: must return what JSON can hold; a tuple comes back as a list.
      *arguments: its arguments.

    Raises:
      Exception: what host 0 raised, on every host; where its type cannot be made from its text
        alone, the others raise a RuntimeError with both.
    """
    if coordination.count() == 1:
        return function(*arguments)
    what = f"wait for {getattr(function, '__qualname__', repr(function))} on host 0"
    outcome: dict[str, Any] = {}
    raised: Exception | None = None
    if coordination.index() == 0:
        try:
            outcome = {"value": function(*arguments)}
            json.dumps(outcome)
        except Exception as error:
            raised, outcome = error, _described(error)
    outcome = gather(outcome, what=what)[0]
    if raised is not None:
        raise raised
    if "type" in outcome:
        raise _remade(outcome)
    return outcome["value"]


def _described(error: Exception) -> dict[str, str]:
    kind = type(error)
    return {"module": kind.__module__, "type": kind.__qualname__, "text": str(error)}


def _remade(described: Mapping[str, str]) -> Exception:
    """The error of another host: of the same type where that shows the same text."""
    text = described["text"]
    module = described["module"]
    kind: Any = None
    if module == "builtins":
        kind = getattr(builtins, described["type"], None)
    elif module.split(".")[0] == "fasttta_jax":
        kind = getattr(importlib.import_module(module), described["type"], None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind.__new__(kind, text)  # not __init__, which may take other arguments
            if str(error) == text:
                return error
        except Exception:
            logger.debug("%s cannot be made from its text", kind)
    return RuntimeError(f"{described['type']}: {text}")


def agree_ok(error: Exception | None, what: str = "") -> None:
    """Raises on all hosts where any has an error, so that none goes on alone.

    Args:
      error: of this host, or None.
      what: what the hosts were doing, for errors of the exchange.

    Raises:
      Exception: on one host, or where all hosts have the same error, that error; else of the
        type that all errors have in common, or a RuntimeError, naming each host and its text.
    """
    if coordination.count() == 1:
        if error is not None:
            raise error
        return
    outcomes = gather(None if error is None else _described(error), what=what)
    failed = {host: outcome for host, outcome in enumerate(outcomes) if outcome}
    if not failed:
        return
    kinds = {(outcome["module"], outcome["type"]) for outcome in failed.values()}
    texts = {outcome["text"] for outcome in failed.values()}
    if error is not None and len(failed) == len(outcomes) and len(kinds) == len(texts) == 1:
        raise error
    text = "; ".join(
        f"host {host} of {len(outcomes)}: {outcome['text'] or outcome['type']}"
        for host, outcome in failed.items()
    )
    module, kind = kinds.pop() if len(kinds) == 1 else ("builtins", "RuntimeError")
    raise _remade({"module": module, "type": kind, "text": text}) from error


def to_host(tree: T) -> T:
    """The whole values of a tree of arrays, as numpy arrays, on every host.

    An array that is sharded over hosts is collected from them, leaf by leaf: all hosts call this
    with the same tree. What this host holds whole is only copied.
    """
    return jax.tree.map(_leaf_to_host, tree)


def _leaf_to_host(leaf: Any) -> np.ndarray:
    whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    return np.asarray(leaf) if whole else multihost_utils.process_allgather(leaf, tiled=True)
