"""A trained model as one folder that is all there is to share: written whole, checked when read.

    config.json         the run's config without its paths, as in a workdir, and what was exported
    model.safetensors   averaged parameters by name, such as "backbone/encoder_0/mlp_in/kernel"
    codec/, text/       as in a workdir; frozen text with its networks
    README.md           the model card
    hashes.json         SHA-256 of all these files, by name

No file of it is a pickle, and none is executed. `python -m fasttta_jax.tools.export` writes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np
from safetensors import safe_open

from fasttta_jax.codecs.base import CONFIG_FILE as CODEC_FILE
from fasttta_jax.config import DataConfig, RunConfig, to_config_dict
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, TEXT_FOLDER
from fasttta_jax.multihost.distributed import to_host
from fasttta_jax.parallel.sharding import path_name
from fasttta_jax.storage.content import file_sha256
from fasttta_jax.storage.files import (
    AnyPath,
    as_path,
    is_remote,
    list_files,
    read_json,
    write_atomically,
    write_json,
)
from fasttta_jax.storage.weights import copy_folder, write_weights
from fasttta_jax.storage.whole import whole_folder
from fasttta_jax.text.networks import SUMMARY_FILE as NETWORKS_FILE
from fasttta_jax.typing import Params
from fasttta_jax.workdir.checkpoint_folder import one_line, shorten
from fasttta_jax.workdir.folder import CONFIG_FILE, WorkdirError

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
CARD_FILE = "README.md"
HASHES_FILE = "hashes.json"
FORMAT = 1
NEEDED = (CONFIG_FILE, MODEL_FILE, f"{CODEC_FOLDER}/{CODEC_FILE}")
"""Files that every model has."""
StoredDtype = Literal["float32", "bfloat16", "float16"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ExportedError(WorkdirError):
    """A model cannot be exported, or a folder is not what was exported; names the file."""


def is_exported(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is, or was, an exported model: a file that only such a folder has."""
    path = as_path(folder)
    return (path / HASHES_FILE).is_file() or (path / MODEL_FILE).is_file()


def check_target(folder: str | os.PathLike[str]) -> None:
    """Whether a model may be exported to a folder: a new or empty one, or an earlier export.

    Raises:
      ExportedError: it is a URL or a file, or holds something else, which is named.
    """
    if is_remote(folder):
        raise ExportedError(f"{folder} is a URL; allowed: a folder here, which can be copied there")
    path = pathlib.Path(folder)
    if path.exists() and not path.is_dir():
        raise ExportedError(f"{path} is a file; allowed: a new folder")
    found = list_files(path)
    if not found:
        return
    if not (path / HASHES_FILE).is_file():
        raise ExportedError(f"{path} is not empty, and no exported model; allowed: a new folder")
    if foreign := sorted(found.keys() - read_hashes(path).keys() - {HASHES_FILE}):
        raise ExportedError(
            f"{path} holds {foreign[0]}, which is no part of an exported model and would be lost; "
            "allowed: a new folder"
        )


def write_exported(
    folder: str | os.PathLike[str],
    *,
    config: RunConfig,
    params: Params,
    origin: str | os.PathLike[str],
    described: Mapping[str, Any],
    card: str,
    dtype: StoredDtype = "float32",
) -> None:
    """Writes a model's folder, whole or not at all; an earlier export in its place is replaced.

    Equal arguments give equal bytes.

    Args:
      folder: see `check_target`.
      config: of the run.
      params: its averaged parameters, float32.
      origin: the workdir whose codec and text they belong to, or an exported model.
      described: what `config.json` says of the model, JSON.
      card: the text of `README.md`.
      dtype: of the parameters on disk.

    Raises:
      ExportedError: the folder is taken, a parameter has no finite value of this dtype, or prompts
        could not be encoded with what the origin holds.
      OSError: the folder cannot be written.
    """
    check_target(folder)
    arrays = _stored(params, dtype)
    text = as_path(origin) / TEXT_FOLDER
    if config.model.text.encoder == "frozen" and not (text / NETWORKS_FILE).is_file():
        raise ExportedError(
            f"{text} has no {NETWORKS_FILE}: its captions were embedded elsewhere, so that nobody "
            "could give this model a prompt; allowed: a run whose dataset has the networks "
            "(`python -m data.embed_text --encoder`)"
        )
    kept = read_json(as_path(origin) / CONFIG_FILE)
    values = {
        "config": _without_paths(config),
        **{name: kept[name] for name in ("data_hash", "part_hashes") if name in kept},
        "exported": {"format": FORMAT, "dtype": dtype, **described},
    }
    with whole_folder(folder) as new:
        copy_folder(as_path(origin) / CODEC_FOLDER, new / CODEC_FOLDER)
        if config.model.text.encoder != "none":
            copy_folder(text, new / TEXT_FOLDER)
        write_weights(new / MODEL_FILE, arrays)
        write_json(new / CONFIG_FILE, values)
        write_atomically(new / CARD_FILE, card.encode())
        hashes = {name: file_sha256(new / name) for name in list_files(new)}
        write_json(new / HASHES_FILE, {"format": FORMAT, "sha256": hashes})


