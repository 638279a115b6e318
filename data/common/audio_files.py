"""Audio below a folder: files, members of zip archives, and files that rows of parquet embed.

A name is relative to the folder, with "/":

    sub/a.wav                       a file
    Zip_files/b.zip::flac/c.flac    a member of an archive, read without unpacking the others
    data/train-0.parquet::17        the file in a row, counted from 0, as the Hub keeps audio
"""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import threading
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from fasttta_jax.audio.files import SUFFIXES, AudioError, read_audio, read_audio_bytes
from fasttta_jax.storage.content import content_hashes
from fasttta_jax.storage.files import files_below

SEPARATOR = "::"
ROW_GROUPS = 4
"""Groups of rows that are kept of all parquet files: clips are read in their order."""


class AudioFiles:
    """The audio below a folder; safe to be read from many threads.

    Args:
      folder: the folder.

    Raises:
      FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: there is no such folder of audio")
        self._lock = threading.Lock()
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._groups: collections.OrderedDict[tuple[str, int], Any] = collections.OrderedDict()

    @functools.cached_property
    def names(self) -> list[str]:
        """Every audio file, and every one in a zip archive, by suffix and sorted; none hidden.

        Links are followed.
        """
        names = []
        for path in files_below(self.folder):
            name = path.relative_to(self.folder)
            if any(part.startswith(".") for part in name.parts):
                continue
            suffix = path.suffix.lower()
            if suffix in SUFFIXES:
                names.append(name.as_posix())
            elif suffix == ".zip":
                archive = name.as_posix()
                names += [
                    f"{archive}{SEPARATOR}{member}"
                    for member in self._archive(archive).namelist()
                    if _suffix(member) in SUFFIXES
                    and not any(part.startswith((".", "__MACOSX")) for part in member.split("/"))
                ]
        return sorted(names)

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(stem(name), []).append(name)
        return found

    def find(self, *stems: str, within: str = "") -> str | None:
        """The one file whose name without folder and suffix is among `stems`; None without one.

        Args:
          stems: names that it may have.
          within: what its folders must name.

        Raises:
          ValueError: there are several.
        """
        found = [
            name
            for each in dict.fromkeys(stems)
            for name in self._by_stem.get(each, ())
            if within in name
        ]
        if len(found) > 1:
            raise ValueError(
                f"{self.folder} has more than one file for {stems[0]!r}: {', '.join(found)}; give "
                "a folder that holds one of them"
            )
        return found[0] if found else None

    def relative(self, path: str) -> str:
        """The name of a path, that of a row of parquet among them."""
        return pathlib.Path(os.path.relpath(path, self.folder)).as_posix()

    def size(self, name: str) -> int | None:
        """Bytes of a file; of all of a parquet file for a row of it. None where it is missing."""
        container, member = self._parts(name)
        path = self.folder / container
        if not path.is_file():
            return None
        if path.suffix.lower() != ".zip" or not member:
            return path.stat().st_size
        try:
            return self._archive(container).getinfo(member).file_size
        except KeyError:
            return None

    def contents(self, names: Iterable[str]) -> dict[str, str | None]:
        """What tells one content from another, by name; None where there is no such file.

        SHA-256 of a file, of all of a parquet file for a row of it, and the checksum that a zip
        archive has of a member.
        """
        parts = {name: self._parts(name) for name in names}
        zipped = {
            name: parts[name]
            for name in parts
            if parts[name][1] and _suffix(parts[name][0]) == ".zip"
        }
        files = content_hashes(
            self.folder, (parts[name][0] for name in parts if name not in zipped)
        )
        found = {name: files[parts[name][0]] for name in parts if name not in zipped}
        return found | {name: self._checksum(*part) for name, part in zipped.items()}

    def _checksum(self, container: str, member: str) -> str | None:
        if not (self.folder / container).is_file():
            return None
        try:
            return f"crc32 {self._archive(container).getinfo(member).CRC:08x}"
        except KeyError:
            return None

    def read(
        self, name: str, sample_rate: int, *, start: float = 0.0, duration: float | None = None
    ) -> np.ndarray:
        """Mono samples, float32 [S]: see `fasttta_jax.audio.files.read_audio`.

        Raises:
          AudioError: the file is missing or cannot be used.
        """
        container, member = self._parts(name)
        part = {"start": start, "duration": duration}
        if not member:
            return read_audio(self.folder / container, sample_rate, **part)
        path = self.folder / container
        if not path.is_file():
            raise AudioError(path, "missing", "there is no such file")
        data = self._member(container, member)
        return read_audio_bytes(data, sample_rate, name=name, **part)

    def _parts(self, name: str) -> tuple[str, str]:
        """The file below the folder, and what of it; "" for all of it."""
        container, _, member = name.partition(SEPARATOR)
        is_container = _suffix(container) in (".zip", ".parquet")
        return (container, member) if is_container else (name, "")

    def _member(self, container: str, member: str) -> bytes:
        name = f"{container}{SEPARATOR}{member}"
        if _suffix(container) == ".parquet":
            return self._embedded(container, int(member))
        try:
            return self._archive(container).read(member)
        except KeyError as error:
            raise AudioError(name, "missing", "the archive has no such member") from error
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:  # RuntimeError: a password
            raise AudioError(name, "unreadable", f"the archive is broken: {error}") from error

    def _archive(self, name: str) -> zipfile.ZipFile:
        with self._lock:
            if name not in self._archives:
                path = self.folder / name
                try:
                    self._archives[name] = zipfile.ZipFile(path)
                except (zipfile.BadZipFile, NotImplementedError) as error:
                    joined = path.with_stem(f"{path.stem}_joined").name
                    raise ValueError(
                        f"{path} cannot be read as a zip archive: {error}. Where it has parts "
                        f"(.z01, ...), join them with `zip -s 0 {path.name} --out {joined}` and "
                        "leave the parts out of the folder"
                    ) from error
            return self._archives[name]

    def _embedded(self, container: str, row: int) -> bytes:
        """The file in a row; its group of rows is kept for the next ones."""
        with self._lock:
            file = self._parquet(container)
            first = group = 0
            while row >= first + file.metadata.row_group(group).num_rows:
                first += file.metadata.row_group(group).num_rows
                group += 1
            key = container, group
            if key not in self._groups:
                column = embedding_column(file)
                self._groups[key] = file.read_row_group(group, [f"{column}.bytes"]).column(column)
                while len(self._groups) > ROW_GROUPS:
                    self._groups.popitem(last=False)
            stored = self._groups[key][row - first].as_py()
        data = (stored or {}).get("bytes")
        if data is None:
            raise AudioError(f"{container}{SEPARATOR}{row}", "missing", "the row embeds no file")
        return data

    @functools.cached_property
    def _parquet_files(self) -> dict[str, Any]:
        return {}

    def _parquet(self, name: str) -> Any:
        if name not in self._parquet_files:
            self._parquet_files[name] = open_parquet(self.folder / name)
        return self._parquet_files[name]


def stem(name: str) -> str:
    """A name without folders and without an audio suffix, whose dots are part of it otherwise."""
    base = name.rpartition(SEPARATOR)[2].rpartition("/")[2]
    suffix = _suffix(base)
    return base[: -len(suffix)] if suffix in SUFFIXES else base


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def open_parquet(path: pathlib.Path) -> Any:
    """A pyarrow.parquet.ParquetFile.

    Raises:
      ValueError: it is no parquet file.
    """
    import pyarrow  # slow to import, and few tables need it
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error


def embedding_column(file: Any) -> str | None:
    """The column of files in a parquet file, a struct with "bytes"; None where there is none.

    Raises:
      ValueError: there are several.
    """
    import pyarrow

    found = [
        field.name
        for field in file.schema_arrow
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    if len(found) > 1:
        raise ValueError(f"the columns {', '.join(found)} hold files; allowed: one such column")
    return found[0] if found else None
