"""Files and folders that are there whole or not at all, whatever happens to their writer.

They are written under another name beside their own, `.NAME.PROCESS-MACHINE-RANDOM.tmp`, and
renamed at the end. What a process that was killed has left is known by the name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

from fasttta_jax.storage.processes import is_gone, machine

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow: the disk is full, or a quota or limit reached."""
TEMPORARY = ".tmp"
"""How names of files and folders end that are not whole yet; they begin with a dot."""
_OWNER = re.compile(rf"\.([0-9a-f]+)-([0-9a-f]{{12}})-[0-9a-f]{{8}}{re.escape(TEMPORARY)}$")
"""Process and machine in such a name; earlier versions had neither."""


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of a file that cannot be written, as on a full disk, by the name that it will have.

    Those of `write` name no file, those of NumPy have a text alone, and others name what the file
    is called until it is whole.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and type(error) is OSError:
            raise OSError(f"{final_name(path)} cannot be written: {error}") from error
        said = "" if error.filename is None else os.fsdecode(error.filename)
        name = final_name(said or path)
        if error.errno not in NO_ROOM and (not said or name == said):
            raise
        raise OSError(error.errno, error.strerror, name) from error


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Another path of this machine to write a file to, which stands at `path` at the end.

    Where an error is raised, `path` is what it was. At any moment it holds all of a file or none of
    it, even if the machine goes down; several processes, of several hosts, may write the same file
    at once, and the last of them wins. Its folder must exist; mode bits are those of the file
    before, or those that a new file gets. Where there is no room, the error names `path`.
    """
    path = pathlib.Path(path)
    temporary = _beside(path)
    try:
        with write_errors(path):
            temporary.touch(exist_ok=False)
            if path.is_file():
                shutil.copymode(path, temporary)
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # some libraries let nobody but the owner read what they write
            _sync(temporary)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A new folder of this machine to fill, which stands at `path` at the end, as `whole` does.

    A folder that was there before is replaced, and for a moment there is none. Where several
    processes write the same folder at once, the first of them wins.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = _beside(path), _beside(path)
    before = _identity(path)
    try:
        with write_errors(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            while not _take(temporary, path):
                found = _identity(path)
                if found is not None and found != before:
                    break  # another process was faster
                with contextlib.suppress(FileNotFoundError):  # another process took it away
                    os.rename(path, replaced)
                shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A folder beside `path`, empty, that is gone at the end with what is still in it."""
    temporary = _beside(pathlib.Path(path))
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take(folder: pathlib.Path, path: pathlib.Path) -> bool:
    """Renames a folder; False where another one is in its place."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _identity(folder: pathlib.Path) -> int | None:
    try:
        return folder.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _beside(path: pathlib.Path) -> pathlib.Path:
    owner = f"{os.getpid():x}-{machine()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}{TEMPORARY}")


def final_name(path: str | os.PathLike[str]) -> str:
    """For messages: the path that a file of `whole`, or one in a folder of it, will have."""
    parts = os.fspath(path).split(os.sep)
    found = [_OWNER.search(part) for part in parts]
    named = (
        part if match is None else part[1 : match.start()]
        for part, match in zip(parts, found, strict=True)
    )
    return os.sep.join(named)


def remove_leftovers(folder: pathlib.Path, name: str = "", *, deep: bool = True) -> None:
    """Removes files and folders that processes began to write before they were killed.

    What a living process is writing stays, and so does what processes of other machines wrote, of
    which this one cannot know.

    Args:
      folder: of this machine.
      name: how the names begin of what they were to become.
      deep: whether those in its subfolders count.
    """
    find = folder.rglob if deep else folder.glob
    for path in list(find(f".{name}*{TEMPORARY}")):
        found = _OWNER.search(path.name)
        if found is not None and not is_gone(int(found[1], 16), found[2]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
    """Waits until a file is on the disk: renamed before, it might be empty after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
