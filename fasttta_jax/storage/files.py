"""Paths of this machine and of object stores, and files that are there whole or not at all.

A URL such as gs://bucket/folder becomes an `epath.Path`, everything else a `pathlib.Path`. An
object appears when it is written to its end and cannot be appended to; folders are only the
beginnings of names.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import fsspec.config
from etils import epath

from fasttta_jax.storage.processes import is_gone, machine

AnyPath = pathlib.Path | epath.Path
"""Of this machine, or of an object store."""
BACKENDS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs"), "az": ("az", "adlfs")}
"""By scheme, what fsspec calls it, and the package that it needs."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow: the disk is full, or a quota or limit reached."""
TEMPORARY = ".tmp"
"""How names of files and folders end that are not whole yet; they begin with a dot."""
_OWNER = re.compile(rf"\.([0-9a-f]+)-([0-9a-f]{{12}})-[0-9a-f]{{8}}{re.escape(TEMPORARY)}$")
"""Process and machine in such a name; earlier versions had neither."""


class StorageError(ValueError):
    """A path that cannot be used: no such scheme, no access, nothing there."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a URL of an object store."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A path that can be read and written, wherever it lies.

    Args:
      path: a path of this machine, or a URL.

    Raises:
      StorageError: the scheme is unknown, or the package that it needs is not installed.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    url = os.fspath(path)
    scheme = url.split("://")[0]
    if scheme not in BACKENDS:
        allowed = ", ".join(f"{name}://" for name in BACKENDS)
        raise StorageError(f"{url} begins with {scheme}://; allowed: {allowed}, or a local path")
    protocol, package = BACKENDS[scheme]
    # What another host has written since the last listing must be seen.
    fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    if importlib.util.find_spec("tensorflow") is None:  # which etils would take instead
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise StorageError(
                f"{url} cannot be opened: {scheme}:// needs a package that is not installed; "
                f"`pip install {package}`"
            ) from error
    return epath.Path(url)


def filesystem(url: AnyPath) -> fsspec.AbstractFileSystem:
    """What fsspec has for the scheme of a URL."""
    return fsspec.filesystem(BACKENDS[os.fspath(url).split("://")[0]][0])


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turns whatever a file system or an object store raises into a StorageError.

    Args:
      path: what is worked on.
      doing: for the message, such as "read".
    """
    caught = Exception if is_remote(path) else OSError  # every store has errors of its own
    try:
        yield
    except StorageError:
        raise
    except caught as error:
        cause = str(error) or type(error).__name__
        raise StorageError(
            f"{os.fspath(path)} cannot be {doing}: {cause}; is it there, and may this process use "
            "it?"
        ) from error


def list_files(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Every file below a folder: its path from there, with "/", and its size in bytes.

    In order of name; empty where there is no such folder.
    """
    found: dict[str, int] = {}
    _list_into(found, as_path(folder), "")
    return dict(sorted(found.items()))


def _list_into(found: dict[str, int], folder: AnyPath, prefix: str) -> None:
    try:
        children = list(folder.iterdir())
    except FileNotFoundError:
        return
    for child in children:
        if child.is_dir():
            _list_into(found, child, f"{prefix}{child.name}/")
            continue
        try:
            status = child.stat()
        except FileNotFoundError:  # the mark that some tools leave for a folder itself
            continue
        size = status.st_size if isinstance(status, os.stat_result) else status.length
        found[prefix + child.name] = size


def files_below(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Every file at or below a folder of this machine, in order of name; none where there is none.

    Links are followed, but not back into a folder that they lie in. Folders that may not be read
    are passed over.
    """
    yield from _below(pathlib.Path(folder), ())


def _below(folder: pathlib.Path, above: tuple[tuple[int, int], ...]) -> Iterator[pathlib.Path]:
    try:
        status = folder.stat()
        children = sorted(folder.iterdir())
    except OSError:
        return
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    for child in children:
        if child.is_dir():
            yield from _below(child, (*above, identity))
        elif child.is_file():
            yield child


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


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """The value in a JSON file.

    Args:
      path: here or in an object store.
      kind: what the value must be: dict or list.

    Raises:
      StorageError: the file cannot be read, was not copied whole, or holds another kind of value.
    """
    with damage(path):
        found = json.loads(as_path(path).read_bytes())
        if not isinstance(found, kind):
            raise TypeError(f"it holds a {type(found).__name__}, not a {kind.__name__}")
        return found


@contextlib.contextmanager
def damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever is raised while a file is read and understood into a StorageError naming it.

    Libraries raise what they like at the rest of a file that was copied in part.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{os.fspath(path)} cannot be read: {error.strerror or error}; is it there, and may "
            "this process read it?"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        text = f"it lacks {text}" if isinstance(error, KeyError) else text
        raise StorageError(
            f"{os.fspath(path)} is damaged ({text or type(error).__name__}); was it copied whole? "
            "Copy it again, or make it anew"
        ) from error


def write_json(path: AnyPath, values: Any) -> None:
    """`write_atomically` for JSON."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, here (see `whole`) or in an object store, where objects are always whole.

    Makes the folder.
    """
    if is_remote(path):
        as_path(path).write_bytes(content)
        return
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two records say differently, "seed is 0 there and 1 here", in order of name.

    A name that a record does not have counts as None.
    """
    return [
        f"{name} is {found.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
