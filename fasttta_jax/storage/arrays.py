"""Arrays of .npz files, which may come from anywhere and be damaged in any way."""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.lib.npyio import NpzFile

from fasttta_jax.storage.files import StorageError

_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,  # an entry that is encrypted, or compressed in a way that is not known
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[NpzFile]:
    """The arrays of a .npz by name, read when they are asked for; nothing in it is executed.

    Raises:
      StorageError: the file is missing, no .npz or damaged, or the block asks for an array that is
        not there or finds a value wrong.
    """
    try:
        with contextlib.ExitStack() as stack:
            opened = np.load(path, allow_pickle=False)
            if not isinstance(opened, NpzFile):
                raise ValueError("it is a single array, no .npz")
            yield stack.enter_context(opened)
    except _DAMAGE as error:
        missing = isinstance(error, KeyError)
        found = f"there is no {error.args[0]}" if missing else error
        raise StorageError(f"{os.fspath(path)} cannot be read: {found}") from error


def read_arrays(
    path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Arrays of a .npz that are float32, finite and of known shapes.

    Args:
      path: the file.
      shapes: of the arrays that are wanted, by name.

    Raises:
      StorageError: see `open_arrays`, or an array is of another type or shape, or not finite.
    """
    arrays = {}
    with open_arrays(path) as found:
        for name, shape in shapes.items():
            values = arrays[name] = found[name]
            if values.dtype != np.float32 or values.shape != shape:
                there = f"{values.dtype}{list(values.shape)}"
                raise ValueError(f"{name} is {there}, not float32{list(shape)}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} is not finite")
    return arrays
