"""The device mesh (data, fsdp, tensor), with Auto axes, built from the run's config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from fasttta_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all the jax devices by default).

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1:
        raise ConfigError(f"{shown}: at most one axis may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ConfigError(f"{shown} does not multiply to the {len(devices)} devices")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError where the global batch cannot be split over the mesh."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % shards:
        lower = batch_size // shards * shards
        nearest = [size for size in (lower, lower + shards) if size > 0]
        raise ConfigError(
            f"data.batch_size is {batch_size}; allowed: multiples of mesh.data * mesh.fsdp = "
            f"{shards}, such as {' or '.join(map(str, nearest))}"
        )
