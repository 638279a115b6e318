"""Torch's files without torch: trees of names with tensors that are read on demand.

Since torch 1.6 a file is a zip archive with one pickle, `NAME/data.pkl`, and the bytes of every
storage, `NAME/data/KEY`. Before, it was five things in a row: a magic number, the version of the
format, the sizes of types, the pickle, and the keys of the storages, each a pickle itself, and then
the storages, each with its number of values before it.
"""

from __future__ import annotations

import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.unpickler import NumpyArray, RestrictedUnpickler, Storage

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
"""What the old format begins with."""
NUMEL = struct.Struct("<q")


def _load(
    file: io.BufferedIOBase, read: Callable[[Storage], np.ndarray], path: pathlib.Path
) -> tuple[Any, dict[str, Storage]]:
    """One pickle, and the storages that it refers to.

    Raises:
      ConversionError: it is damaged, or asks for anything that is not allowed.
    """
    unpickler = RestrictedUnpickler(file, read)
    try:
        return unpickler.load(), unpickler.storages
    except ConversionError as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ConversionError(f"{path} cannot be read: its pickle is damaged ({error})") from error


def _with_arrays(tree: Any) -> Any:
    """The tree with its own arrays of numpy as tensors; those inside its entries stay opaque."""
    if not isinstance(tree, Mapping):
        return tree
    stored = {key: value.stored() for key, value in tree.items() if isinstance(value, NumpyArray)}
    return {**tree, **{key: value for key, value in stored.items() if value is not None}}


DAMAGE = (
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # an entry that is encrypted, or of a version or compression not known
)
"""What the entry of a damaged archive leads to."""


class TorchFile:
    """An open checkpoint of torch's zip format; a context manager.

    Args:
      path: the file.

    Raises:
      ConversionError: the file is cut short or damaged, or not torch's.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ConversionError(
                f"{path} begins as a zip file but its end is missing or damaged ({error}); "
                "copy or download it again"
            ) from error
        pickles = [name for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            self._archive.close()
            raise ConversionError(
                f"{path} is a zip file with {len(pickles)} data.pkl inside; a torch checkpoint "
                "has one"
            )
        self._root = pickles[0].removesuffix("data.pkl")

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *unused: object) -> None:
        self._archive.close()

    def tree(self) -> Any:
        """The whole checkpoint with a StoredTensor for every tensor; no tensor is read.

        Raises:
          ConversionError: the pickle is damaged, or asks for anything that is not allowed.
        """
        order = f"{self._root}byteorder"
        if order in self._archive.namelist() and self._entry(order) != b"little":
            raise ConversionError(f"{self.path} was saved on a big-endian machine; re-save it")
        data = self._entry(f"{self._root}data.pkl")
        tree, _ = _load(io.BytesIO(data), self._read_storage, self.path)
        return _with_arrays(tree)

    def _entry(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except DAMAGE as error:
            raise ConversionError(
                f"{self.path} is damaged: {name} inside it cannot be read ({str(error)[:200]}); "
                "copy or download it again"
            ) from error

    def _read_storage(self, storage: Storage) -> np.ndarray:
        name = f"{self._root}data/{storage.key}"
        data = self._entry(name)
        expected = storage.numel * storage.dtype.itemsize
        if len(data) != expected:
            raise ConversionError(
                f"{self.path} is damaged: {name} inside it has {len(data)} bytes; expected "
                f"{expected}"
            )
        return np.frombuffer(data, storage.dtype)


class OldTorchFile:
    """An open checkpoint of the format before torch 1.6; a context manager.

    Args:
      path: the file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> OldTorchFile:
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()

    def tree(self) -> Any:
        """The whole checkpoint with a StoredTensor for every tensor; no tensor is read.

        Raises:
          ConversionError: the file is none of torch's or cut short, or a pickle in it is damaged or
            asks for anything that is not allowed.
        """
        if self._pickle() != MAGIC:
            raise ConversionError(
                f"{self.path} is a pickle, and no checkpoint of torch: it does not begin with "
                "torch's number"
            )
        version, system = self._pickle(), self._pickle()
        if version != VERSION or not isinstance(system, Mapping):
            raise ConversionError(
                f"{self.path} has version {version!r} of torch's old format; allowed: {VERSION}"
            )
        if system.get("little_endian") is not True:
            raise ConversionError(f"{self.path} was saved on a big-endian machine; re-save it")
        tree, storages = _load(self._file, self._read_storage, self.path)
        keys = self._pickle()
        if not isinstance(keys, list) or set(keys) != set(storages):
            raise ConversionError(f"{self.path} does not hold the tensors that it names")
        for key in keys:
            self._find(storages[key])
        return _with_arrays(tree)

    def _pickle(self) -> Any:
        tree, _ = _load(self._file, self._read_storage, self.path)
        return tree

    def _find(self, storage: Storage) -> None:
        """Notes where a storage begins, and goes on to the next."""
        header = self._file.read(NUMEL.size)
        begin = self._file.tell()
        end = begin + storage.numel * storage.dtype.itemsize
        if len(header) < NUMEL.size or end > self._size:
            raise ConversionError(
                f"{self.path} is cut short: storage {storage.key!r} ends at byte {end}, and the "
                f"file has {self._size}; copy or download it again"
            )
        (numel,) = NUMEL.unpack(header)
        if numel != storage.numel:
            raise ConversionError(
                f"{self.path} is damaged: storage {storage.key!r} has {numel} values; expected "
                f"{storage.numel}"
            )
        self._offsets[storage.key] = begin
        self._file.seek(end)

    def _read_storage(self, storage: Storage) -> np.ndarray:
        self._file.seek(self._offsets[storage.key])
        data = self._file.read(storage.numel * storage.dtype.itemsize)
        return np.frombuffer(data, storage.dtype)
