"""A pickle of tensors without torch: an unpickler that knows few names and runs nothing.

A pickle names the functions that rebuild it, and a plain unpickler would call whatever it names.
This one knows the few names that a checkpoint of tensors needs and gives its own stand-ins for
them; every other name is an error. The stand-ins are immutable, so that a pickle cannot change
them either.
"""

from __future__ import annotations

import collections
import functools
import io
import math
import pickle
import re
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fasttta_jax.convert.stored import ConversionError, StoredTensor


class _StorageType(NamedTuple):
    """Stands for torch.FloatStorage and its like."""

    dtype: np.dtype


class Storage(NamedTuple):
    """The bytes of one or more tensors: `numel` values below the key."""

    dtype: np.dtype
    key: str
    numel: int


class _RebuildTensor(NamedTuple):
    """Stands for torch._utils._rebuild_tensor_v2."""

    read: Callable[[Storage], np.ndarray]

    def __call__(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *ignored: Any,
    ) -> StoredTensor:
        """A tensor as a strided view of a storage; gradients and hooks are ignored."""
        if not isinstance(storage, Storage) or len(shape) != len(strides):
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
    """Stands for a numpy dtype: its code, such as "f4", and order of bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        """A pickled dtype comes with a state of byte order and alignment."""
        match state:
            case (int(), "<" | ">" | "|" as order, *_):
                self.order = order

    def numbers(self) -> np.dtype | None:
        """The type of numpy, where it is one of plain numbers."""
        if isinstance(self.code, str) and _NUMBERS.fullmatch(self.code):
            return np.dtype(self.order + self.code)
        return None


class _MakeNumpyType:
    """Stands for numpy.dtype."""

    __slots__ = ()

    def __call__(self, code: Any, *ignored: Any) -> _NumpyType:
        return _NumpyType(code)


class NumpyArray:
    """Stands for an array of numpy, which a pickle makes empty and then fills."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        """Version, shape, type, whether the first axis runs fastest, and the bytes."""
        self._state = state

    def stored(self) -> StoredTensor | None:
        """The array as a tensor; None where it holds anything but numbers, or too few."""
        match self._state:
            case (int(), tuple(shape), _NumpyType() as kind, int(columns), bytes(data)):
                dtype = kind.numbers()
                sizes = all(type(size) is int and size >= 0 for size in shape)
                if dtype is None or not sizes or len(data) != math.prod(shape) * dtype.itemsize:
                    return None
                order = "F" if columns else "C"
                values = np.frombuffer(data, dtype).reshape(shape, order=order)
                native = dtype.newbyteorder("=")
                return StoredTensor(shape, native.name, lambda: values.astype(native))
        return None


class _MakeNumpyArray:
    """Stands for numpy's _reconstruct."""

    __slots__ = ()

    def __call__(self, *ignored: Any) -> NumpyArray:
        return NumpyArray()


class _NumpyArrayType:
    """Stands for numpy.ndarray, which _reconstruct is called with."""

    __slots__ = ()


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
    read: Callable[[Storage], np.ndarray],
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> np.ndarray:
    values = read(storage)
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    steps = tuple(stride * storage.dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False).copy()


_NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")
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


class RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, numbers, text, tensors and argparse.Namespace; refuses all else.

    Arrays of numpy become `NumpyArray`. A number of numpy is let pass, and its value left out:
    CLAP's checkpoints have some beside their tensors.

    Args:
      file: the pickle, at its beginning.
      read: reads the values of a storage.

    Attributes:
      storages: those that the pickle referred to, by key.
    """

    def __init__(self, file: io.BufferedIOBase, read: Callable[[Storage], np.ndarray]) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}
        self._allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(read),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            ("torch", "Size"): tuple,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): types.SimpleNamespace,
            ("numpy", "dtype"): _MakeNumpyType(),
            ("numpy", "ndarray"): _NumpyArrayType(),
            ("numpy.core.multiarray", "_reconstruct"): _MakeNumpyArray(),
            ("numpy._core.multiarray", "_reconstruct"): _MakeNumpyArray(),
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
                "allowed: tensors, plain containers, argparse.Namespace and numpy's arrays. If "
                "you trust the file, save its state dict alone with torch and convert that"
            )
        return stand_in

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that an id of torch's format names."""
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(numel), *view) if view in (
                [],
                [None],
            ):  # files of before torch 1.6 have a sixth part, for views of other storages
                self.storages[key] = Storage(dtype, key, numel)
                return self.storages[key]
        raise ConversionError(f"its pickle refers to {pid!r}, which is no storage of tensors")
