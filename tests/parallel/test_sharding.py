"""Meshes and layouts: rules, their fallbacks, one layout for all that has a parameter's shape."""

from __future__ import annotations

import functools
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fasttta_jax.config import ConfigError, MeshConfig, OptimizerConfig
from fasttta_jax.parallel.compile import abstract_state, compile_init, shardings_of
from fasttta_jax.parallel.mesh import arrange_devices, check_batch_size, make_mesh
from fasttta_jax.parallel.sharding import (
    MIN_FSDP_SIZE,
    RULES,
    Placement,
    batch_sharding,
    check_rules,
    constrain,
    describe_warnings,
    infer_shardings,
    layout_warnings,
    path_name,
    place,
    replicated,
)
from fasttta_jax.systems import build_model
from fasttta_jax.training.optimizer import make_optimizer
from fasttta_jax.training.state import TrainState, new_state
from tests.golden import shardings
from tests.support import helpers


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


def fake_devices(num_slices: int, per_slice: int) -> list:
    return [
        types.SimpleNamespace(
            id=index,
            slice_index=index // per_slice,
            platform="cpu",
            device_kind="cpu",
            process_index=index,
        )
        for index in range(num_slices * per_slice)
    ]


def test_slices_are_neighbours_on_the_outer_part_of_the_data_axis_alone():
    devices = fake_devices(2, 8)
    np.random.default_rng(0).shuffle(devices)
    arranged = arrange_devices(devices, (4, 2, 2))
    assert arranged.shape == (4, 2, 2)
    slices = np.vectorize(lambda device: device.slice_index)(arranged)
    np.testing.assert_array_equal(slices[:2], 0)
    np.testing.assert_array_equal(slices[2:], 1)
    assert {device.id for device in arranged.flat} == set(range(16))


def test_a_data_axis_that_slices_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"mesh.data is 1; allowed: multiples of 2, the "):
        arrange_devices(fake_devices(2, 8), (1, 8, 2))


def test_accumulated_parts_are_split_too():
    with pytest.raises(ConfigError, match=r"multiples of .*accumulation_steps = 16, such as 16"):
        check_batch_size(8, mesh(4, 2, 1), parts=2)


# ----------------------------------------------------------------------------------------- rules


EXAMPLES = [
    ("text/embedding", (1000, 128), ()),
    ("backbone/encoder_0/attention/qkv/kernel", (64, 3, 4, 32), ("fsdp", None, "tensor", None)),
    ("backbone/decoder_3/attention/qkv/bias", (3, 4, 16), (None, "tensor", None)),
    ("ema/backbone/encoder_0/attention/projection/kernel", (4, 32, 512), ("tensor", None, "fsdp")),
    ("opt_state/1/0/mu/backbone/encoder_11/mlp_in/kernel", (64, 256), ("fsdp", "tensor")),
    ("backbone/encoder_0/mlp_in/bias", (256,), ("tensor",)),
    ("backbone/decoder_0/mlp_out/kernel", (256, 512), ("tensor", "fsdp")),
    ("backbone/decoder_stack/mlp_out/kernel", (4, 256, 512), (None, "tensor", "fsdp")),
    # no other axis divides: both of them on one
    ("backbone/decoder_1/mlp_out/kernel", (8192, 7), (("tensor", "fsdp"), None)),
    ("nu/backbone/encoder_stack/mlp_in/bias", (4, 256), (None, "tensor")),
]


@pytest.mark.parametrize(("name", "shape", "spec"), EXAMPLES)
def test_every_rule_matches_its_parameter(name, shape, spec):
    assert place(name, shape, mesh(1, 4, 2)) == Placement(PartitionSpec(*spec), "")


def test_every_rule_has_an_example():
    for pattern, _ in RULES:
        assert any(re.search(pattern, name) for name, _, _ in EXAMPLES), pattern


def spec(name, shape, devices, rules=()):
    return place(name, shape, devices, rules).spec


def test_a_rule_that_does_not_divide_falls_back_to_fsdp():
    name = "backbone/encoder_0/attention/qkv/kernel"
    # three heads over two tensor shards
    assert spec(name, (128, 3, 3, 16), mesh(1, 4, 2)) == PartitionSpec("fsdp", None, None, None)
    # too small to be worth it
    assert spec(name, (12, 3, 3, 4), mesh(1, 4, 2)) == PartitionSpec()


def test_fsdp_fills_the_tiles_of_a_tpu_where_it_can():
    """Rows in eights, columns in 128s; axes in front of them in ones."""
    eight = mesh(1, 8, 1)
    assert spec("x", (1024, 256), eight) == PartitionSpec("fsdp", None)
    assert spec("x", (256, 1024), eight) == PartitionSpec(None, "fsdp")  # 128 columns, of 32 rows
    assert spec("x", (256, 512), eight) == PartitionSpec("fsdp", None)  # not 64 columns
    assert spec("x", (16, 8, 128), eight) == PartitionSpec("fsdp", None, None)
    assert place("x", (256, 512), eight).warning == ""
    unaligned = place("x", (1001, 256), eight)
    assert unaligned.spec == PartitionSpec(None, "fsdp")
    assert unaligned.warning == "shards of 32 along axis 1 of (1001, 256) fill no tile"
    whole = place("x", (1021, 1021), eight)
    assert whole.spec == PartitionSpec()
    assert whole.warning == "no axis of (1021, 1021) is a multiple of mesh.fsdp = 8"
    found = layout_warnings({"a": jnp.zeros((1021, 1021)), "b": jnp.zeros((1024, 256))}, eight)
    assert found == {"a": whole.warning}
    layers = {"encoder_0/x": "why", "encoder_11/x": "why", "y": "why", "z": "because"}
    assert describe_warnings(layers) == ["why: encoder_*/x, y", "because: z"]


