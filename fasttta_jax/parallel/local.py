"""This host's devices alone, for work that hosts share by index: encoding data, answering prompts.

Every host runs its own programs here; nothing is sent between hosts.
"""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fasttta_jax.config import MeshConfig
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.parallel.sharding import batch_sharding, replicated

T = TypeVar("T")


def local_mesh() -> Mesh:
    """A mesh over this host's devices, all on the data axis."""
    return make_mesh(MeshConfig(), jax.local_devices())


def local_rows(values: T) -> T:
    """A tree of arrays [B, ...] with B spread over this host's devices; B must be a multiple."""
    return jax.device_put(values, batch_sharding(local_mesh()))


def spread(values: jax.Array | np.ndarray) -> jax.Array:
    """An array [B, ...] over this host's devices: in rows where B is a multiple, else in copies."""
    divides = len(values) % jax.local_device_count() == 0
    return local_rows(jnp.asarray(values)) if divides else local_copies(jnp.asarray(values))


def local_copies(values: T) -> T:
    """A tree of arrays, whole on each of this host's devices."""
    return jax.device_put(values, replicated(local_mesh()))


def on_local_devices() -> contextlib.AbstractContextManager[Any]:
    """A context in which programs run on this host's devices, whatever mesh is set around it."""
    return jax.set_mesh(local_mesh())
