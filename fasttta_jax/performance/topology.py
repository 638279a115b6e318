"""TPU slices by name, such as "v5e:16x16": their chips as devices to compile for, none at hand.

Devices come from libtpu (the extra `aot`), which compiles without a TPU. Without it there are only
numbers, enough for an abstract mesh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from fasttta_jax.config import ConfigError
from fasttta_jax.performance.accelerators import ACCELERATORS, Accelerator

CHIPS_PER_HOST = 4
"""A host's chips lie in a square, two by two, in all generations below."""
PATTERN = re.compile(r"(?:(\d+)x)?(v\d+\w*):(\d+(?:x\d+)*)")
FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_TORUS = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
LIBRARY = "TPU_LIBRARY_PATH"
COMPILE_ONLY = {
    # No TPU is used: no lock on one, and no question to a metadata server what machine this is.
    # The kind of machine has no effect on the topologies that can be asked for.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """What slices a generation of TPUs comes in.

    Attributes:
      accelerator: rates, memory and links of a chip.
      largest: shape of the largest slice. In two dimensions slices have the shapes of `FLAT`; in
        three they are a torus.
      chip_config: how libtpu is asked for one device a chip.
    """

    accelerator: Accelerator
    largest: tuple[int, ...]
    chip_config: str = "default"

    @property
    def is_flat(self) -> bool:
        return len(self.largest) == 2


_KINDS = {kind.name: kind for kind in ACCELERATORS}
GENERATIONS: dict[str, Generation] = {
    # A v4 chip is one device only where its two cores are joined.
    "v4": Generation(_KINDS["v4"], (16, 16, 16), "megacore"),
    "v5e": Generation(_KINDS["v5e"], (16, 16)),
    "v5p": Generation(_KINDS["v5p"], (16, 16, 24), "megacore"),
    "v6e": Generation(_KINDS["v6e"], (16, 16)),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices of a generation.

    Attributes:
      generation: its name.
      shape: chips along each dimension of a slice.
      num_slices: slices that a slower network joins.
    """

    generation: str
    shape: tuple[int, ...]
    num_slices: int = 1

    def __str__(self) -> str:
        slices = "" if self.num_slices == 1 else f"{self.num_slices}x"
        return f"{slices}{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator(self) -> Accelerator:
        return GENERATIONS[self.generation].accelerator

    @property
    def num_chips(self) -> int:
        """Of all slices together."""
        return self.num_slices * math.prod(self.shape)

    @property
    def num_hosts(self) -> int:
        return self.num_chips // CHIPS_PER_HOST

    @property
    def is_ring(self) -> tuple[bool, ...]:
        """Whether the first and last chip along each dimension are neighbours too."""
        if GENERATIONS[self.generation].is_flat:
            return tuple(size == 16 for size in self.shape)
        return tuple(all(size % 4 == 0 for size in self.shape) for _ in self.shape)


def shapes(generation: str) -> tuple[tuple[int, ...], ...]:
    """All slices of a generation, small ones first."""
    spec = GENERATIONS[generation]
    if spec.is_flat:
        return FLAT
    sides = [range(4, size + 1, 4) for size in spec.largest]
    large = (shape for shape in itertools.product(*sides) if list(shape) == sorted(shape))
    return (*SMALL_TORUS, *sorted(large, key=lambda shape: (math.prod(shape), shape)))


def _listed(generation: str) -> str:
    spec = GENERATIONS[generation]
    known = FLAT if spec.is_flat else SMALL_TORUS
    names = ", ".join(f"{generation}:{'x'.join(map(str, shape))}" for shape in known)
    if spec.is_flat:
        return names
    return f"{names}, and {generation}:AxBxC with A <= B <= C, multiples of 4, up to " + "x".join(
        map(str, spec.largest)
    )


def parse_topology(name: str) -> Topology:
    """The topology of "v5e:16x16", or of two such slices, "2xv5e:16x16".

    Raises:
      ConfigError: there is no such topology; lists those that there are.
    """
    matched = PATTERN.fullmatch(name)
    if matched is None:
        raise ConfigError(
            f"topology is {name!r}; allowed: GENERATION:SHAPE, such as v5e:16x16, or several "
            f"slices of it, such as 2xv5e:16x16, with a generation of {', '.join(GENERATIONS)}"
        )
    generation = matched[2]
    if generation not in GENERATIONS:
        raise ConfigError(
            f"topology is {name!r}: {generation} is no generation that is known; allowed: "
            + "; ".join(map(_listed, GENERATIONS))
        )
    shape = tuple(map(int, matched[3].split("x")))
    num_slices = int(matched[1] or 1)
    if shape not in shapes(generation) or num_slices < 1:
        raise ConfigError(
            f"topology is {name!r}, which does not exist; allowed: {_listed(generation)}, with Nx "
            "in front for N slices"
        )
    return Topology(generation, shape, num_slices)


def find_libtpu() -> pathlib.Path | None:
    """Where libtpu.so lies: as TPU_LIBRARY_PATH says, else in the package libtpu; None if nowhere.

    Raises:
      ConfigError: TPU_LIBRARY_PATH names no file.
    """
    named = os.environ.get(LIBRARY)
    if named:
        if not pathlib.Path(named).is_file():
            raise ConfigError(f"{LIBRARY} is {named!r}, which is no file; allowed: a libtpu.so")
        return pathlib.Path(named)
    with contextlib.suppress(ImportError):
        import libtpu  # pyright: ignore[reportMissingImports]

        return pathlib.Path(libtpu.get_library_path())
    return None


def require_libtpu(purpose: str) -> pathlib.Path:
    """Where libtpu.so lies.

    Args:
      purpose: what takes it, as the error says it.

    Raises:
      RuntimeError: it is not installed.
      ConfigError: TPU_LIBRARY_PATH names no file.
    """
    library = find_libtpu()
    if library is None:
        raise RuntimeError(
            f"{purpose} takes libtpu: pip install 'fasttta_jax[aot]', or let {LIBRARY} name a "
            "libtpu.so"
        )
    return library


def libtpu_version() -> str | None:
    """Of the library that `find_libtpu` finds; None where that is not known."""
    library = find_libtpu()
    if library is None:
        return None
    notes = sorted(library.parents[1].glob("libtpu-*.dist-info"))
    return notes[0].name.removeprefix("libtpu-").removesuffix(".dist-info") if notes else None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables set where they are not, and taken back."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def devices(topology: Topology) -> list[Any]:
    """The topology's chips, to compile for; a program cannot run on them.

    Raises:
      RuntimeError: libtpu is not installed, or does not know the topology.
    """
    library = require_libtpu(f"compiling for {topology}")
    spec = GENERATIONS[topology.generation]
    slice_name = str(dataclasses.replace(topology, num_slices=1))
    options: dict[str, Any] = {"chip_config_name": spec.chip_config}
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    with _environment({LIBRARY: str(library), **COMPILE_ONLY}):
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=slice_name, **options
        ).devices
    if len(found) != topology.num_chips:
        raise RuntimeError(
            f"libtpu has {len(found)} devices for {topology}, which has {topology.num_chips} chips"
        )
    return list(found)


def axis_bandwidth(topology: Topology, mesh: Mesh, axes: Sequence[str]) -> float | None:
    """Bytes a second that a chip can send to the chips beside it along some mesh axes.

    The links of each dimension of the slice that those axes extend along: two where it is a ring
    that they fill, else one, which is all that the chip at an end has.

    Args:
      topology: of the devices.
      mesh: over all of them.
      axes: names of mesh axes.

    Returns:
      None where the axes lead to another slice, or no link is known.
    """
    link = topology.accelerator.link_bandwidth
    picked = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    group = list(np.asarray(mesh.devices)[picked].flat)
    if link is None or len({getattr(device, "slice_index", 0) for device in group}) > 1:
        return None
    extents = [
        len({device.coords[axis] for device in group}) for axis in range(len(topology.shape))
    ]
    links = sum(
        0 if extent == 1 else 2 if is_ring and extent == size and size > 2 else 1
        for extent, size, is_ring in zip(extents, topology.shape, topology.is_ring, strict=True)
    )
    return links * link or None