def _stored(params: Params, dtype: str) -> dict[str, np.ndarray]:
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, values = path_name(path), np.asarray(to_host(leaf))
        with np.errstate(over="ignore"):
            arrays[name] = np.ascontiguousarray(values.astype(np.dtype(jax.numpy.dtype(dtype))))
        if not np.isfinite(arrays[name].astype(np.float32)).all():
            largest = float(np.abs(values).max())
            raise ExportedError(
                f"{name} has a value of {largest:g}, which {dtype} does not hold; allowed: finite "
                f"values, up to {float(jax.numpy.finfo(dtype).max):.3g}"
            )
    return arrays


def _without_paths(config: RunConfig) -> dict[str, Any]:
    """The config as JSON, with the default for what names folders of the machine that trained."""
    fields = ("path", "mixture", "weights", "validation_paths", "cache")
    defaults = {name: getattr(DataConfig(), name) for name in fields}
    data = dataclasses.replace(config.data, **defaults)
    values = to_config_dict(dataclasses.replace(config, data=data, init_from=""))
    return json.loads(json.dumps(values.to_dict()))


def read_hashes(folder: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 by name of the files of an exported model.

    Raises:
      ExportedError: the table is missing or no such table, or a newer version wrote it.
    """
    path = as_path(folder) / HASHES_FILE
    with reading(path):
        if not path.is_file():
            raise ExportedError(
                f"{os.fspath(folder)} is no whole exported model: {HASHES_FILE} is missing"
            )
        found = json.loads(path.read_bytes())
        if found["format"] > FORMAT:
            raise ExportedError(
                f"{path} has format {found['format']}; allowed: up to {FORMAT}. A newer version of "
                "fasttta_jax wrote it"
            )
        for name, value in found["sha256"].items():
            inside = not pathlib.PurePosixPath(name).is_absolute() and ".." not in name.split("/")
            if not inside or not _SHA256.fullmatch(value):
                raise ValueError(f"{name!r}: {value!r} is no file and SHA-256")
        if missing := [name for name in NEEDED if name not in found["sha256"]]:
            raise ValueError(f"{missing[0]} is not in it")
        return dict(found["sha256"])


def check_files(folder: str | os.PathLike[str]) -> None:
    """Compares the files of an exported model with their hashes; a changed card is only warned of.

    Raises:
      ExportedError: a file is missing, has other contents, or is one too many where `load` reads;
        names all of them, with the hash expected and the one found.
    """
    folder = pathlib.Path(folder)
    problems = []
    expected = read_hashes(folder)
    for name, sha256 in expected.items():
        problem = _problem(folder / name, sha256)
        if problem and name == CARD_FILE:
            logger.warning("%s: %s %s", folder, name, problem)
        elif problem:
            problems.append(f"{name} {problem}")
    for part in (CODEC_FOLDER, TEXT_FOLDER):
        for name in list_files(folder / part):
            hidden = any(piece.startswith(".") for piece in name.split("/"))
            if f"{part}/{name}" not in expected and not hidden:
                problems.append(f"{part}/{name} is not one of its files")
    if problems:
        raise ExportedError(
            f"{folder} is not what was exported: {shorten(problems)}. Copy or download it again"
        )


def _problem(path: pathlib.Path, expected: str) -> str:
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({one_line(error)})"
    return "" if found == expected else f"has the SHA-256 {found}, not {expected}"


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `config.json` says of an exported model: its step, at least.

    Raises:
      ExportedError: the file cannot be read or says no such thing.
    """
    path = as_path(folder) / CONFIG_FILE
    with reading(path):
        found = dict(json.loads(path.read_bytes())["exported"])
        return {**found, "step": int(found["step"])}


def read_params(folder: str | os.PathLike[str], abstract: Params) -> Params:
    """The parameters of an exported model as float32 arrays.

    Args:
      folder: a local one.
      abstract: shapes and shardings of the model that its config describes.

    Raises:
      ExportedError: the file cannot be read, or holds another model.
    """
    path = pathlib.Path(folder) / MODEL_FILE
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {path_name(key): leaf for key, leaf in leaves}
    with reading(path), safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    lines = [f"{name} is not part of the model" for name in sorted(found.keys() - wanted.keys())]
    for name, leaf in wanted.items():
        if name not in found:
            lines.append(f"{name} is missing")
        elif found[name].shape != leaf.shape or found[name].dtype.name not in get_args(StoredDtype):
            there = f"{found[name].dtype.name}{list(found[name].shape)}"
            lines.append(f"{name} is {there}, not {leaf.dtype.name}{list(leaf.shape)}")
    if lines:
        raise ExportedError(f"{path} does not fit {CONFIG_FILE}: {shorten(lines)}")
    placed = [_placed(found[name].astype(np.float32), leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(structure, placed)


def _placed(values: np.ndarray, leaf: Any) -> jax.Array:
    return jax.make_array_from_callback(values.shape, leaf.sharding, lambda index: values[index])


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[None]:
    """Whatever a file's contents lead to in the block as an ExportedError that names it."""
    try:
        yield
    except WorkdirError:
        raise
    except Exception as error:  # of JSON, NumPy, safetensors, tokenizers, which has no own class
        raise ExportedError(f"{path} cannot be read: {one_line(error)}") from error
