"""Where a user keeps what can be made again: compiled programs, measured times, hashes."""

from __future__ import annotations

import errno
import pathlib

import platformdirs


def user_cache(name: str) -> pathlib.Path:
    """A folder of the package in the user's cache: of XDG_CACHE_HOME, or of ~/.cache.

    Raises:
      OSError: the user has no home.
    """
    found = platformdirs.user_cache_path("fasttta_jax", appauthor=False) / name
    if not found.is_absolute():  # "~" that nothing stands for
        raise OSError(errno.ENOENT, "there is no home folder; XDG_CACHE_HOME names one", str(found))
    return found
