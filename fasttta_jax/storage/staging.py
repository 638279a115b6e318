"""Folders of an object store copied to this host once, for what must be read from local files.

Record shards are read at random and tables are memory-mapped, so neither can stay behind a URL. A
copy is named after the URL and what lies there: names, sizes, and the contents of the small JSON
files, which hold the hashes of the large ones. Other data under the same URL are therefore another
copy. A copy is made beside its final name, file by file, and renamed when it is complete; a process
that was killed is continued, and processes of one host wait for each other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import IO

from fasttta_jax.config import DataConfig
from fasttta_jax.storage.files import (
    AnyPath,
    StorageError,
    as_path,
    is_remote,
    list_files,
    storage_errors,
)

logger = logging.getLogger(__name__)

DEFAULT_CACHE = DataConfig().cache
DESCRIPTION_SIZE = 2**20
"""Bytes up to which a JSON file counts as a description and is compared by content."""
BLOCK_SIZE = 2**23
COPY_THREADS = 8
LOG_SECONDS = 10.0


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
        with _lock(target.with_name(f"{target.name}.lock")):
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


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Held by one process of this host; let go when the process ends, however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for the process that copies to %s", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(source: AnyPath, files: Mapping[str, int], target: pathlib.Path) -> None:
    """Copies what is missing, then gives the folder its name."""
    partial = target.with_name(f"{target.name}.partial")
    if target.is_dir():  # finished once, and damaged since
        shutil.rmtree(partial, ignore_errors=True)
        os.replace(target, partial)
    partial.mkdir(exist_ok=True)
    missing = {name: size for name, size in files.items() if not _has(partial / name, size)}
    needed, free = sum(missing.values()), shutil.disk_usage(partial).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are still to come")
    progress = _Progress(os.fspath(source), needed)
    logger.info("copying %s to %s: %d files, %.3g GB", source, target, len(missing), needed / 1e9)
    with concurrent.futures.ThreadPoolExecutor(COPY_THREADS, "staging") as pool:
        copies = [
            pool.submit(_copy_file, source / name, partial / name, size, progress)
            for name, size in sorted(missing.items(), key=lambda item: -item[1])
        ]
        try:
            for copy in concurrent.futures.as_completed(copies):
                copy.result()
        except BaseException:
            progress.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    os.replace(partial, target)


def _copy_file(source: AnyPath, target: pathlib.Path, size: int, progress: _Progress) -> None:
    """One file, under its name only when it is complete.

    Raises:
      StorageError: it cannot be read, or is not of the size that was listed.
      OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.part")
    with temporary.open("wb") as written:
        with storage_errors(source, "read"):
            reader: IO[bytes] = source.open("rb")
        with reader:
            while block := _read_block(source, reader):
                written.write(block)
                progress.add(len(block))
    found = temporary.stat().st_size
    if found != size:
        raise StorageError(
            f"{os.fspath(source)} was listed with {size:,} bytes and has {found:,}; is it being "
            "written? Start again when it is complete"
        )
    os.replace(temporary, target)


def _read_block(source: AnyPath, reader: IO[bytes]) -> bytes:
    with storage_errors(source, "read"):
        return reader.read(BLOCK_SIZE)


class _Progress:
    """Logs how far the copying is, at most every LOG_SECONDS; ends it when it was stopped."""

    def __init__(self, source: str, total: int) -> None:
        self._source, self._total = source, total
        self._done, self._stopped = 0, False
        self._start = self._logged = time.monotonic()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Makes the copies that are under way give up at their next block."""
        self._stopped = True

    def add(self, count: int) -> None:
        """So many bytes more.

        Raises:
          StorageError: the copying was stopped.
        """
        if self._stopped:
            raise StorageError(f"copying {self._source} was stopped")
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._logged < LOG_SECONDS:
                return
            self._logged = now
            done = self._done
        rate = done / (now - self._start)
        logger.info(
            "%s: %.3g of %.3g GB, %.3g MB a second, %.0f s left",
            self._source,
            done / 1e9,
            self._total / 1e9,
            rate / 1e6,
            max(0.0, self._total - done) / rate,
        )
