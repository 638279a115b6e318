"""Two trainings never share a workdir; what a killed one leaves keeps nobody out."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from fasttta_jax.storage.files import as_path
from fasttta_jax.workdir.folder import WorkdirError
from fasttta_jax.workdir.lock import OWNER_FILE, only_training
from tests.support import object_store

HOLD = """
import pathlib, sys, time
from fasttta_jax.workdir.lock import only_training
with only_training(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_training_is_refused_and_the_first_named(tmp_path: pathlib.Path) -> None:
    with only_training(tmp_path):
        mine = f"process {os.getpid()} on host {socket.gethostname()}, since "
        with pytest.raises(WorkdirError, match=mine), only_training(tmp_path):
            pass
        assert (tmp_path / OWNER_FILE).is_file()
    with only_training(tmp_path):
        pass
    assert not (tmp_path / OWNER_FILE).exists()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        named = rf"process {holder.pid} on host"
        with pytest.raises(WorkdirError, match=named), only_training(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / OWNER_FILE).read_text())["process"] == holder.pid
    with only_training(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["process"] == os.getpid()


def test_an_object_store_has_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.install(monkeypatch)
    with only_training(as_path("gs://bucket/run")):
        pass
