"""Puts a conversion on disk: the parameters as safetensors, the description as JSON."""

from __future__ import annotations

import collections
import json
import pathlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.storage.files import differences, write_atomically, write_json
from fasttta_jax.storage.weights import METADATA_FILE, WEIGHTS_FILE, write_weights
from fasttta_jax.storage.whole import TEMPORARY


class Conversion(NamedTuple):
    """What a kind's `convert` returns.

    Attributes:
      params: float32 arrays by path, "backbone/encoder_0/attention/qkv/kernel".
      metadata: what JSON can hold; with kind, source, sha256, weights and dropped.
      files: further files by name, such as a tokenizer's.
    """

    params: dict[str, np.ndarray]
    metadata: dict[str, Any]
    files: Mapping[str, str] = MappingProxyType({})


def check_target(folder: pathlib.Path, metadata: dict[str, Any] | None = None) -> None:
    """Whether a conversion may be written to a folder: a new or empty one, or the same again.

    Args:
      folder: the target.
      metadata: of the conversion; None where it is not known yet, and then any conversion passes.

    Raises:
      ConversionError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConversionError(f"{folder} is a file; allowed: a folder, new or empty")
    if not folder.exists():
        return
    try:
        found = json.loads((folder / METADATA_FILE).read_text())
    except FileNotFoundError:
        if any(path.suffix != TEMPORARY for path in folder.iterdir()):
            raise ConversionError(
                f"{folder} is not empty and holds no conversion; choose another folder"
            ) from None
        return
    except (OSError, ValueError) as error:
        raise ConversionError(f"{folder / METADATA_FILE} cannot be read: {error}") from error
    if metadata is not None and found != metadata:
        shown = "; ".join(differences(found, metadata)) if isinstance(found, dict) else ""
        raise ConversionError(
            f"{folder} holds another conversion ({shown or 'unreadable'}); choose another folder"
        )


def write_conversion(conversion: Conversion, folder: pathlib.Path) -> None:
    """Writes `weights.safetensors` and `weights.json`, each atomically, the description last.

    Raises:
      ConversionError: the folder holds something other than this conversion, or a parameter is
        NaN or infinite.
    """
    check_target(folder, conversion.metadata)
    _check_values(conversion)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in conversion.files.items():
        write_atomically(folder / name, text.encode())
    write_weights(folder / WEIGHTS_FILE, conversion.params)
    write_json(folder / METADATA_FILE, conversion.metadata)


def _check_values(conversion: Conversion) -> None:
    wrong = [path for path, values in conversion.params.items() if not np.isfinite(values).all()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConversionError(
            f"{conversion.metadata['source']}: {wrong[0]}{more} holds NaN or infinity; allowed: "
            "finite weights"
        )


def describe(conversion: Conversion) -> str:
    """A short table of what was taken, part by part, and what was dropped and why."""
    tensors: collections.Counter[str] = collections.Counter()
    parameters: collections.Counter[str] = collections.Counter()
    for path, values in conversion.params.items():
        part = re.sub(r"_\d+$", "_*", "/".join(path.split("/")[:2]))
        tensors[part] += 1
        parameters[part] += values.size
    width = max(map(len, tensors))
    lines = [f"{'taken':{width}}  tensors   parameters"]
    lines += [f"{part:{width}}  {tensors[part]:7}  {parameters[part]:11,}" for part in tensors]
    lines.append(f"{'total':{width}}  {tensors.total():7}  {parameters.total():11,}")
    keys_by_reason: dict[str, list[str]] = {}
    for key, reason in conversion.metadata["dropped"].items():
        keys_by_reason.setdefault(reason, []).append(key)
    for reason, keys in keys_by_reason.items():
        others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        lines.append(f"dropped: {keys[0]}{others}, {reason}")
    return "\n".join(lines)
