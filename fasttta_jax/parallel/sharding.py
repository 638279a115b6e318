"""Where every array lives: an ordered list of (regex, spec) rules with an FSDP default.

Parameters, their average and the optimizer's moments get their sharding from one pass over the
whole state, so equal trees are laid out equally. Models carry none of it.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fasttta_jax.parallel.mesh import BATCH_AXES

RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attention/qkv/kernel$", PartitionSpec("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias$", PartitionSpec(None, "tensor", None)),
    (r"attention/projection/kernel$", PartitionSpec("tensor", None, "fsdp")),
    (r"coder_\d+/mlp_in/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"coder_\d+/mlp_in/bias$", PartitionSpec("tensor")),
    (r"coder_\d+/mlp_out/kernel$", PartitionSpec("tensor", "fsdp")),
)
MIN_FSDP_SIZE = 2**14
ACTIVATIONS: dict[str, tuple[str, ...]] = {"batch": BATCH_AXES}


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as "params/backbone/encoder_0/mlp_in/kernel"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _fits(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> bool:
    return len(spec) == len(shape) and all(
        axis is None or size % mesh.shape[axis] == 0 for size, axis in zip(shape, spec, strict=True)
    )


def leaf_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The first rule that matches and divides the shape, else fsdp on the largest such axis."""
    for pattern, spec in RULES:
        if re.search(pattern, name) and _fits(shape, spec, mesh):
            return spec
    shards = mesh.shape["fsdp"]
    if shards > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
            if shape[axis] % shards == 0:
                return PartitionSpec(
                    *("fsdp" if index == axis else None for index in range(len(shape)))
                )
    return PartitionSpec()


def infer_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(path_name(path), np.shape(leaf), mesh)),
        tree,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's layout by the names of its axes; does nothing outside a mesh.

    Raises:
      ValueError: an unknown name, or as many names as axes are not given.
    """
    unknown = [name for name in names if name is not None and name not in ACTIVATIONS]
    if unknown:
        raise ValueError(f"axis names {unknown} are not known; allowed: {sorted(ACTIVATIONS)}")
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {x.shape}")
    if jax.sharding.get_abstract_mesh().empty:
        return x
    spec = PartitionSpec(*(None if name is None else ACTIVATIONS[name] for name in names))
    return jax.lax.with_sharding_constraint(x, spec)
