"""Waveforms: reading, levels, writing, log-mel.

librosa's functions are compiled by numba, which keeps what it compiled beside them or in the home
folder. Where neither can be written, as in a read-only image, it raises; it is given a temporary
folder then, before anything imports it.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import MutableMapping, Sequence

NUMBA_CACHE = "NUMBA_CACHE_DIR"


def give_numba_a_cache(environ: MutableMapping[str, str], usual: Sequence[pathlib.Path]) -> None:
    """Sets where numba keeps what it compiles, unless that is said or one of its places will do.

    Args:
      environ: the environment.
      usual: folders that it would take; parents of one that is missing count.
    """
    if NUMBA_CACHE in environ or any(_can_be_written(folder) for folder in usual):
        return
    # Not of a name that others could guess and fill: what numba reads from there is executed.
    environ[NUMBA_CACHE] = tempfile.mkdtemp(prefix="fasttta_jax_numba_")
    atexit.register(shutil.rmtree, environ[NUMBA_CACHE], ignore_errors=True)


def _can_be_written(folder: pathlib.Path) -> bool:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _usual_places() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("librosa")
    found = [] if spec is None or spec.origin is None else [pathlib.Path(spec.origin).parent]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [*found, pathlib.Path(home) / "numba"]


give_numba_a_cache(os.environ, _usual_places())