def test_small_arrays_and_meshes_without_fsdp_keep_copies():
    side = int(MIN_FSDP_SIZE**0.5)
    assert spec("head/x", (side, side), mesh(1, 8, 1)) == PartitionSpec("fsdp", None)
    assert spec("head/x", (side, side - 1), mesh(1, 8, 1)) == PartitionSpec()
    assert spec("step", (), mesh(1, 8, 1)) == PartitionSpec()
    assert spec("x", (1024, 256), mesh(8, 1, 1)) == PartitionSpec()


def test_the_axis_of_stacked_layers_is_never_split():
    name = "backbone/encoder_stack/x/kernel"
    assert spec(name, (1024, 1021, 127), mesh(1, 8, 1)) == PartitionSpec()
    assert spec(name, (8, 1024, 128), mesh(1, 8, 1)) == PartitionSpec(None, "fsdp", None)


def test_head_layers_of_the_same_name_follow_no_backbone_rule():
    name = "head/mlp/block_0/mlp_in/kernel"
    assert spec(name, (16, 16), mesh(1, 4, 2)) == PartitionSpec()


def test_rules_of_a_config_come_first():
    devices = mesh(1, 4, 2)
    name = "backbone/encoder_0/mlp_in/kernel"
    exact = (("mlp_in/kernel", ("tensor", "fsdp")),)
    assert spec(name, (64, 256), devices, exact) == PartitionSpec("tensor", "fsdp")
    filled = (("mlp_in/kernel", ("tensor", None)),)
    assert spec(name, (256, 512), devices, filled) == PartitionSpec("tensor", "fsdp")
    copies = (("mlp_in/kernel", ()),)
    assert spec(name, (64, 256), devices, copies) == PartitionSpec()
    too_long = (("mlp_in", (None, None, "fsdp")), *copies)
    assert spec(name, (64, 256), devices, too_long) == PartitionSpec()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("encodr", ()), "matches no parameter; names look like encoder_0/kernel"),
        (("kernel", ("fsdp", "model")), "'model' is no axis; allowed: data, fsdp, tensor"),
        (("kernel", ("fsdp", "fsdp")), "an axis stands twice"),
        (("kernel[", ("fsdp", None)), "is no regular expression"),
        (("kernel", ("fsdp", None, None)), r"fits no parameter that it matches.*is \(64, 30\)"),
        (("kernel", (None, "fsdp")), r"must divide its axis in a mesh of .*'fsdp': 4"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rule, message):
    tree = {"encoder_0": {"kernel": jnp.zeros((64, 30))}}
    with pytest.raises(ConfigError, match=message):
        check_rules(tree, mesh(1, 4, 2), (rule,))
    check_rules(tree, mesh(1, 4, 2), (("kernel", ("fsdp", None)), ("kernel", ())))


@pytest.mark.parametrize("config", shardings.CONFIGS)
def test_shipped_configs_lie_as_they_did(config):
    """Changed on purpose? `python -m tests.golden.shardings` writes the tables anew."""
    assert shardings.table(config) == shardings.path_of(config).read_text(encoding="utf-8")


def test_every_shipped_config_has_its_table():
    names = {path.stem for path in pathlib.Path("configs").glob("*.py")}
    assert {config.split(":")[0] for config in shardings.CONFIGS} == names


# ---------------------------------------------------------------------------------- whole states


@functools.cache
def state_and_mesh() -> tuple[TrainState, Mesh]:
    devices = mesh(2, 2, 2)
    model = build_model(helpers.tiny_teacher_config("unused"), helpers.tiny_text_encoder())
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fasttta_jax.parallel.sharding.MIN_FSDP_SIZE", 64)
        state = abstract_state(lambda key: new_state(optimizer, model.init(key)), devices)
    return state, devices


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


def test_constrain_leaves_axes_whole_that_do_not_divide():
    devices = mesh(2, 1, 4)
    with jax.set_mesh(devices):
        found = jax.jit(lambda x: constrain(x * 2, "batch", "token"))(jnp.ones((8, 6)))
    assert found.sharding.is_equivalent_to(
        NamedSharding(devices, PartitionSpec(("data", "fsdp"), None)), 2
    )


def test_constrain_does_nothing_outside_a_mesh():
    x = jnp.ones((8, 3))
    assert constrain(x, "batch", None) is x


def test_constrain_refuses_unknown_names_and_wrong_numbers_of_them():
    with pytest.raises(ValueError, match=r"\['bach'\] are not known; allowed: .*'batch'"):
        constrain(jnp.ones((8, 3)), "bach", None)
    with pytest.raises(ValueError, match=r"1 axis names .* shape \(8, 3\)"):
        constrain(jnp.ones((8, 3)), "batch")
