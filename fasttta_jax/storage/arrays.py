"""Arrays of .npz files, which may come from anywhere and be damaged in any way."""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator

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
