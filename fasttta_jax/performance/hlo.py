"""What a compiled program sends between devices, read from its HLO text.

Every collective with its kind, the size of its array, how many devices take part, along which mesh
axes they lie, and how often a run of the program executes it: inside a loop as often as the loop
turns, where the text shows that.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fasttta_jax.parallel.mesh import AnyMesh
from fasttta_jax.performance.hlo_text import (
    HloError,
    Instruction,
    called,
    parse_module,
    tuple_elements,
    type_bytes,
)

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FUSED_SCATTER = "all-reduce-scatter"
"""XLA for TPUs writes a reduce-scatter as an all-reduce inside a computation of this name."""
HIDDEN_CHAIN = re.compile(r'\bchain_id="[^"]*"')
EXPLICIT_GROUPS = re.compile(r"\breplica_groups=\{((?:\{[\d,]*\},?)*)\}")
IOTA_GROUPS = re.compile(r"\breplica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH_GROUPS = re.compile(
    r"\breplica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"
)
MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
PART_OF_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
PAIRS = re.compile(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")

Groups = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a program.

    Attributes:
      kind: one of `KINDS`.
      name: of the instruction.
      array_bytes: the whole array: what an all-gather returns, a reduce-scatter takes, each device
        gives to an all-reduce or an all-to-all, or passes on in a permutation.
      group_size: devices that exchange with each other.
      axes: mesh axes along which they lie.
      times: executions in a run of the program; None inside a loop whose turns XLA does not state.
      source: the operation of the traced function that it comes from.
    """

    kind: str
    name: str
    array_bytes: int
    group_size: int
    axes: tuple[str, ...]
    times: int | None
    source: str

    @property
    def sent_bytes(self) -> float:
        """What one device sends in one execution on a ring, which is the least that there is."""
        share = (self.group_size - 1) / self.group_size
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.array_bytes


class Traffic(NamedTuple):
    """All collectives of one kind along the same axes.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes.
      instructions: how many there are in the program.
      executions: in a run; those in loops of unknown length count once.
      sent_bytes: that one device sends in a run, likewise.
      is_exact: no such loop.
    """

    kind: str
    axes: tuple[str, ...]
    instructions: int
    executions: int
    sent_bytes: float
    is_exact: bool


# ------------------------------------------------------------------------------- replica groups


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """Device numbers counted in an array of these sizes, its axes then put in that order."""
    shape = _numbers(sizes)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_numbers(order)) if order else numbers


