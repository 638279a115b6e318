"""Which rows of a global batch a host reads, and how its rows become part of global arrays.

Where a mesh places devices by the network between them, the rows of a host need not be neighbours;
where the tensor axis crosses hosts, several of them read the same rows.
Dimensions: B rows of the global batch, R rows of a host.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from fasttta_jax.parallel.mesh import AnyMesh, check_batch_size
from fasttta_jax.parallel.sharding import batch_sharding

T = TypeVar("T")


def host_rows(
    mesh: Mesh, batch_size: int, devices: Iterable[Any] | None = None
) -> Int[np.ndarray, " R"]:
    """Which rows of a global batch the devices hold, rising.

    Args:
      mesh: all devices.
      batch_size: B.
      devices: some of the mesh; those of this host by default.

    Returns:
      Row numbers [R].

    Raises:
      ConfigError: the batch cannot be split over the mesh; says what could.
    """
    check_batch_size(batch_size, mesh)
    sharding = batch_sharding(mesh)
    slices = sharding.devices_indices_map((batch_size,))
    chosen = sharding.addressable_devices if devices is None else devices
    rows = {row for device in chosen for row in range(batch_size)[slices[device][0]]}
    return np.asarray(sorted(rows))


def to_global(batch: Any, mesh: Mesh, rows: Int[np.ndarray, " R"], batch_size: int) -> Any:
    """This host's rows of a batch as global arrays.

    Args:
      batch: a tree of arrays [R, ...].
      mesh: all devices.
      rows: what `host_rows` says for this host.
      batch_size: B.
    """
    sharding = batch_sharding(mesh)

    def place(values: Any) -> jax.Array:
        values = np.array(values)  # a copy: memory shared with a reading process is taken back

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return values[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, shard)

    return jax.tree.map(place, batch)


def spread_rows(values: T, mesh: AnyMesh) -> T:
    """A tree of arrays [B, ...] that every host has whole, split over the mesh by rows.

    On one host they stay as they are: a jitted program splits them itself.
    """
    if jax.process_count() == 1:
        return values
    sharding = batch_sharding(mesh)

    def place(rows: Any) -> jax.Array:
        if jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(rows)))
        whole = np.asarray(rows)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, values)
