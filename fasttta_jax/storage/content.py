"""SHA-256 of files' contents, kept so that a file which is what it was is not read again.

A file counts as what it was where size, inode and both times, of its content and of its entry, are
the same. What is known lies in the user's cache, in one JSON file for each folder that was asked
about; where that cannot be written, files are read each time.

A file that changed a moment before it was read may change again and keep its times, so that it is
not remembered. Times are those of the file server's clock, which may differ from this host's: the
moment of reading is taken to be at least the latest change among the files, and the time that has
passed here since their times were asked for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Collection, Iterable
from typing import Any

from tqdm import tqdm

from fasttta_jax.storage.files import write_json
from fasttta_jax.storage.user_cache import user_cache

CACHE = "hashes"
"""In the user's cache."""
WORKERS = 4
SETTLED_NS = 2 * 10**9
"""A file that changed so short a time ago may change again and keep its time."""
SHOWN_AFTER = 5.0
"""Seconds until a progress bar says what takes so long."""

Stamp = list[int]
"""Size, times of change of content and of entry in ns, inode."""
CHANGED = 2
"""Where a stamp has the time that no program can set."""


def content_hashes(folder: str | os.PathLike[str], names: Iterable[str]) -> dict[str, str | None]:
    """SHA-256 of files by name, hexadecimal; None for one that is not there or cannot be read.

    Args:
      folder: that the names are relative to.
      names: of files.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    names = list(dict.fromkeys(names))
    kept = _kept_file(folder)
    known = _read(kept)
    asked_at = time.monotonic_ns()
    stamps = {name: _stamp(folder / name) for name in names}
    found = {
        name: known[name][1]
        for name, stamp in stamps.items()
        if stamp is not None and name in known and known[name][0] == stamp
    }
    unknown = [name for name in names if name not in found and stamps[name] is not None]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        hashes = pool.map(lambda name: (time.monotonic_ns(), _sha256(folder / name)), unknown)
        bar = tqdm(hashes, f"hashing {folder}", len(unknown), unit="file", delay=SHOWN_AFTER)
        read = dict(zip(unknown, bar, strict=True))
    found |= {name: value for name, (_, value) in read.items()}
    if unknown and kept is not None:
        latest = max(stamp[CHANGED] for stamp in stamps.values() if stamp is not None)
        settled = {
            name: (stamp, value)
            for name, (read_at, value) in read.items()
            if (stamp := stamps[name]) is not None
            and stamp[CHANGED] < latest + read_at - asked_at - SETTLED_NS
        }
        _keep(kept, known, settled)
    return {name: found.get(name) for name in names}


def _kept_file(folder: pathlib.Path) -> pathlib.Path | None:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    try:
        return user_cache(CACHE) / f"{name}.json"
    except OSError:  # no home
        return None


def _read(kept: pathlib.Path | None) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(kept.read_bytes()) if kept is not None else {}
        if isinstance(found, dict) and all(_is_entry(entry) for entry in found.values()):
            return found
    return {}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)


def _keep(kept: pathlib.Path, known: dict[str, Any], new: dict[str, Any]) -> None:
    right = {name: entry for name, entry in new.items() if entry[1] is not None and _is_utf8(name)}
    with contextlib.suppress(OSError):  # no room, or a home that is not to be written
        write_json(kept, {**known, **right})


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _stamp(path: pathlib.Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def file_sha256(path: pathlib.Path) -> str:
    """Of a file's bytes, hexadecimal; the file is read.

    Raises:
      OSError: it cannot be.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(path: pathlib.Path) -> str | None:
    with contextlib.suppress(OSError):
        return file_sha256(path)
    return None


def combined(named: Iterable[tuple[str, object]]) -> str:
    """One hash of names, in order, with what is known of each."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name}\n{value}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def folder_hash(folder: pathlib.Path, names: Collection[str]) -> str:
    """One hash of the names and contents of files."""
    return combined(sorted(content_hashes(folder, names).items()))
