"""A folder of converted weights: `python -m fasttta_jax.convert` writes it, `init_from` reads it.

`weights.safetensors` holds float32 arrays whose names are paths joined by "/"; `weights.json` says
what they are and where they come from; a text model has its `tokenizer.json` beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from fasttta_jax.config import from_mapping
from fasttta_jax.storage.files import (
    AnyPath,
    StorageError,
    as_path,
    damage,
    is_remote,
    list_files,
    read_json,
    storage_errors,
)
from fasttta_jax.storage.staging import stage
from fasttta_jax.storage.whole import final_name, whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
else:
    DataclassInstance = object

WEIGHTS_FILE = "weights.safetensors"
METADATA_FILE = "weights.json"
FIELDS = ("kind", "source", "sha256", "weights")
COPY_BLOCK = 2**23


Config = TypeVar("Config", bound=DataclassInstance)


class ConvertedError(StorageError):
    """A folder of converted weights that cannot be used."""


class ConvertedWeights(NamedTuple):
    """What `read_converted` found.

    Attributes:
      params: nested dict of float32 arrays, such as {"backbone": {...}, "head": {...}}.
      metadata: kind, source, sha256, weights and dropped, and the sizes that the kind has: for
        "mar" and "ear" num_text, num_tokens, token_dim, backbone and head, for others config.
    """

    params: dict[str, Any]
    metadata: dict[str, Any]


def is_converted(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds converted weights."""
    return (as_path(folder) / METADATA_FILE).is_file()


def read_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The description of converted weights.

    Args:
      folder: what `python -m fasttta_jax.convert` wrote.

    Raises:
      ConvertedError: a file is missing or damaged; says which.
    """
    weights, metadata_path = (as_path(folder) / name for name in (WEIGHTS_FILE, METADATA_FILE))
    for path in (metadata_path, weights):
        if not path.is_file():
            raise ConvertedError(
                f"{folder} holds no converted weights: {path.name} is missing; "
                "`python -m fasttta_jax.convert --help` says how to make them"
            )
    with _reading(metadata_path):
        metadata = read_json(metadata_path)
        missing = [name for name in FIELDS if name not in metadata]
        for name in FIELDS:
            if not isinstance(metadata.get(name, ""), str):
                raise TypeError(f"{name} is no text")
    if missing:
        raise ConvertedError(f"{metadata_path} lacks {', '.join(missing)}; convert again")
    return metadata


def read_converted(folder: str | os.PathLike[str]) -> ConvertedWeights:
    """Reads converted weights; arguments and errors are those of `read_metadata`."""
    metadata = read_metadata(folder)
    weights = stage(folder) / WEIGHTS_FILE
    with _reading(weights):
        return ConvertedWeights(_nested(load_file(weights)), metadata)


@contextlib.contextmanager
def _reading(path: AnyPath) -> Iterator[None]:
    """Whatever a file's contents lead to in the block as a ConvertedError that names it."""
    try:
        with damage(path):
            yield
    except ConvertedError:
        raise
    except StorageError as error:
        raise ConvertedError(f"{error}; convert again") from error


def read_kind(
    folder: str | os.PathLike[str],
    kind: str,
    config: type[Config],
    *,
    part: str | None = None,
) -> tuple[Config, dict[str, Any]]:
    """Sizes and parameters of one kind of network.

    Args:
      folder: what `python -m fasttta_jax.convert` wrote.
      kind: what it must hold.
      config: dataclass of its sizes, all of which the description must say.
      part: of a kind that has several, the one that is wanted.

    Raises:
      ConvertedError: a file is missing or damaged, it is another kind, or the part is not there.
    """
    params, metadata = read_converted(folder)
    if metadata["kind"] != kind:
        raise ConvertedError(f"{folder} holds weights of kind {metadata['kind']!r}, not {kind!r}")
    with _reading(as_path(folder) / METADATA_FILE):
        sizes = dict(metadata.get("config") or {})
        if part is not None:
            if not sizes.get(part) or part not in params:
                raise ConvertedError(
                    f"{folder} holds {kind} without its {part} part; convert a checkpoint that has "
                    "it"
                )
            sizes, params = dict(sizes[part]), params[part]
        missing = [field.name for field in dataclasses.fields(config) if field.name not in sizes]
        if missing:
            raise ConvertedError(f"{folder} does not say {', '.join(missing)}; convert again")
        try:
            return from_mapping(config, sizes, f"{kind}."), params
        except ValueError as error:
            raise ConvertedError(
                f"{folder} does not describe a {kind}: {error}; convert again"
            ) from error


def write_weights(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as .safetensors, whole, and reads them back before they take their place.

    Raises:
      StorageError: there is no room, or what is read is not what was written; names the file.
    """
    # Of a strided view the library would write the buffer as if it were contiguous.
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    with whole(path) as temporary:
        try:
            save_file(arrays, temporary)
            with safe_open(temporary, framework="numpy") as file:
                wrong = [name for name, values in arrays.items() if not _same(file, name, values)]
        except (SafetensorError, ValueError) as error:
            raise StorageError(
                f"{final_name(path)} cannot be written ({error}); is there room, and may this "
                "process write there?"
            ) from error
        if wrong:
            raise StorageError(
                f"{final_name(path)} was written, but {wrong[0]} cannot be read back; is its disk "
                "in order?"
            )


def _same(file: Any, name: str, values: np.ndarray) -> bool:
    found = np.ascontiguousarray(file.get_tensor(name))
    first, second = (array.reshape(-1).view(np.uint8) for array in (found, values))
    return found.dtype == values.dtype and np.array_equal(first, second)


def copy_folder(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a folder and what is below it; weights become hard links where that can be.

    Converted weights are replaced, never changed in place, so that a link is as good as a copy.
    Either may be the URL of an object store.

    Raises:
      StorageError: a file cannot be read or written; names it.
    """
    if is_remote(folder) or is_remote(target):
        _copy_objects(folder, target)
        return
    target = pathlib.Path(target)
    if not (target.exists() and target.samefile(folder)):
        try:
            shutil.copytree(folder, target, copy_function=_copy_or_link, dirs_exist_ok=True)
        except shutil.Error as error:  # of all files, each with its copy and the reason
            source, copy, reason = error.args[0][0]
            raise StorageError(
                f"{final_name(copy)} cannot be written as a copy of {source}: "
                f"{reason.partition(': ')[0]}"
            ) from error


def _copy_objects(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """One file after the other.

    Raises:
      StorageError: a file cannot be read or written; names it.
    """
    for name in list_files(folder):
        source, copy = as_path(folder) / name, as_path(target) / name
        if not is_remote(copy):
            pathlib.Path(copy).parent.mkdir(parents=True, exist_ok=True)
        with (
            storage_errors(copy, f"written as a copy of {os.fspath(source)}"),
            source.open("rb") as reader,
            copy.open("wb") as writer,
        ):
            shutil.copyfileobj(reader, writer, COPY_BLOCK)


def _copy_or_link(source: str, target: str) -> None:
    if pathlib.Path(source).name == WEIGHTS_FILE:
        pathlib.Path(target).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, values in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = values
    return tree
