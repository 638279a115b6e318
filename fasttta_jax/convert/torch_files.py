"""Torch's zip format without torch: a restricted unpickler, and tensors that are read on demand.

A file holds one pickle, `NAME/data.pkl`, and the bytes of every storage, `NAME/data/KEY`. A pickle
names the functions that rebuild it, and a plain unpickler would call whatever it names. This one
knows the few names that a checkpoint of tensors needs and gives its own stand-ins for them;
every other name is an error. The stand-ins are immutable, so that a pickle cannot change them
either.
"""

from __future__ import annotations

import collections
import functools
import io
import math
import pathlib
import pickle
import types
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fasttta_jax.convert.stored import ConversionError, StoredTensor


class _StorageType(NamedTuple):
    """Stands for torch.FloatStorage and its like."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """The bytes of one or more tensors: `numel` values below the key."""

    dtype: np.dtype
    key: str
    numel: int


class _RebuildTensor(NamedTuple):
    """Stands for torch._utils._rebuild_tensor_v2."""

    read: Callable[[_Storage], np.ndarray]

    def __call__(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *ignored: Any,
    ) -> StoredTensor:
        """A tensor as a strided view of a storage; gradients and hooks are ignored."""
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ConversionError("a tensor is not a view of a storage")
        if min((offset, *shape, *strides)) < 0:
            raise ConversionError("a tensor has a negative offset, size or stride")
        last = offset + sum(
            (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
        )
        if math.prod(shape) > 0 and last >= storage.numel:
            raise ConversionError(
                f"a tensor of shape {shape} reaches value {last} of storage {storage.key!r}, "
                f"which has {storage.numel}"
            )
        read = functools.partial(_view, self.read, storage, offset, shape, strides)
        return StoredTensor(tuple(shape), storage.dtype.name, read)


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: the tensor itself."""

    __slots__ = ()

    def __call__(self, data: StoredTensor, *ignored: Any) -> StoredTensor:
        return data


class _NumpyType:
    """Stands for a numpy dtype; its details are not kept."""

    __slots__ = ()

    def __setstate__(self, ignored: Any) -> None:
        """A pickled dtype comes with a state of byte order and alignment."""


class _MakeNumpyType:
    """Stands for numpy.dtype."""

    __slots__ = ()

    def __call__(self, *ignored: Any) -> _NumpyType:
        return _NumpyType()


class _NumpyScalar:
    """Stands for a number of numpy, such as an optimizer's learning rate: not its value."""

    __slots__ = ()


class _MakeNumpyScalar:
    """Stands for numpy.core.multiarray.scalar."""

    __slots__ = ()

    def __call__(self, *ignored: Any) -> _NumpyScalar:
        return _NumpyScalar()


class _Encode:
    """Stands for _codecs.encode, by which pickles of protocol 2 write bytes."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ConversionError(f"bytes are written in {encoding!r}; allowed: 'latin1'")
        return text.encode("latin1")


def _view(
    read: Callable[[_Storage], np.ndarray],
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> np.ndarray:
    values = read(storage)
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    steps = tuple(stride * storage.dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False).copy()


_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, numbers, text, tensors and argparse.Namespace; refuses all else.

    A number of numpy is let pass, and its value left out: CLAP's checkpoints have some beside their
    tensors.
    """

    def __init__(self, data: bytes, read: Callable[[_Storage], np.ndarray]) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(read),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            ("torch", "Size"): tuple,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): types.SimpleNamespace,
            ("numpy", "dtype"): _MakeNumpyType(),
            ("numpy.core.multiarray", "scalar"): _MakeNumpyScalar(),
            ("numpy._core.multiarray", "scalar"): _MakeNumpyScalar(),
            ("_codecs", "encode"): _Encode(),
        } | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The stand-in for a name.

        Raises:
          ConversionError: the name is none of the few that are allowed.
        """
        stand_in = self._allowed.get((module_name, global_name))
        if stand_in is None:
            raise ConversionError(
                f"its pickle asks for {module_name}.{global_name}, which was refused and not run; "
                "allowed: tensors, plain containers, argparse.Namespace and numpy's numbers. If "
                "you trust the file, save its state dict alone with torch and convert that"
            )
        return stand_in

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that an id of torch's format names."""
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(numel)):
                return _Storage(dtype, key, numel)
        raise ConversionError(f"its pickle refers to {pid!r}, which is no storage of tensors")


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
        except zipfile.BadZipFile as error:
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
        try:
            return _RestrictedUnpickler(data, self._read_storage).load()
        except ConversionError as error:
            raise ConversionError(f"{self.path} cannot be read: {error}") from error
        except Exception as error:  # a damaged pickle can fail in any way
            raise ConversionError(
                f"{self.path} cannot be read: its pickle is damaged ({error})"
            ) from error

    def _entry(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ConversionError(
                f"{self.path} is damaged: {name} inside it cannot be read ({error}); copy or "
                "download it again"
            ) from error

    def _read_storage(self, storage: _Storage) -> np.ndarray:
        name = f"{self._root}data/{storage.key}"
        data = self._entry(name)
        expected = storage.numel * storage.dtype.itemsize
        if len(data) != expected:
            raise ConversionError(
                f"{self.path} is damaged: {name} inside it has {len(data)} bytes; expected "
                f"{expected}"
            )
        return np.frombuffer(data, storage.dtype)
