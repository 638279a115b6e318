"""The device mesh (data, fsdp, tensor), with Auto axes, built from the run's config.

Within a slice, devices are placed so that neighbours on an axis are neighbours on the network. Over
several slices the data axis is the outer one: only gradients travel between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from fasttta_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
AnyMesh = Mesh | AbstractMesh
"""Devices, or only how many there are along each axis."""


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with -1 filled in.

    Raises:
      ConfigError: the axes do not multiply to the number of devices; says what would.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1:
        raise ConfigError(f"{shown}: at most one axis may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ConfigError(
            f"{shown} does not multiply to the {num_devices} devices; allowed: axes whose product "
            f"is {num_devices}, one of them -1 to take what the others leave"
        )
    data, fsdp, tensor = (num_devices // known if size == -1 else size for size in sizes)
    return data, fsdp, tensor


def num_slices(devices: Sequence[Any]) -> int:
    """How many slices, joined by a slower network, the devices belong to."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def arrange_devices(devices: Sequence[Any], sizes: tuple[int, int, int]) -> np.ndarray:
    """The devices as an array [data, fsdp, tensor], by the network between them.

    Raises:
      ConfigError: there are several slices, and the data axis is not a multiple of them.
    """
    slices = num_slices(devices)
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    if data % slices:
        raise ConfigError(
            f"mesh.data is {data}; allowed: multiples of {slices}, the number of slices: fsdp and "
            "tensor stay within a slice"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all the jax devices by default).

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    arranged = arrange_devices(devices, mesh_sizes(config, len(devices)))
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: AnyMesh) -> int:
    """Parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: AnyMesh, *, parts: int = 1) -> None:
    """Raises ConfigError where the global batch cannot be split over the mesh.

    Args:
      batch_size: of all hosts together.
      mesh: devices.
      parts: pieces whose gradients are accumulated; each is split over the mesh.
    """
    shards = batch_shards(mesh) * parts
    if batch_size % shards:
        lower = batch_size // shards * shards
        nearest = [size for size in (lower, lower + shards) if size > 0]
        of = "mesh.data * mesh.fsdp" + (" * optimizer.accumulation_steps" if parts > 1 else "")
        raise ConfigError(
            f"data.batch_size is {batch_size}; allowed: multiples of {of} = {shards}, such as "
            + " or ".join(map(str, nearest))
        )
