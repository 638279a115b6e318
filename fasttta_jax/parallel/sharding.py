"""Where every array lives: an ordered list of (regex, spec) rules with an FSDP default.

Parameters, their average and the optimizer's moments get their sharding from one pass over the
whole state, so equal trees are laid out equally. Models carry none of it. The leading axis of
stacked layers is never split: every step of the scan needs one whole layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fasttta_jax.config import ConfigError
from fasttta_jax.parallel.mesh import AXES, BATCH_AXES, AnyMesh

Entry = str | tuple[str, ...] | None
Rule = tuple[str, tuple[Entry, ...]]
"""A regex that is searched for in a parameter's name, and a mesh axis, several or None for each of
the array's axes (without that of stacked layers). The first rule that matches and divides the shape
decides. An empty spec keeps a full copy everywhere; one that names fsdp is taken as it stands; what
another one leaves is split over fsdp by the default."""

RULES: tuple[Rule, ...] = (
    (r"text/embedding$", ()),
    (r"attention/qkv/kernel$", (None, None, "tensor", None)),
    (r"attention/qkv/bias$", (None, "tensor", None)),
    (r"attention/projection/kernel$", ("tensor", None, None)),
    (r"coder_(\d+|stack)/mlp_in/kernel$", (None, "tensor")),
    (r"coder_(\d+|stack)/mlp_in/bias$", ("tensor",)),
    (r"coder_(\d+|stack)/mlp_out/kernel$", ("tensor", None)),
)
"""Tensor parallelism of attention (by heads) and MLP (by hidden units); words are looked up in a
table that every device has."""
STACKED = re.compile(r"coder_stack/")
MIN_FSDP_SIZE = 2**14
"""Smaller arrays cost more to gather than to keep."""
TILE = (8, 128)
"""Sublanes and lanes of a TPU's registers: a shard that does not fill them is padded, and XLA then
prefers to reduce whole arrays over gathering their parts."""
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "token": ("tensor",),
    "head": ("tensor",),
    "hidden": ("tensor",),
}
"""Axes of activations by name: clips; token positions of a head, which has no tensor-parallel
parameters; attention heads; hidden units of an MLP."""


class Placement(NamedTuple):
    """Where an array goes.

    Attributes:
      spec: its layout.
      warning: what fsdp could not do with it, and why; "" where there is none.
    """

    spec: PartitionSpec
    warning: str


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as "params/backbone/encoder_0/mlp_in/kernel"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _axes(entry: Entry) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _parts(entry: Entry, mesh: AnyMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(entry))


def _fits(shape: Sequence[int], spec: Sequence[Entry], mesh: AnyMesh) -> bool:
    return not spec or (
        len(spec) == len(shape)
        and all(size % _parts(entry, mesh) == 0 for size, entry in zip(shape, spec, strict=True))
    )


def _is_aligned(shape: Sequence[int], axis: int, size: int) -> bool:
    """Whether a shard of `size` along `axis` fills the tiles that an array of `shape` lies in."""
    from_end = len(shape) - 1 - axis
    return from_end >= len(TILE) or size % TILE[len(TILE) - 1 - from_end] == 0


def _with_fsdp(shape: Sequence[int], spec: list[Entry], mesh: AnyMesh) -> tuple[list[Entry], str]:
    """`spec` with fsdp on the axis that suits it best, and a warning where none does.

    An axis that is split already comes last: XLA gathers one that two mesh axes share over both.
    """
    # With fsdp 8 and tensor 2, a kernel [1024, 4096] split by tensor along its columns:
    #   axis 0: 1024 / 8 = 128 rows a shard, free and aligned: it wins, ("fsdp", "tensor");
    #   axis 1: 4096 / 2 / 8 = 256 columns a shard, larger and aligned, but not free.
    # A table [1001, 256] that nothing splits yet, with fsdp 8: axis 1 alone can be divided, into 32
    # columns of the 128 lanes of a tile; it is split there all the same, with a warning.
    shards = mesh.shape["fsdp"]
    if shards == 1 or math.prod(shape) < MIN_FSDP_SIZE:
        return spec, ""
    sizes = {
        axis: size // _parts(spec[axis], mesh) // shards
        for axis, size in enumerate(shape)
        if size % (_parts(spec[axis], mesh) * shards) == 0
    }
    if not sizes:
        return spec, f"no axis of {tuple(shape)} is a multiple of mesh.fsdp = {shards}"
    aligned = {axis for axis, size in sizes.items() if _is_aligned(shape, axis, size)}
    free = {axis for axis in sizes if _parts(spec[axis], mesh) == 1}
    best = max(sizes, key=lambda axis: (axis in free, axis in aligned, sizes[axis], -axis))
    placed = list(spec)
    placed[best] = (*_axes(spec[best]), "fsdp") if spec[best] else "fsdp"
    if best in aligned:
        return placed, ""
    return placed, f"shards of {sizes[best]} along axis {best} of {tuple(shape)} fill no tile"


def place(name: str, shape: Sequence[int], mesh: AnyMesh, rules: Sequence[Rule] = ()) -> Placement:
    """The layout of one array.

    Args:
      name: its path, such as "params/backbone/encoder_0/mlp_in/kernel".
      shape: of the array.
      mesh: devices, or an abstract mesh.
      rules: looked through before `RULES`.
    """
    leading = 1 if STACKED.search(name) and len(shape) else 0
    layer = tuple(shape[leading:])
    spec: list[Entry] = [None] * len(layer)
    for pattern, entries in (*rules, *RULES):
        if re.search(pattern, name) and _fits(layer, entries, mesh):
            if not entries or any("fsdp" in _axes(entry) for entry in entries):
                return Placement(_as_spec([None] * leading, entries), "")
            spec = list(entries)
            break
    spec, warning = _with_fsdp(layer, spec, mesh)
    return Placement(_as_spec([None] * leading, spec), warning)


def _as_spec(leading: Sequence[Entry], entries: Sequence[Entry]) -> PartitionSpec:
    """A spec; all-None is written as the empty one."""
    spec = (*leading, *entries) if any(entry is not None for entry in entries) else ()
    return PartitionSpec(*spec)


def placements(tree: Any, mesh: AnyMesh, rules: Sequence[Rule] = ()) -> dict[str, Placement]:
    """Name to placement of every leaf of a tree of arrays or shapes."""
    return {
        name: place(name, np.shape(leaf), mesh, rules)
        for name, leaf in (
            (path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        )
    }


def check_rules(tree: Any, mesh: AnyMesh, rules: Sequence[Rule]) -> None:
    """Refuses rules that cannot mean what was intended.

    Args:
      tree: the parameters.
      mesh: devices.
      rules: those of the config.

    Raises:
      ConfigError: a pattern is no regex, an axis is not the mesh's or is used twice, nothing
        matches, or no array that matches has such axes.
    """
    leaves = [
        (path_name(path), np.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    for pattern, spec in rules:
        shown = f"mesh.rules has {(pattern, spec)!r}"
        axes = [axis for entry in spec for axis in _axes(entry)]
        unknown = sorted(set(axes) - set(AXES))
        if unknown or len(set(axes)) < len(axes):
            why = f"{unknown[0]!r} is no axis" if unknown else "an axis stands twice"
            raise ConfigError(f"{shown}: {why}; allowed: {', '.join(AXES)}, each once, or None")
        try:
            matched = [(name, shape) for name, shape in leaves if re.search(pattern, name)]
        except re.error as error:
            raise ConfigError(f"{shown}: {pattern!r} is no regular expression: {error}") from error
        if not matched:
            examples = ", ".join(name for name, _ in leaves[:3])
            raise ConfigError(
                f"{shown}, which matches no parameter; names look like {examples} "
                "(fasttta_jax.tools.param_overview --all lists them)"
            )
        layers = [(name, shape[1 if STACKED.search(name) else 0 :]) for name, shape in matched]
        if not any(_fits(shape, spec, mesh) for _, shape in layers):
            name, shape = layers[0]
            raise ConfigError(
                f"{shown}, which fits no parameter that it matches: {name} is {shape}, and each "
                f"entry must divide its axis in a mesh of {dict(mesh.shape)}"
            )


def infer_shardings(tree: Any, mesh: AnyMesh, rules: Sequence[Rule] = ()) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, place(path_name(path), np.shape(leaf), mesh, rules).spec
        ),
        tree,
    )


def layout_warnings(tree: Any, mesh: AnyMesh, rules: Sequence[Rule] = ()) -> dict[str, str]:
    """What fsdp could not split, or only into shards that fill no tile: name to reason."""
    found = placements(tree, mesh, rules)
    return {name: placement.warning for name, placement in found.items() if placement.warning}


def describe_warnings(warnings: dict[str, str]) -> list[str]:
    """A line for each reason in `layout_warnings`; "encoder_*" stands for every layer."""
    names: dict[str, list[str]] = {}
    for name, reason in warnings.items():
        names.setdefault(reason, []).append(re.sub(r"_\d+(?=/)", "_*", name))
    return [f"{reason}: {', '.join(dict.fromkeys(these))}" for reason, these in names.items()]


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """First axis split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's layout by the names of its axes; does nothing outside a mesh.

    An axis that the devices of its name do not divide stays whole.

    Raises:
      ValueError: an unknown name, or as many names as axes are not given.
    """
    unknown = [name for name in names if name is not None and name not in ACTIVATIONS]
    if unknown:
        raise ValueError(f"axis names {unknown} are not known; allowed: {sorted(ACTIVATIONS)}")
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} axis names {names} for an array of shape {x.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    entries = [() if name is None else ACTIVATIONS[name] for name in names]
    spec = PartitionSpec(
        *(
            entry if entry and size % _parts(entry, mesh) == 0 else None
            for size, entry in zip(x.shape, entries, strict=True)
        )
    )
    return jax.lax.with_sharding_constraint(x, spec)
