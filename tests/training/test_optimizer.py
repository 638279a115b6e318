"""Learning rate, decay, clipping, freezing and averaging are what the config says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from fasttta_jax.config import OptimizerConfig
from fasttta_jax.models.stacking import stack_layers, unstack_layers
from fasttta_jax.parallel.sharding import path_name
from fasttta_jax.systems import build_model
from fasttta_jax.training.optimizer import (
    decay_mask,
    learning_rate,
    make_optimizer,
    rate_groups,
    update_ema,
)
from tests.support import helpers
from tests.support.tolerance import ELEMENTARY, assert_close, rounding, worst_rounding

PLAIN = {"warmup_steps": 0, "decay_steps": 0, "weight_decay": 0.0}


@functools.cache
def model_params() -> dict:
    model = build_model(helpers.tiny_teacher_config("unused"), helpers.tiny_text_encoder())
    return jax.eval_shape(model.init, jax.random.key(0))


@functools.cache
def params() -> dict:
    """One parameter of each kind."""
    layer = {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros((3,))}
    shapes = {
        "text": {"embedding": jnp.zeros((3, 3))},
        "backbone": {"encoder_0": {"mlp_in": layer}},
        "head": {"context": layer},
    }
    return helpers.random_params(shapes)


def rates(num_steps: int, **changes) -> np.ndarray:
    schedule = learning_rate(OptimizerConfig(learning_rate=2.0, **changes), num_steps)
    return np.asarray(jax.vmap(schedule)(jnp.arange(num_steps + 1)))


def test_the_rate_rises_stays_and_falls():
    found = rates(100, warmup_steps=10, decay_steps=40)
    bound = worst_rounding(ELEMENTARY)  # a cosine's, for a rate of 2
    assert_close(found[:11], 0.2 * np.arange(11), bound)
    assert_close(found[10:61], np.full(51, 2.0), bound)
    falling = 1 + np.cos(np.pi * np.arange(41) / 40)
    assert_close(found[60:], falling, bound)
    assert (np.diff(found[60:]) < 0).all()
    assert found[100] == pytest.approx(0, abs=2 * bound)


def test_without_warmup_and_decay_the_rate_is_constant():
    np.testing.assert_array_equal(rates(10, warmup_steps=0, decay_steps=0), np.float32(2.0))


def test_warmup_may_meet_decay():
    found = rates(10, warmup_steps=4, decay_steps=6)
    assert found.argmax() == 4
    assert found[4] == pytest.approx(2.0)


def test_decay_acts_on_matrices_and_embeddings_of_backbone_and_text():
    decays = {
        path_name(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(decay_mask(model_params()))
    }
    for name, value in decays.items():
        is_small = name.endswith(("/bias", "/scale"))
        assert value == (not name.startswith("head/") and not is_small), name
    # qkv biases are stored as three axes and are still biases
    assert not decays["backbone/encoder_0/attention/qkv/bias"]
    for name in ("null_text", "mask_token", "encoder_positions", "head_positions"):
        assert decays[f"backbone/{name}"]
    assert decays["text/embedding"]


SCANNED = dataclasses.replace(
    helpers.tiny_model_config().backbone, encoder_depth=3, decoder_depth=3, scan_layers=True
)


@functools.cache
def deep_params(scan_layers: bool) -> dict:
    """Shapes of a model with stacks of three and two blocks."""
    backbone = dataclasses.replace(SCANNED, scan_layers=scan_layers)
    config = helpers.tiny_teacher_config(
        "unused", model=helpers.tiny_model_config(backbone=backbone)
    )
    return jax.eval_shape(build_model(config, helpers.tiny_text_encoder()).init, jax.random.key(0))


@pytest.mark.parametrize("labels", [decay_mask, rate_groups])
def test_stacked_blocks_are_labelled_as_blocks_apart(labels):
    """A stack's biases and scales have two axes and are still biases and scales."""

    def as_numbers(tree: dict, numbers: dict) -> dict:
        return jax.tree.map(lambda _, label: jnp.full((), numbers[label]), tree, labels(tree))

    numbers = {False: 0, True: 1, "rest": 0, "head_matrix": 1}
    expected = stack_layers(as_numbers(deep_params(False), numbers), SCANNED)
    found = as_numbers(deep_params(True), numbers)
    flat = flatten_dict(expected, sep="/")
    assert set(flat) == set(flatten_dict(found, sep="/"))
    for name, label in flatten_dict(found, sep="/").items():
        # every block of the stack has the label that the stack has as a whole
        np.testing.assert_array_equal(flat[name], label, err_msg=name)
        if labels is decay_mask and name.endswith(("/bias", "/scale")):
            assert not label, name


