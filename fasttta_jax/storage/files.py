"""Paths of this machine and of object stores, and reading and writing of what lies there.

A URL such as gs://bucket/folder becomes an `epath.Path`, everything else a `pathlib.Path`. An
object appears when it is written to its end and cannot be appended to; folders are only the
beginnings of names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import fsspec.config
from etils import epath

from fasttta_jax.storage.whole import whole

AnyPath = pathlib.Path | epath.Path
"""Of this machine, or of an object store."""
BACKENDS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs"), "az": ("az", "adlfs")}
"""By scheme, what fsspec calls it, and the package that it needs."""


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
