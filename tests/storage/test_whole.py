"""Files and folders are whole or not there, whatever happens to who writes them."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import pathlib
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from fasttta_jax.storage.files import list_files, write_atomically
from fasttta_jax.storage.processes import machine
from fasttta_jax.storage.whole import remove_leftovers, whole, whole_folder


def leftovers(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_is_whole_or_what_it_was(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    with whole(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("first")

    def fail() -> None:
        with whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert path.read_text() == "first"
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664])
def test_mode_bits_are_those_of_an_ordinary_file(tmp_path: pathlib.Path, bits: int) -> None:
    """Of the file before, or those that the umask leaves, whatever the writer makes of them."""
    ordinary, path = tmp_path / "ordinary", tmp_path / "file"
    ordinary.touch()
    with whole(path) as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    assert path.stat().st_mode == ordinary.stat().st_mode
    path.chmod(bits)
    write_atomically(path, b"x")
    assert path.stat().st_mode & 0o777 == bits
    (tmp_path / "folder").mkdir()
    with whole_folder(tmp_path / "other"):
        pass
    assert (tmp_path / "other").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_a_folder_is_whole_or_what_it_was(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "folder"
    for content in ("first", "second"):
        with whole_folder(path) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / content).write_text(content)
        assert list(list_files(path)) == [f"deep/{content}"]

    def fail() -> None:
        with whole_folder(path) as folder:
            (folder / "half").touch()
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert list(list_files(path)) == ["deep/second"]
    assert leftovers(path.parent) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), whole_folder(tmp_path / "file"):
        pass
    assert leftovers(tmp_path) == []


def test_several_may_write_the_same_at_once(tmp_path: pathlib.Path) -> None:
    together = threading.Barrier(8)

    def write(number: int) -> None:
        together.wait(30)
        for _ in range(20):
            write_atomically(tmp_path / "file", bytes([number]) * 1000)
            with whole_folder(tmp_path / "folder") as folder:
                for name in ("a", "b"):
                    (folder / name).write_bytes(bytes([number]) * 1000)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(set((tmp_path / "file").read_bytes())) == 1
    found = {(tmp_path / "folder" / name).read_bytes() for name in ("a", "b")}
    assert len(found) == 1
    assert len(set(found.pop())) == 1
    assert leftovers(tmp_path) == []


def fill(path: pathlib.Path) -> None:
    """Raises what a full disk does: `write` names no file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_array(path: pathlib.Path) -> None:
    """As NumPy says it, in a text alone."""
    raise OSError("1000 requested and 12 written")


def fill_inside(path: pathlib.Path) -> None:
    """As `open` says it, of a name that is gone when the user looks."""
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))


def refuse(path: pathlib.Path) -> None:
    """As a folder that may only be read does."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize("write", [whole, whole_folder])
@pytest.mark.parametrize("fault", [fill, fill_array, fill_inside, refuse])
def test_what_cannot_be_written_is_told_by_the_name_of_the_file(
    tmp_path: pathlib.Path,
    write: Callable[[pathlib.Path], AbstractContextManager[pathlib.Path]],
    fault: Callable[[pathlib.Path], None],
) -> None:
    with (
        pytest.raises(OSError, match=f"'?{tmp_path}/new'?") as raised,
        write(tmp_path / "new") as path,
    ):
        fault(path)
    assert ".tmp" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_left_as_they_are(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole(tmp_path / "new"):
        (tmp_path / "elsewhere").read_bytes()


def test_what_a_living_process_writes_is_no_leftover(tmp_path: pathlib.Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept, removed = [], []
    for number, of_machine, stays in (
        (os.getpid(), machine(), True),
        (ended.pid, machine(), False),
        (ended.pid, "0123456789ab", True),  # nobody here can know
    ):
        path = tmp_path / "deep" / f".a.json.{number:x}-{of_machine}-01234567.tmp"
        (kept if stays else removed).append(path)
    removed.append(tmp_path / ".of_an_earlier_version.01234567.tmp")
    (tmp_path / "deep").mkdir()
    for path in (*kept, *removed):
        path.touch()
    removed.append(tmp_path / f".folder.{ended.pid:x}-{machine()}-01234567.tmp")
    (removed[-1] / "inside").mkdir(parents=True)
    with whole(tmp_path / "file") as mine:
        remove_leftovers(tmp_path)
        assert mine.exists()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in removed)