def test_a_vector_is_no_matrix_in_a_stack_either():
    block = {"gain": jnp.zeros((4, 3)), "kernel": jnp.zeros((4, 3, 3))}
    found = decay_mask({"backbone": {"encoder_stack": block, "decoder_3": {"gain": jnp.zeros(3)}}})
    assert found == {
        "backbone": {
            "encoder_stack": {"gain": False, "kernel": True},
            "decoder_3": {"gain": False},
        }
    }


@pytest.mark.parametrize("freeze_backbone", [False, True])
def test_stacked_blocks_are_updated_as_blocks_apart(freeze_backbone):
    config = OptimizerConfig(learning_rate=0.1, **(PLAIN | {"weight_decay": 0.5}))
    optimizer = make_optimizer(config, 10, freeze_backbone=freeze_backbone)
    depths = dataclasses.replace(SCANNED, encoder_depth=2, decoder_depth=1)
    one = params()["backbone"]["encoder_0"]
    shapes = params() | {"backbone": dict.fromkeys(("encoder_0", "encoder_1", "decoder_0"), one)}
    start, direction = (helpers.random_params(shapes, seed) for seed in (3, 4))

    def update(start: dict, direction: dict) -> dict:
        return optimizer.update(direction, optimizer.init(start), start)[0]

    expected = update(start, direction)
    stacked = update(stack_layers(start, depths), stack_layers(direction, depths))
    found = unstack_layers(stacked, depths)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # the clipping norm sums the same squares in another order, and all else is elementwise
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    bound = rounding(size) + worst_rounding(ELEMENTARY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=bound), found, expected)
    moves = any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found["backbone"]))
    assert moves != freeze_backbone


def updates(gradients: dict, optimizer: optax.GradientTransformation) -> dict:
    return optimizer.update(gradients, optimizer.init(params()), params())[0]


def gradients(scale: float = 1.0) -> dict:
    return helpers.random_params(params(), seed=1, scale=scale)


def test_weight_decay_pulls_only_what_decays():
    config = OptimizerConfig(learning_rate=0.1, **(PLAIN | {"weight_decay": 0.5}))
    zero = jax.tree.map(jnp.zeros_like, params())
    found = updates(zero, make_optimizer(config, 10))
    expected = jax.tree.map(
        lambda decays, leaf: -0.1 * 0.5 * leaf * decays, decay_mask(params()), params()
    )
    bound = worst_rounding(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=bound), found, expected)


def test_first_update_is_adams():
    config = OptimizerConfig(learning_rate=0.1, clip_norm=1e9, **PLAIN)
    found = updates(gradients(), make_optimizer(config, 10))
    # bias-corrected moments of one gradient are the gradient and its square; 1 - beta, of beta up
    # to 0.999, is off by a rounding of 1 relative to 0.001
    bound = worst_rounding(2) / (1 - 0.999)
    jax.tree.map(
        lambda update, gradient: np.testing.assert_allclose(
            update, -0.1 * gradient / (np.abs(gradient) + 1e-8), rtol=bound
        ),
        found,
        gradients(),
    )


def test_the_heads_matrices_have_a_rate_of_their_own():
    """EAR's quarter: of the update, decay included, not of the gradient, which Adam would undo."""
    config = {"learning_rate": 1e-2, **PLAIN, "weight_decay": 0.1}
    whole = updates(gradients(), make_optimizer(OptimizerConfig(**config), 1))
    scaled = updates(
        gradients(), make_optimizer(OptimizerConfig(**config, head_learning_rate_scale=0.25), 1)
    )
    factors = jax.tree.map(
        lambda a, b: np.unique(np.asarray(b / a).round(5)).tolist(), whole, scaled
    )
    assert factors["head"]["context"] == {"kernel": [0.25], "bias": [1.0]}
    assert factors["text"] == {"embedding": [1.0]}
    assert factors["backbone"]["encoder_0"]["mlp_in"] == {"kernel": [1.0], "bias": [1.0]}


