"""The service that connects a job's hosts: who they are, and small texts from each to all.

It is jax.distributed's, runs in host 0's process, and needs no device: it works before the first
array and while a collective hangs. jax 0.10 to 0.12 have no public interface to it, so this is the
one module that uses their private one. A "host" is one process of the job. On one host without
jax.distributed nothing is running, and the count is 1.
"""

from __future__ import annotations

import socket
from typing import Any

from jax._src import distributed as _jax_distributed

ROOT = "fasttta_jax/"


def _client() -> Any:
    return _jax_distributed.global_state.client


def is_running() -> bool:
    """Whether jax.distributed has been started in this process."""
    return _client() is not None


def index() -> int:
    """This host's number, from 0; touches no device."""
    return _jax_distributed.global_state.process_id if is_running() else 0


def count() -> int:
    """Number of hosts; touches no device."""
    return _jax_distributed.global_state.num_processes if is_running() else 1


def address() -> str | None:
    """host:port of host 0, None until it is given or detected."""
    return _jax_distributed.global_state.coordinator_address


def connection_error(where: str) -> str | None:
    """Why nothing answers at host:port; None where something does."""
    try:
        host, port = where.rsplit(":", 1)
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


def put(key: str, text: str) -> None:
    """Stores a text under `key`, which must be new."""
    _client().key_value_set(ROOT + key, text)


def remove(key: str) -> None:
    """Removes a text."""
    _client().key_value_delete(ROOT + key)


def texts(folder: str) -> dict[int, str]:
    """The texts stored so far under "<folder>/<host>", by host."""
    pairs = _client().key_value_dir_get(f"{ROOT}{folder}/")
    return {int(key.rsplit("/", 1)[1]): text for key, text in pairs}


def barrier(name: str, seconds: float) -> None:
    """Returns when every host has come here; a name serves once."""
    _client().wait_at_barrier(ROOT + name, int(seconds * 1000))
