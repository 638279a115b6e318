"""What every process of `test_checkpoint` runs, as a module.

Arguments: the name of a function here, then what it takes. Prints one JSON line.
"""

from __future__ import annotations

import json
import pathlib
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fasttta_jax.multihost import distributed
from fasttta_jax.workdir import checkpoint_folder
from fasttta_jax.workdir.checkpoint import (
    CheckpointError,
    Checkpoints,
    Restored,
)
from fasttta_jax.workdir.hashes import tree_hash

NOISE = np.sin(np.arange(8 * 4096.0) ** 1.5).reshape(8, 4096)
FULL_DISK_BYTES = 20_000


def values(step: int) -> dict[str, Any]:
    """What is saved at a step; 128 KiB that do not compress in each tree."""
    noise = (NOISE * step).astype(np.float32)
    params = {"w": noise, "b": np.float32(noise[0, :3]), "h": noise[:, :8].astype(jnp.bfloat16)}
    return {
        "rest": {"step": np.int32(step), "params": params, "opt_state": ((), [noise[:2]])},
        "ema": {"w": noise + np.float32(0.5)},
    }


def make_mesh(data: int, fsdp: int) -> Mesh:
    """All devices of the job."""
    devices = np.asarray(jax.devices()).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def shardings(mesh: Mesh) -> dict[str, Any]:
    """Large leaves over fsdp, or over both axes; the others whole on every device."""

    def place(leaf: Any) -> NamedSharding:
        spec = {8: PartitionSpec(("data", "fsdp")), 2: PartitionSpec(None, "fsdp")}
        size = np.shape(leaf)[0] if np.ndim(leaf) == 2 else 0
        return NamedSharding(mesh, spec.get(size, PartitionSpec()))

    return jax.tree.map(place, values(0))


def abstract(mesh: Mesh) -> dict[str, Any]:
    """Shapes, dtypes and places of the trees."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=place),
        values(0),
        shardings(mesh),
    )


def arrays(mesh: Mesh, step: int) -> dict[str, Any]:
    """The trees of a step as global arrays."""
    return jax.tree.map(
        lambda leaf, place: jax.make_array_from_callback(
            np.shape(leaf), place, lambda index: np.asarray(leaf)[index]
        ),
        values(step),
        shardings(mesh),
    )


def assert_equal(restored: Restored | None, mesh: Mesh) -> None:
    """Every shard that this process holds has the saved bits and the wanted place."""
    assert restored is not None

    def compare(array: jax.Array, expected: Any, place: NamedSharding) -> None:
        assert array.sharding.is_equivalent_to(place, array.ndim)
        for shard in array.addressable_shards:
            part = np.asarray(expected)[shard.index]
            assert np.asarray(shard.data).tobytes() == part.tobytes()

    jax.tree.map(compare, restored.items, values(restored.step), shardings(mesh))
    assert restored.progress == {"next_batch": 10 * restored.step}


def error_of(function: Callable[[], Any]) -> str:
    """The text of the CheckpointError that a call raises."""
    try:
        function()
    except CheckpointError as error:
        return str(error)
    raise AssertionError("no CheckpointError")


def save_with_full_disk(checkpoints: Checkpoints, items: dict[str, Any], host: int) -> list[Any]:
    """The error that this process sees, and after how many seconds, if one host's disk is full."""
    began = time.monotonic()

    def save() -> None:
        checkpoints.save(4, items, {"loss": 0.0}, {"next_batch": 40})
        checkpoints.wait()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if jax.process_index() == host:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, limits[1]))
    text = error_of(save)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return [text, time.monotonic() - began, checkpoints.steps()]


def save(workdir: str) -> dict[str, Any]:
    """Three steps, two failures, and a fourth step."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoint_folder.SHARED_STORAGE_SECONDS = 0.5
    mesh = make_mesh(2, 4)
    apart = str(pathlib.Path(workdir).parent / f"of_host_{jax.process_index()}")
    not_shared = error_of(lambda: Checkpoints(apart))
    checkpoints = Checkpoints(workdir, keep=3)
    for step, metrics in ((1, {"loss": 1.0}), (2, None), (3, {"loss": 2.0})):
        checkpoints.save(step, arrays(mesh, step), metrics, {"next_batch": 10 * step})
    checkpoints.wait()
    fourth = arrays(mesh, 4)
    full = [save_with_full_disk(checkpoints, fourth, host) for host in (1, 0)]
    names = sorted(path.name for path in checkpoints.folder.path.iterdir())
    assert_equal(checkpoints.restore_latest(abstract(mesh)), mesh)
    checkpoints.save(4, fourth, None, {"next_batch": 40})
    checkpoints.wait()
    checkpoints.save(4, arrays(mesh, 3), None, {})  # exists
    checkpoints.close()
    return {
        "not_shared": not_shared,
        "full": full,
        "names": names,
        "steps": checkpoints.steps(),
        "best": checkpoints.best_step(),
        "hash": tree_hash(fourth),
    }


def restore(*workdirs: str) -> dict[str, Any]:
    """The newest step of every workdir, or why there is none, on another mesh."""
    mesh = make_mesh(4, 2)
    wanted = abstract(mesh)
    found: dict[str, Any] = {}
    for workdir in workdirs:
        checkpoints = Checkpoints(workdir, keep=3)
        try:
            restored = checkpoints.restore_latest(wanted)
            assert_equal(restored, mesh)
            found[workdir] = restored.step if restored else None
        except CheckpointError as error:
            found[workdir] = str(error)
        checkpoints.close()
    return found


if __name__ == "__main__":
    distributed.start()
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    distributed.finish()