def test_rate_groups_of_a_whole_model():
    groups = jax.tree_util.tree_leaves_with_path(rate_groups(model_params()))
    matrices = {path_name(path) for path, group in groups if group == "head_matrix"}
    assert matrices
    assert all(name.startswith("head/") and name.endswith("/kernel") for name in matrices)
    kernels = {path_name(path) for path, _ in groups if path_name(path).endswith("/kernel")}
    assert matrices == {name for name in kernels if name.startswith("head/")}


def test_gradients_are_clipped_by_their_global_norm():
    config = OptimizerConfig(learning_rate=0.1, clip_norm=3.0, **PLAIN)
    optimizer = make_optimizer(config, 10)
    direction = gradients()
    size = float(optax.tree.norm(direction))

    def first_moment(factor: float) -> float:
        scaled = jax.tree.map(lambda leaf: leaf * (factor / size), direction)
        _, state = optimizer.update(scaled, optimizer.init(params()), params())
        moments = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if "/mu/" in path_name(path)
        ]
        return float(optax.tree.norm(moments)) / (1 - config.beta1)

    bound = 2 * rounding(sum(leaf.size for leaf in jax.tree.leaves(direction)))
    assert first_moment(100.0) == pytest.approx(3.0, rel=bound)
    assert first_moment(2.0) == pytest.approx(2.0, rel=bound)


def test_a_frozen_backbone_stands_still_while_the_head_moves():
    config = OptimizerConfig(learning_rate=0.1, **(PLAIN | {"weight_decay": 0.5}))
    optimizer = make_optimizer(config, 10, freeze_backbone=True)
    moved, state = params(), optimizer.init(params())
    for seed in range(3):
        step = helpers.random_params(params(), seed=seed)
        update, state = optimizer.update(step, state, moved)
        moved = optax.apply_updates(moved, update)
    for name in ("text", "backbone"):
        jax.tree.map(np.testing.assert_array_equal, moved[name], params()[name])
    for leaf, before in zip(
        jax.tree.leaves(moved["head"]), jax.tree.leaves(params()["head"]), strict=True
    ):
        assert (np.asarray(leaf) != np.asarray(before)).all()


def test_a_frozen_backbone_keeps_no_moments():
    state = make_optimizer(OptimizerConfig(), 2000, freeze_backbone=True).init(params())
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any("mu/head" in name for name in names)
    assert not any("/backbone/" in name or "/text/" in name for name in names)


def test_clipping_under_a_frozen_backbone_looks_at_the_head_alone():
    config = OptimizerConfig(learning_rate=0.1, clip_norm=1.0, **PLAIN)
    optimizer = make_optimizer(config, 10, freeze_backbone=True)
    one = gradients()
    other = one | {"backbone": jax.tree.map(lambda leaf: 1e3 * leaf, one["backbone"])}
    found = [updates(tree, optimizer)["head"] for tree in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("step", [0, 1, 10, 10_000])
@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_its_formula(step, warmup):
    config = OptimizerConfig(ema_decay=0.99, ema_warmup=warmup)
    old, new = {"a": jnp.asarray([1.0, -2.0])}, {"a": jnp.asarray([3.0, 5.0])}
    found = update_ema(config, old, new, jnp.asarray(step))["a"]
    decay = min(0.99, (1 + step) / (10 + step)) if warmup else 0.99
    expected = decay * np.asarray(old["a"]) + (1 - decay) * np.asarray(new["a"])
    # three roundings of terms up to four times the sum
    np.testing.assert_allclose(found, expected, rtol=4 * worst_rounding(4))


def test_average_of_standing_parameters_stands():
    config = OptimizerConfig(ema_decay=0.9999)
    found = update_ema(config, params(), params(), jnp.asarray(5))
    jax.tree.map(np.testing.assert_array_equal, found, params())
