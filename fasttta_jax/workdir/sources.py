"""Where a trained model lies: a run's workdir, an exported model, the Hub, or this package."""

from __future__ import annotations

import importlib.resources
import os
import pathlib
import re
from typing import NamedTuple

from fasttta_jax.storage.files import as_path, is_remote
from fasttta_jax.storage.staging import stage
from fasttta_jax.version import __version__
from fasttta_jax.workdir.checkpoint_folder import one_line
from fasttta_jax.workdir.exported import HASHES_FILE, ExportedError, is_exported, read_hashes

PACKAGE_MODEL = "assets/soundscapes"
_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class Source(NamedTuple):
    """A place that a model can be read from.

    Attributes:
      name: what is recorded of it: the path as given, or OWNER/NAME@COMMIT.
      path: the workdir or the exported model: a folder here, or a workdir's URL.
      is_exported: which of the two it is.
    """

    name: str
    path: str
    is_exported: bool


def find_model(source: str | os.PathLike[str] | None) -> Source:
    """Finds a model, and downloads it where it is on the Hub and not in its cache.

    Args:
      source: a workdir or an exported model, here or in an object store; OWNER/NAME or
        OWNER/NAME@REVISION on the Hub, where no folder has that name; None for the model that comes
        with the package.

    Raises:
      ExportedError: the package has no model, or the Hub cannot be reached or has no such model.
      StorageError: the object store cannot be read.
    """
    if source is None:
        folder = package_model()
        return Source(f"fasttta_jax {__version__}", str(folder), True)
    name = os.fspath(source)
    hub_name = None if is_remote(name) else _hub_name(name)
    if hub_name is not None:
        return _from_hub(name, *hub_name)
    if not is_exported(name):
        return Source(name, name, False)
    return Source(name, str(stage(name)), True)


def package_model() -> pathlib.Path:
    """The folder of the model that comes with the package.

    Raises:
      ExportedError: this installation has none.
    """
    folder = pathlib.Path(str(importlib.resources.files("fasttta_jax"))) / PACKAGE_MODEL
    if not (folder / HASHES_FILE).is_file():
        raise ExportedError(
            f"no model comes with this installation: {folder} is missing; allowed: the folder of a "
            "trained run or of an exported model"
        )
    return folder


def _hub_name(name: str) -> tuple[str, str | None] | None:
    """Repository and revision; None for a path: it exists, or the folder above it does."""
    match = _HUB_NAME.fullmatch(name)
    if match is None or as_path(name).exists() or pathlib.Path(name).parent.is_dir():
        return None
    return match[1], match[2]


def _from_hub(name: str, repository: str, revision: str | None) -> Source:
    """A snapshot of one commit: first the hashes, then the files that they name."""
    folder = _snapshot(name, repository, revision, [HASHES_FILE])
    if not (folder / HASHES_FILE).is_file():
        raise ExportedError(
            f"{repository} on the Hub is no exported model: it has no {HASHES_FILE}, which "
            "`python -m fasttta_jax.tools.export` writes"
        )
    commit = folder.name
    folder = _snapshot(name, repository, commit, [HASHES_FILE, *read_hashes(folder)])
    return Source(f"{repository}@{commit}", str(folder), True)


def _snapshot(name: str, repository: str, revision: str | None, files: list[str]) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=files
        )
    except LocalEntryNotFoundError as error:
        reason = f"it is not in the cache, and the Hub cannot be reached ({_cause(error)})"
    except RepositoryNotFoundError:
        reason = "there is no such repository, or none that may be read without logging in"
    except Exception as error:  # of the Hub's library, or of those that it reads with
        reason = one_line(error)
    else:
        return pathlib.Path(folder)
    raise ExportedError(
        f"{name!r} is no folder here, and cannot be had from the Hub: {reason}. Allowed: a folder, "
        "or a name on the Hub, which needs a network once"
    )


def _cause(error: BaseException) -> str:
    return one_line(error.__cause__ or error)
