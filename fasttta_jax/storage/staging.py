"""Folders of an object store copied to this host once, for what must be read from local files.

Record shards are read at random and tables are memory-mapped, so neither can stay behind a URL. A
copy is named after the URL and what lies there: names, sizes, and the contents of the small JSON
files, which hold the hashes of the large ones. Other data under the same URL are therefore another
copy. A copy is made beside its final name and renamed when every file has its size; one that was
interrupted is continued, and processes of one host wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping

from fsspec.callbacks import TqdmCallback

from fasttta_jax.config import DataConfig
from fasttta_jax.storage.files import (
    AnyPath,
    StorageError,
    as_path,
    filesystem,
    is_remote,
    list_files,
    storage_errors,
)
from fasttta_jax.storage.locks import locked

logger = logging.getLogger(__name__)

DEFAULT_CACHE = DataConfig().cache
DESCRIPTION_SIZE = 2**20
"""Bytes up to which a JSON file counts as a description and is compared by content."""


def stage(
    path: str | os.PathLike[str],
    cache: str | os.PathLike[str] = DEFAULT_CACHE,
    *,
    only: Collection[str] | None = None,
) -> pathlib.Path:
    """A local folder with what is at `path`; a local path is returned as it is.

    Args:
      path: a folder, local or the URL of an object store.
      cache: folder of this host that holds the copies; "~" is the home folder.
      only: folders and files directly below `path` that are needed; None for all.

    Raises:
      StorageError: there is nothing at the URL, it cannot be read, or the cache cannot be written
        or is too small; says how many bytes are needed and free.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    source = as_path(path)
    with storage_errors(source, "read"):
        files = list_files(source)
        if only is not None:
            files = {name: size for name, size in files.items() if name.split("/")[0] in only}
        if not files:
            wanted = "" if only is None else f" below {', '.join(sorted(only))}"
            raise StorageError(
                f"{os.fspath(path)} holds no file{wanted}; allowed: a folder that holds some"
            )
        identity = _identity(source, files)
    root = pathlib.Path(cache).expanduser()
    target = root / f"{source.name or 'folder'}-{identity[:16]}"
    if _is_complete(target, files):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            if not _is_complete(target, files):
                _copy(source, files, target)
    except OSError as error:
        needed = sum(files.values())
        raise StorageError(
            f"{os.fspath(path)} cannot be copied to {root}: {error}. It needs {needed:,} bytes"
            f"{_free(root)}; data.cache names a folder that may be written and has room"
        ) from error
    return target


def _free(folder: pathlib.Path) -> str:
    with contextlib.suppress(OSError):
        return f", and {shutil.disk_usage(folder).free:,} are free"
    return ""


def _identity(source: AnyPath, files: Mapping[str, int]) -> str:
    """Hash of the URL, the names and sizes, and the contents of small JSON files."""
    digest = hashlib.sha256(os.fspath(source).encode())
    for name, size in files.items():
        digest.update(f"\0{name}\0{size}".encode())
        if name.endswith(".json") and size <= DESCRIPTION_SIZE:
            digest.update((source / name).read_bytes())
    return digest.hexdigest()


def _is_complete(target: pathlib.Path, files: Mapping[str, int]) -> bool:
    """Whether a finished copy is there and still whole."""
    return target.is_dir() and all(_has(target / name, size) for name, size in files.items())


def _has(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _copy(source: AnyPath, files: Mapping[str, int], target: pathlib.Path) -> None:
    """Copies what is missing, then gives the folder its name.

    Raises:
      StorageError: a file cannot be copied, or is not of the size that was listed.
      OSError: the cache is too small.
    """
    partial = target.with_name(f"{target.name}.partial")
    if target.is_dir():  # finished once, and damaged since
        shutil.rmtree(partial, ignore_errors=True)
        os.replace(target, partial)
    partial.mkdir(exist_ok=True)
    missing = {name: size for name, size in files.items() if not _has(partial / name, size)}
    needed, free = sum(missing.values()), shutil.disk_usage(partial).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are still to come")
    logger.info("copying %s to %s: %d files, %.3g GB", source, target, len(missing), needed / 1e9)
    with (
        storage_errors(source, f"copied to {partial}"),
        TqdmCallback({"desc": f"copying {os.fspath(source)}", "unit": "file"}) as progress,
    ):
        filesystem(source).get(
            [os.fspath(source / name) for name in missing],
            [os.fspath(partial / name) for name in missing],
            callback=progress,  # pyright: ignore[reportArgumentType]  # typed by its default
        )
    for name, size in missing.items():
        found = (partial / name).stat().st_size
        if found != size:
            raise StorageError(
                f"{os.fspath(source / name)} was listed with {size:,} bytes and has {found:,}; is "
                "it being written? Start again when it is complete"
            )
    os.replace(partial, target)
