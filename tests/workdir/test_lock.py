"""Two trainings never share a workdir; what a killed one leaves keeps nobody out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import time

import pytest

from fasttta_jax.storage.files import AnyPath, as_path, write_json
from fasttta_jax.storage.locks import locked
from fasttta_jax.workdir import lock
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


class NoLocks:
    """A file system without locks, as NFS is where its lock service does not run."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def acquire(self) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=["object store", "no locks", "locks of one host"])
def workdir(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> AnyPath:
    """A workdir where the note decides, in which a training counts quickly."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "STILL_SECONDS", 0.5)
    if request.param == "object store":
        object_store.install(monkeypatch)
        return as_path("gs://bucket/run")
    if request.param == "no locks":
        monkeypatch.setattr("filelock.FileLock", NoLocks)
    else:  # each process here is a host
        held = contextlib.nullcontext(True)
        monkeypatch.setattr(lock, "locked", lambda *_, **__: held)
        monkeypatch.setattr(lock, "machine", lambda: secrets.token_hex(6))
    return tmp_path


def test_without_locks_a_note_that_changes_keeps_others_out(workdir: AnyPath) -> None:
    with only_training(workdir) as guard:
        with pytest.raises(WorkdirError, match=f"in use by process {os.getpid()} on host"):
            only_training(workdir).__enter__()
        guard.check()
    assert not (workdir / OWNER_FILE).exists()
    began = time.monotonic()
    with only_training(workdir):  # the one before has ended in order
        assert time.monotonic() - began < lock.STILL_SECONDS


def test_a_note_that_stands_still_is_of_a_training_that_is_gone(
    workdir: AnyPath, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the clock said that its time was taken from."""
    note = {"host": "far", "process": 7, "since": "2099-01-01T00:00:00+00:00", "token": "x"}
    write_json(workdir / OWNER_FILE, note)
    caplog.set_level("INFO", "fasttta_jax")
    with only_training(workdir):
        assert json.loads((workdir / OWNER_FILE).read_bytes())["process"] == os.getpid()
    assert "process 7 on host far, since 2099-01-01T00:00:00+00:00 is gone" in caplog.text


def check_often(guard: lock.Guard) -> None:
    for _ in range(1000):
        guard.check()
        time.sleep(0.01)


def test_a_training_whose_place_is_taken_saves_nothing_more(workdir: AnyPath) -> None:
    with only_training(workdir) as guard:
        write_json(workdir / OWNER_FILE, {"host": "far", "process": 7, "since": "noon"})
        with pytest.raises(WorkdirError, match="taken by process 7 on host far, since noon"):
            check_often(guard)
    assert json.loads((workdir / OWNER_FILE).read_bytes())["process"] == 7


def test_a_file_system_without_locks_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("filelock.FileLock", NoLocks)
    caplog.set_level("WARNING", "fasttta_jax")
    with locked(tmp_path / "lock") as has_lock:
        assert not has_lock
    assert f"{tmp_path / 'lock'} cannot be locked: No locks available" in caplog.text
