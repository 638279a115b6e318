"""Every device gets the rows that its place in the mesh says, whatever the mesh."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fasttta_jax.config import ConfigError, MeshConfig
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.parallel.rows import host_rows, to_global
from fasttta_jax.parallel.sharding import batch_sharding

MESHES = (
    MeshConfig(),
    MeshConfig(data=2, fsdp=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=1, tensor=8),
)


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_rows_become_the_global_array(config: MeshConfig) -> None:
    mesh = make_mesh(config)
    rows = host_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))  # this host has every device
    batch = {"x": np.arange(48.0, dtype=np.float32).reshape(16, 3), "weight": np.arange(16)}
    placed = to_global(batch, mesh, rows, 16)
    for key, values in batch.items():
        np.testing.assert_array_equal(np.asarray(placed[key]), values)
        assert placed[key].sharding == batch_sharding(mesh)


@pytest.mark.parametrize("config", MESHES, ids=str)
def test_the_rows_of_a_device_are_those_that_it_is_given(config: MeshConfig) -> None:
    """As if each device were a host of its own; the tensor axis repeats rows."""
    mesh = make_mesh(config)
    placed = to_global(np.arange(16), mesh, np.arange(16), 16)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), host_rows(mesh, 16, [shard.device]))
    found = np.concatenate([host_rows(mesh, 16, [device]) for device in jax.devices()])
    counts = np.bincount(found, minlength=16)
    np.testing.assert_array_equal(counts, mesh.shape["tensor"])


def test_a_batch_that_does_not_divide_says_what_does() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 12; allowed: .* = 8, such as 8 or 16"):
        host_rows(make_mesh(MeshConfig()), 12)
