"""Meshes and layouts: rules, their fallbacks, one layout for all that has a parameter's shape."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fasttta_jax.config import ConfigError, MeshConfig, OptimizerConfig
from fasttta_jax.models.text_to_audio import build_model
from fasttta_jax.parallel.compile import abstract_state, compile_init, shardings_of
from fasttta_jax.parallel.mesh import check_batch_size, make_mesh
from fasttta_jax.parallel.sharding import (
    MIN_FSDP_SIZE,
    RULES,
    batch_sharding,
    constrain,
    infer_shardings,
    leaf_spec,
    path_name,
    replicated,
)
from fasttta_jax.training.optim import make_optimizer
from fasttta_jax.training.state import TrainState, new_state
from tests import helpers


def mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


# ---------------------------------------------------------------------------------------- meshes


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((1, -1, 2), (1, 4, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_meshes_take_all_devices(sizes, shape):
    found = mesh(*sizes)
    assert tuple(found.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert found.devices.size == 8
    assert {str(kind) for kind in found.axis_types} == {"AxisType.Auto"}


def test_a_mesh_over_some_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize("sizes", [(3, 1, 1), (16, 1, 1), (2, 2, 1), (-1, 3, 1)])
def test_meshes_that_do_not_multiply_are_refused(sizes):
    message = f"mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}, mesh.tensor={sizes[2]} does not"
    with pytest.raises(ConfigError, match=f"{re.escape(message)} multiply to the 8 devices"):
        mesh(*sizes)


def test_two_axes_cannot_both_take_the_rest():
    with pytest.raises(ConfigError, match="at most one axis may be -1"):
        mesh(-1, -1, 1)


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_batches_that_divide_pass(batch_size):
    check_batch_size(batch_size, mesh(4, 2, 1))


@pytest.mark.parametrize(("batch_size", "nearest"), [(12, "8 or 16"), (3, "8"), (17, "16 or 24")])
def test_batches_that_do_not_divide_name_the_nearest(batch_size, nearest):
    message = rf"is {batch_size}; allowed: multiples of .* = 8, such as {nearest}$"
    with pytest.raises(ConfigError, match=message):
        check_batch_size(batch_size, mesh(4, 2, 1))


def test_the_tensor_axis_does_not_split_batches():
    check_batch_size(1, mesh(1, 1, 8))


# ----------------------------------------------------------------------------------------- rules


EXAMPLES = [
    ("backbone/encoder_0/attention/qkv/kernel", (64, 3, 4, 16), ("fsdp", None, "tensor", None)),
    ("backbone/decoder_3/attention/qkv/bias", (3, 4, 16), (None, "tensor", None)),
    ("ema/backbone/encoder_0/attention/projection/kernel", (4, 16, 64), ("tensor", None, "fsdp")),
    ("opt_state/1/0/mu/backbone/encoder_11/mlp_in/kernel", (64, 256), ("fsdp", "tensor")),
    ("backbone/encoder_0/mlp_in/bias", (256,), ("tensor",)),
    ("backbone/decoder_0/mlp_out/kernel", (256, 64), ("tensor", "fsdp")),
]


@pytest.mark.parametrize(("name", "shape", "spec"), EXAMPLES)
def test_every_rule_matches_its_parameter(name, shape, spec):
    assert leaf_spec(name, shape, mesh(1, 4, 2)) == PartitionSpec(*spec)


def test_every_rule_has_an_example():
    for pattern, _ in RULES:
        assert any(re.search(pattern, name) for name, _, _ in EXAMPLES), pattern


def test_a_rule_that_does_not_divide_falls_back_to_fsdp():
    name = "backbone/encoder_0/attention/qkv/kernel"
    # three heads over two tensor shards: the largest axis that four shards divide is split
    assert leaf_spec(name, (128, 3, 3, 16), mesh(1, 4, 2)) == PartitionSpec(
        "fsdp", None, None, None
    )
    # too small to be worth it
    assert leaf_spec(name, (12, 3, 3, 4), mesh(1, 4, 2)) == PartitionSpec()


def test_other_leaves_are_split_over_fsdp_where_they_are_large():
    assert leaf_spec("text/embedding", (1001, 256), mesh(1, 8, 1)) == PartitionSpec(None, "fsdp")
    assert leaf_spec("text/embedding", (1024, 256), mesh(1, 8, 1)) == PartitionSpec("fsdp", None)
    side = int(MIN_FSDP_SIZE**0.5)
    assert leaf_spec("head/x", (side, side), mesh(1, 8, 1)) == PartitionSpec("fsdp", None)
    assert leaf_spec("head/x", (side, side - 1), mesh(1, 8, 1)) == PartitionSpec()
    assert leaf_spec("head/x", (1021, 1021), mesh(1, 8, 1)) == PartitionSpec()
    assert leaf_spec("step", (), mesh(1, 8, 1)) == PartitionSpec()
    assert leaf_spec("text/embedding", (1024, 256), mesh(8, 1, 1)) == PartitionSpec()


def test_head_layers_of_the_same_name_follow_no_backbone_rule():
    name = "head/mlp/block_0/mlp_in/kernel"
    assert leaf_spec(name, (16, 16), mesh(1, 4, 2)) == PartitionSpec()


# ---------------------------------------------------------------------------------- whole states


@functools.cache
def state_and_mesh() -> tuple[TrainState, Mesh]:
    devices = mesh(2, 2, 2)
    model = build_model(helpers.tiny_teacher_config("unused"), helpers.tiny_text_encoder())
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    return abstract_state(lambda key: new_state(optimizer, model.init(key)), devices), devices


def specs(tree) -> dict[str, PartitionSpec]:
    return {
        path_name(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_parameters_average_and_moments_are_laid_out_alike():
    state, _ = state_and_mesh()
    of_params = specs(state.params)
    assert specs(state.ema) == of_params
    moments = specs(state.opt_state)
    for moment in ("mu", "nu"):
        found = {
            name.split(f"/{moment}/")[1]: spec
            for name, spec in moments.items()
            if f"/{moment}/" in name
        }
        assert found == of_params
    assert PartitionSpec("fsdp", "tensor") in of_params.values()
    assert specs(state)["step"] == PartitionSpec()


def test_a_state_is_born_as_described():
    state, devices = state_and_mesh()
    model = build_model(helpers.tiny_teacher_config("unused"), helpers.tiny_text_encoder())

    def init(key):
        return model.init(key)["backbone"]

    born = compile_init(init, state.params["backbone"], devices)(jax.random.key(0))
    for leaf, wanted in zip(
        jax.tree.leaves(born), jax.tree.leaves(shardings_of(state.params["backbone"])), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    kernel = born["encoder_0"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 64)
    expected = jax.jit(init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, born, expected)


def test_infer_shardings_takes_shapes_and_arrays():
    tree = {"encoder_0": {"mlp_in": {"bias": jnp.zeros((8,))}}}
    found = infer_shardings(tree, mesh(1, 4, 2))
    assert found["encoder_0"]["mlp_in"]["bias"].spec == PartitionSpec("tensor")
    assert infer_shardings(jax.eval_shape(lambda: tree), mesh(1, 4, 2)) == found


def test_batches_are_split_over_data_and_fsdp():
    batch = jax.device_put(jnp.zeros((8, 3)), batch_sharding(mesh(2, 2, 2)))
    assert batch.addressable_shards[0].data.shape == (2, 3)
    whole = jax.device_put(jnp.zeros((8, 3)), replicated(mesh(2, 2, 2)))
    assert whole.addressable_shards[0].data.shape == (8, 3)


# ------------------------------------------------------------------------------------- constrain


def test_constrain_pins_the_layout_under_a_mesh():
    devices = mesh(4, 2, 1)
    with jax.set_mesh(devices):
        found = jax.jit(lambda x: constrain(x * 2, "batch", None))(jnp.ones((8, 3)))
    expected = NamedSharding(devices, PartitionSpec(("data", "fsdp"), None))
    assert found.sharding.is_equivalent_to(expected, 2)


def test_constrain_does_nothing_outside_a_mesh():
    x = jnp.ones((8, 3))
    assert constrain(x, "batch", None) is x


def test_constrain_refuses_unknown_names_and_wrong_numbers_of_them():
    with pytest.raises(ValueError, match=r"\['bach'\] are not known; allowed: .*'batch'"):
        constrain(jnp.ones((8, 3)), "bach", None)
    with pytest.raises(ValueError, match=r"1 axis names .* shape \(8, 3\)"):
        constrain(jnp.ones((8, 3)), "batch")
