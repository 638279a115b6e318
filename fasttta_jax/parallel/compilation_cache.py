"""Where commands keep the programs that they compile, so that the next command need not.

This is jax's compilation cache, which `cli.run` turns on. A library would not: jax's settings
belong to the program that imports it. The folder that is taken where none is named is one of the
user's cache, and of the processor: jax's keys hold its version and flags, but not the instructions
that the processor has, and a home may be shared by machines.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import tempfile
from typing import NamedTuple

import jax

from fasttta_jax.storage.user_cache import user_cache

OFF = "off"
MOST_BYTES = 4 * 2**30
"""Of the folder that is taken where none is named; what was used longest ago goes first."""
LEAST_SECONDS = 0.1
"""What takes less to compile is not kept."""


class CacheState(NamedTuple):
    """What became of a wish for a cache.

    Attributes:
      folder: of the programs; None where none are kept.
      reason: why none are kept, in words; "" where they are, or where that was the wish.
    """

    folder: str | None
    reason: str = ""


def processor() -> str:
    """The processor's name and instruction sets, as far as the system tells."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpuinfo.read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def processor_folder() -> str:
    """A name for `processor`, the same on equal machines."""
    return hashlib.sha256(processor().encode()).hexdigest()[:12]


def default_folder() -> pathlib.Path:
    """fasttta_jax/compiled/PROCESSOR in the user's cache: XDG_CACHE_HOME, or ~/.cache.

    Raises:
      OSError: the user has no home.
    """
    return user_cache("compiled") / processor_folder()


def turn_on(wish: str | None) -> CacheState:
    """Sets jax's cache for this process, before it compiles anything.

    Args:
      wish: a folder, here or in an object store; `OFF`; or None for the folder that
        JAX_COMPILATION_CACHE_DIR names, else `default_folder`. JAX_ENABLE_COMPILATION_CACHE,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS and JAX_COMPILATION_CACHE_MAX_SIZE are heeded.

    Returns:
      The folder, or why there is none: one that cannot be written stops nobody.
    """
    if wish == OFF or not jax.config.values["jax_enable_compilation_cache"]:
        jax.config.update("jax_enable_compilation_cache", False)
        return CacheState(None)
    folder = wish or jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        try:
            folder = str(default_folder())
        except OSError as error:
            jax.config.update("jax_enable_compilation_cache", False)
            return CacheState(None, str(error))
        _update("jax_compilation_cache_max_size", MOST_BYTES)
    problem = "" if "://" in folder else _problem(pathlib.Path(folder).expanduser())
    if problem:
        jax.config.update("jax_enable_compilation_cache", False)
        return CacheState(None, problem)
    if "://" not in folder:
        folder = str(pathlib.Path(folder).expanduser().resolve())
    jax.config.update("jax_compilation_cache_dir", folder)
    _update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return CacheState(folder)


def _update(name: str, value: float) -> None:
    """Sets a setting of jax that the environment does not."""
    if name.upper() not in os.environ:
        jax.config.update(name, value)


def _problem(folder: pathlib.Path) -> str:
    """Why a folder cannot be written; "" where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
