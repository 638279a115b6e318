"""How a process finds its job: three given values, or what jax detects of a cluster.

jax ends the whole process from C++ when a job does not start in time. Here a thread of its own
waits, so that the failure becomes an error that says what to check.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from typing import Any, NamedTuple

import jax

from fasttta_jax.multihost import coordination

logger = logging.getLogger(__name__)

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
REPORT_SECONDS = 60.0
# By then our own error is long raised; see the module's docstring.
LATER_SECONDS = 3600
# jax's own shutdown is only begun when all hosts are ready for it.
SHUTDOWN_SECONDS = 60
# What jax raises where it detects no cluster.
NOTHING_DETECTED = "coordinator_address should be defined"


class StartError(RuntimeError):
    """The processes of a job did not find each other; the message says what to check."""


class Place(NamedTuple):
    """A process's place in its job; `source` says where it was given."""

    address: str
    num_processes: int
    process_id: int
    source: str


def _given(values: tuple[Any, Any, Any], names: tuple[str, ...], source: str) -> Place | None:
    missing = [name for name, value in zip(names, values, strict=True) if value in (None, "")]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(
            f"{', '.join(names)} go together, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; set all three, or none where the "
            "cluster is one that is detected"
        )
    address = str(values[0])
    if not re.fullmatch(r".+:[0-9]{1,5}", address):
        raise ValueError(f"{names[0]} is {address!r}; allowed: host:port, such as 10.0.0.2:1234")
    numbers = []
    for name, value in zip(names[1:], values[1:], strict=True):
        if not re.fullmatch(r"-?[0-9]+", str(value)):
            raise ValueError(f"{name} is {value!r}; allowed: a whole number")
        numbers.append(int(value))
    count, index = numbers
    if count < 1:
        raise ValueError(f"{names[1]} is {count}; allowed: 1 or more")
    if not 0 <= index < count:
        raise ValueError(
            f"{names[2]} is {index}; allowed: from 0 to {count - 1}, as {names[1]} is {count}"
        )
    return Place(address, count, index, source)


def find_place(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Place | None:
    """The place by the arguments, else by the environment; None where neither is complete.

    JAX_COORDINATOR_ADDRESS alone is left to jax, which takes it for what it would detect.

    Raises:
      ValueError: some are given and some are not, or one is out of range.
    """
    place = _given((coordinator_address, num_processes, process_id), FLAGS, "flags")
    if place:
        return place
    address, count, index = (os.environ.get(name) for name in VARIABLES)
    if not count and not index:
        return None
    return _given((address, count, index), VARIABLES, "environment")


def slurm_device_ids() -> list[int] | None:
    """All GPUs of the node where Slurm started one task on each; None where jax's choice is right.

    jax gives every task of Slurm one GPU, so that a node's only task would leave the others idle.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if re.fullmatch(r"1(\(x\d+\))?", tasks) and gpus.isdigit() and int(gpus) > 1:
        return list(range(int(gpus)))
    return None


def initialize(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    start_timeout: float,
    heartbeat_timeout: int,
) -> None:
    """Starts jax.distributed where there is a job to join; see `distributed.start`."""
    place = find_place(coordinator_address, num_processes, process_id)
    arguments: dict[str, Any] = {
        "initialization_timeout": int(start_timeout) + LATER_SECONDS,
        "heartbeat_timeout_seconds": heartbeat_timeout,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    if place:
        arguments |= {
            "coordinator_address": place.address,
            "num_processes": place.num_processes,
            "process_id": place.process_id,
            "cluster_detection_method": "deactivate",  # it would leave all GPUs but one idle
        }
    else:
        arguments["local_device_ids"] = slurm_device_ids()
    errors: list[Exception] = []
    done = threading.Event()

    def connect() -> None:
        try:
            jax.distributed.initialize(**arguments)
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=connect, name="jax.distributed", daemon=True).start()
    _wait(done, place, start_timeout)
    if errors:
        if place is None and NOTHING_DETECTED in str(errors[0]):
            return
        raise StartError(f"{_who(place)}could not join its job: {errors[0]}") from errors[0]
    _check_counts(start_timeout)


def _wait(done: threading.Event, place: Place | None, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done.wait(max(0.0, min(REPORT_SECONDS, deadline - time.monotonic()))):
        reason = _why_not_yet(place)
        if time.monotonic() >= deadline:
            raise StartError(f"{_who(place)}waited {timeout:g} s for its job: {reason}")
        logger.warning("%sstill waits for its job: %s", _who(place), reason)


def _who(place: Place | None) -> str:
    return f"process {place.process_id} of {place.num_processes} " if place else "this process "


def _why_not_yet(place: Place | None) -> str:
    address = place.address if place else coordination.address()
    if not address:
        return "the cluster's own service has not said where process 0 is"
    if not (place and place.process_id == 0):
        error = coordination.connection_error(address)
        if error is not None:
            return (
                f"the coordinator {address} does not answer ({error}). Check that process 0 "
                "runs on that machine, and that the port is open between the machines"
            )
    return (
        f"the coordinator {address} runs, but not all processes have come to it. Check that all "
        "of them were started, with the same address and number of processes, and that each "
        "process has a number of its own"
    )


def _check_counts(timeout: float) -> None:
    """Processes that were told different numbers of processes would wait for each other forever."""
    index, count = coordination.index(), coordination.count()
    coordination.put(f"counts/{index}", str(count))
    coordination.barrier("counts", timeout)
    counts = coordination.texts("counts")
    coordination.barrier("counts_read", timeout)
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{counts[host]} by process {host}" for host in sorted(counts))
        raise ValueError(f"the number of processes differs: it was given as {shown}")


SHARES = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("JOB_COMPLETION_INDEX", "JAX_NUM_PROCESSES"),  # an indexed job of Kubernetes
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # inside srun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
"""Variables that say which of how many processes this is, for work that is shared by number."""


def find_share() -> tuple[int, int]:
    """Number of this process, and of all, by the environment; 0 of 1 where it says nothing.

    Raises:
      ValueError: a variable is no number.
    """
    for names in SHARES:
        given = [os.environ.get(name) for name in names]
        if all(given):
            for name, value in zip(names, given, strict=True):
                if not re.fullmatch("[0-9]+", value or ""):
                    raise ValueError(f"{name} is {value!r}; allowed: a whole number")
            index, count = map(int, map(str, given))
            return index, count
    return 0, 1