def _mesh_groups(matched: re.Match[str]) -> Groups:
    """Groups along named axes, or parts "(before)size" of axes, of a mesh inside the HLO text."""
    sizes = {name: int(size) for name, size in MESH_AXIS.findall(matched[1])}
    count = math.prod(sizes.values())
    parts: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for name, before, size in PART_OF_AXIS.findall(matched[4]):
        parts[name].append((int(before or 1), int(size or sizes[name])))
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(parts[name]):
            shape += [before // done, part]
            grouped.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    numbers = _iota(matched[2] or str(count), matched[3]).reshape(shape)
    kept = [axis for axis in range(len(shape)) if axis not in grouped]
    width = math.prod(shape[axis] for axis in grouped)
    return numbers.transpose(kept + grouped).reshape(-1, width).tolist()


def replica_groups(attributes: str, num_devices: int) -> Groups:
    """The devices of each group, as positions in the mesh; an empty list in the text means all.

    Raises:
      HloError: none of XLA's three ways of writing them.
    """
    if matched := IOTA_GROUPS.search(attributes):
        return _iota(matched[2], matched[3]).reshape(_numbers(matched[1])).tolist()
    if matched := MESH_GROUPS.search(attributes):
        return _mesh_groups(matched)
    if matched := EXPLICIT_GROUPS.search(attributes):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", matched[1])]
        return groups or [list(range(num_devices))]
    raise HloError(f"no replica groups in {attributes[:300]!r}")


def _permuted(attributes: str) -> Groups:
    matched = PAIRS.search(attributes)
    if matched is None:
        raise HloError(f"no source_target_pairs in {attributes[:300]!r}")
    pairs = [_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", matched[1])]
    return [pair for pair in pairs if pair[0] != pair[1]]


def spanned_axes(groups: Groups, mesh: AnyMesh) -> tuple[str, ...]:
    """Mesh axes along which members of a group differ."""
    sizes = tuple(mesh.shape.values())
    varies = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.stack(np.unravel_index(group, sizes))
        varies |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, does in zip(mesh.shape, varies, strict=True) if does)


# ---------------------------------------------------------------------------------- collectives


def _kind(opcode: str) -> str | None:
    base = opcode.removesuffix("-start")
    return base if base in KINDS else None


def _array_bytes(instruction: Instruction, kind: str, group_size: int) -> int:
    """See `Collective.array_bytes`; a "-start" returns its operands beside its results."""
    is_pair = instruction.opcode in ("all-gather-start", "collective-permute-start")
    result = tuple_elements(instruction.type)[1] if is_pair else instruction.type
    size = type_bytes(result)
    return size * group_size if kind == "reduce-scatter" else size


def _collective(
    instruction: Instruction, computation: str, mesh: AnyMesh, times: int | None
) -> Collective | None:
    kind = _kind(instruction.opcode)
    if kind is None:
        return None
    if kind == "collective-permute":
        groups, group_size = _permuted(instruction.attributes), 2
    else:
        num_devices = math.prod(mesh.shape.values())
        groups = replica_groups(instruction.attributes, num_devices)
        group_size = max(map(len, groups))
    if not groups or group_size < 2:
        return None
    size = _array_bytes(instruction, kind, group_size)
    if kind == "all-reduce" and computation.startswith(FUSED_SCATTER):
        kind = "reduce-scatter"
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind=kind,
        name=instruction.name,
        array_bytes=size,
        group_size=group_size,
        axes=spanned_axes(groups, mesh),
        times=times,
        source=source[1] if source else "",
    )


def find_collectives(text: str, mesh: AnyMesh) -> tuple[Collective, ...]:
    """Every collective that a compiled program executes, in the order of the text.

    Args:
      text: `compiled.as_text()`.
      mesh: that the program was compiled for; devices are numbered along it.

    Raises:
      HloError: the text is no HLO, or has a form that is not known.
    """
    module = parse_module(text)
    found: dict[str, Collective] = {}

    def add(one: Collective, computation: str, attributes: str) -> None:
        # A collective that TPUs hide behind other work is repeated in each step of that work, under
        # one chain and channel. A computation may also be called from several places.
        chain = HIDDEN_CHAIN.search(attributes)
        channel = re.search(r"\bchannel_id=\d+", attributes)
        key = f"{computation}/{one.name}"
        if chain and channel:
            key = f"{chain[0]} {channel[0]}"
        first = found.setdefault(key, one)
        if first is not one and first.name == one.name:
            found[key] = dataclasses.replace(first, times=_sum(first.times, one.times))

    def walk(computation: str, times: int | None) -> None:
        outer = module.computations.get(computation, {})
        for instruction in outer.values():
            one = _collective(instruction, computation, mesh, times)
            if one is not None:
                add(one, computation, instruction.attributes)
            for name, turns in called(module, outer, instruction):
                walk(name, None if times is None or turns is None else times * turns)

    walk(module.entry, 1)
    return tuple(found.values())


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def summarize(found: Iterable[Collective]) -> tuple[Traffic, ...]:
    """By kind and axes, in the order of `KINDS`, the most bytes first within a kind."""
    groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for one in found:
        groups.setdefault((one.kind, one.axes), []).append(one)
    rows = [_traffic(kind, axes, members) for (kind, axes), members in groups.items()]
    return tuple(sorted(rows, key=lambda row: (KINDS.index(row.kind), -row.sent_bytes)))


def _traffic(kind: str, axes: tuple[str, ...], members: Sequence[Collective]) -> Traffic:
    turns = [1 if one.times is None else one.times for one in members]
    return Traffic(
        kind=kind,
        axes=axes,
        instructions=len(members),
        executions=sum(turns),
        sent_bytes=sum(one.sent_bytes * times for one, times in zip(members, turns, strict=True)),
        is_exact=all(one.times is not None for one in members),
    )
