"""Slices of TPUs by name: what exists, how large it is, and what its links carry."""

from __future__ import annotations

import types

import numpy as np
import pytest

from fasttta_jax.config import ConfigError
from fasttta_jax.performance import topology as topologies
from fasttta_jax.performance.accelerators import accelerator
from fasttta_jax.performance.topology import (
    GENERATIONS,
    Topology,
    parse_topology,
    shapes,
)

HAS_LIBTPU = topologies.find_libtpu() is not None
LINK = 50e9  # of a v5e


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [
        ("v5e:2x2", 4, 1),
        ("v5e:16x16", 256, 64),
        ("2xv5e:16x16", 512, 128),
        ("v6e:8x8", 64, 16),
        ("v5p:4x4x4", 64, 16),
        ("v5p:2x2x1", 4, 1),
        ("v4:4x8x8", 256, 64),
    ],
)
def test_a_name_is_a_topology(name, chips, hosts):
    found = parse_topology(name)
    assert (found.num_chips, found.num_hosts) == (chips, hosts)
    assert str(found) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:3x3", r"'v5e:3x3', which does not exist; allowed: v5e:2x2, .*v5e:16x16"),
        ("v5e:32x32", "does not exist; allowed: v5e:2x2"),
        ("v5e:4x4x4", "does not exist; allowed: v5e:2x2"),
        ("v5p:4x4", r"does not exist; allowed: v5p:2x2x1, .*AxBxC .* up to 16x16x24"),
        ("v5p:8x4x4", "A <= B <= C"),
        ("0xv5e:4x4", "does not exist"),
        ("v9:4x4", r"v9 is no generation that is known; allowed: v4:2x2x1.*v5e:2x2"),
        ("v5e-16", r"'v5e-16'; allowed: GENERATION:SHAPE, such as v5e:16x16"),
        ("", "allowed: GENERATION:SHAPE"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_all_shapes_of_a_generation_can_be_named(generation):
    found = shapes(generation)
    assert len(set(found)) == len(found)
    assert found[-1] == GENERATIONS[generation].largest
    for shape in found:
        assert parse_topology(f"{generation}:{'x'.join(map(str, shape))}").shape == shape


def test_rings_close_where_the_slice_is_full():
    assert parse_topology("v5e:8x16").is_ring == (False, True)
    assert parse_topology("v5p:4x4x8").is_ring == (True, True, True)
    assert parse_topology("v5p:2x2x4").is_ring == (False, False, False)


# --------------------------------------------------------------------------------- bandwidth


def chips(topology: Topology, sizes: tuple[int, int, int]):
    """A stand-in for a mesh over the topology's chips in their order."""
    per_slice = list(np.ndindex(*topology.shape))
    found = np.empty(topology.num_chips, object)
    for index in range(topology.num_chips):
        slice_index, place = divmod(index, len(per_slice))
        found[index] = types.SimpleNamespace(
            slice_index=slice_index, coords=(*per_slice[place], 0, 0)[:3]
        )
    return types.SimpleNamespace(
        devices=found.reshape(sizes), axis_names=("data", "fsdp", "tensor")
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "sizes", "axes", "links"),
    [
        ("v5e:4x4", (4, 4, 1), ("fsdp",), 1),  # a line: the chip at its end has one link
        ("v5e:16x16", (16, 16, 1), ("fsdp",), 2),  # a ring
        ("v5e:16x16", (64, 4, 1), ("fsdp",), 1),  # a part of a ring
        ("v5e:16x16", (256, 1, 1), ("data",), 4),  # both dimensions
        ("v5e:16x16", (16, 16, 1), ("data", "fsdp"), 4),
        ("v5e:8x16", (8, 16, 1), ("data", "fsdp"), 3),
    ],
)
def test_bandwidth_counts_the_links_that_axes_lie_along(name, sizes, axes, links):
    topology = parse_topology(name)
    found = topologies.axis_bandwidth(topology, chips(topology, sizes), axes)  # type: ignore
    assert found == links * LINK


@pytest.mark.usefixtures("unchecked")
def test_bandwidth_between_slices_is_not_known():
    topology = parse_topology("2xv5e:4x4")
    mesh = chips(topology, (2, 16, 1))
    assert topologies.axis_bandwidth(topology, mesh, ("data",)) is None  # type: ignore
    assert topologies.axis_bandwidth(topology, mesh, ("fsdp",)) == 2 * LINK  # type: ignore


# ----------------------------------------------------------------------------------- libtpu


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topologies, "find_libtpu", lambda: None)
    with pytest.raises(RuntimeError, match=r"compiling for v5e:2x2 takes libtpu: pip install"):
        topologies.devices(parse_topology("v5e:2x2"))


def test_a_path_to_libtpu_that_is_wrong_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "libtpu.so"))
    with pytest.raises(ConfigError, match=r"TPU_LIBRARY_PATH is '.*libtpu.so', which is no file"):
        topologies.find_libtpu()


@pytest.mark.aot
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed: pip install -e '.[aot]'")
@pytest.mark.parametrize("name", ["v5e:16x16", "v6e:2x4", "v5p:2x2x4", "v4:4x4x4", "2xv5e:4x4"])
def test_libtpu_knows_the_topologies(name):
    topology = parse_topology(name)
    devices = topologies.devices(topology)
    assert len(devices) == topology.num_chips
    assert accelerator(devices[0].device_kind) is topology.accelerator
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    assert slices == set(range(topology.num_slices))
