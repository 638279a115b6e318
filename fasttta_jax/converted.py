"""A folder of converted weights: `python -m fasttta_jax.convert` writes it, `init_from` reads it.

`weights.safetensors` holds float32 arrays whose names are paths joined by "/"; `weights.json` says
what they are and where they come from.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

WEIGHTS_FILE = "weights.safetensors"
METADATA_FILE = "weights.json"
FIELDS = ("kind", "source", "sha256", "weights")


class ConvertedError(ValueError):
    """A folder of converted weights that cannot be used."""


class ConvertedWeights(NamedTuple):
    """What `read_converted` found.

    Attributes:
      params: nested dict of float32 arrays, such as {"backbone": {...}, "head": {...}}.
      metadata: kind, source, sha256 and weights, and the sizes that the kind has: for "mar" and
        "ear" num_text, num_tokens, token_dim, backbone, head and dropped.
    """

    params: dict[str, Any]
    metadata: dict[str, Any]


def is_converted(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds converted weights."""
    return (pathlib.Path(folder) / METADATA_FILE).is_file()


def read_converted(folder: str | os.PathLike[str]) -> ConvertedWeights:
    """Reads converted weights.

    Args:
      folder: what `python -m fasttta_jax.convert` wrote.

    Raises:
      ConvertedError: a file is missing or damaged; says which.
    """
    weights, metadata_path = (pathlib.Path(folder) / name for name in (WEIGHTS_FILE, METADATA_FILE))
    for path in (metadata_path, weights):
        if not path.is_file():
            raise ConvertedError(
                f"{folder} holds no converted weights: {path.name} is missing; "
                "`python -m fasttta_jax.convert --help` says how to make them"
            )
    try:
        metadata = json.loads(metadata_path.read_text())
        missing = [name for name in FIELDS if name not in metadata]
    except (ValueError, TypeError) as error:
        raise ConvertedError(f"{metadata_path} is damaged: {error}; convert again") from error
    if missing:
        raise ConvertedError(f"{metadata_path} lacks {', '.join(missing)}; convert again")
    try:
        flat = load_file(weights)
    except SafetensorError as error:
        raise ConvertedError(f"{weights} is damaged: {error}; convert again") from error
    return ConvertedWeights(_nested(flat), metadata)


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, values in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = values
    return tree
