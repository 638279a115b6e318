"""Stacked blocks are the same function of the same numbers; a gradient keeps what it is told."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fasttta_jax.config import BackboneConfig
from fasttta_jax.models.mar import MAR
from fasttta_jax.models.stacking import (
    BLOCK_NAME,
    REMAT_POLICIES,
    arrange_layers,
    make_blocks,
    run_blocks,
    stack_layers,
    unstack_layers,
)
from tests.support import tolerance
from tests.support.helpers import random_params
from tests.support.tiny_mar import (
    CONFIG,
    NUM_TOKENS,
    TEXT,
    backbone_rounding,
    inputs,
)

# (encoder_depth, decoder_depth): stacks of two and of one; EAR's single stack; no stack at all.
DEPTHS = [(2, 2), (0, 3), (0, 1)]
BATCH = inputs(3)
DROPOUT = {"attention_dropout": 0.2, "projection_dropout": 0.2}


def backbone(encoder_depth: int, decoder_depth: int, **changes: Any) -> MAR:
    config = dataclasses.replace(
        CONFIG, encoder_depth=encoder_depth, decoder_depth=decoder_depth, **changes
    )
    return MAR(config, NUM_TOKENS, (("words", TEXT),))


def shapes_of(model: MAR) -> dict[str, Any]:
    return {"backbone": jax.eval_shape(model.init, jax.random.key(0), *BATCH)["params"]}


@functools.cache
def apart(encoder_depth: int, decoder_depth: int) -> dict[str, Any]:
    """Random parameters with every block apart."""
    return random_params(shapes_of(backbone(encoder_depth, decoder_depth)), scale=0.15)


def params_for(model: MAR) -> dict[str, Any]:
    config = model.config
    return arrange_layers(apart(config.encoder_depth, config.decoder_depth), config)


def assert_equal(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_close(first: Any, second: Any) -> None:
    """Equal to the rounding of two blocks there, and back, where a product becomes two."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    close = functools.partial(tolerance.assert_close, bound=backbone_rounding(2 + 2 * 2))
    jax.tree.map(close, first, second)


# --------------------------------------------------------------------------------- the two forms


@pytest.mark.parametrize("depths", DEPTHS)
def test_a_scanned_backbone_has_the_stacked_tree(depths):
    model = backbone(*depths, scan_layers=True)
    stacked = shapes_of(model)
    expected = jax.eval_shape(functools.partial(stack_layers, config=model.config), apart(*depths))
    assert flatten_dict(stacked) == flatten_dict(expected)
    lengths = {
        name: {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
        for name, tree in stacked["backbone"].items()
        if BLOCK_NAME.fullmatch(name)
    }
    encoder_depth, num_stacked = depths[0], depths[1] - 1
    assert lengths.pop(f"decoder_{num_stacked}") != {num_stacked}
    assert lengths.pop("encoder_stack", {0}) == {encoder_depth}
    assert lengths.pop("decoder_stack", {0}) == {num_stacked}
    assert not lengths


@pytest.mark.parametrize("depths", DEPTHS)
def test_forms_lead_to_each_other_and_stay(depths):
    config = backbone(*depths).config
    params = apart(*depths) | {"head": {"kernel": jnp.ones((2, 2))}, "text": {}}
    stacked = stack_layers(params, config)
    assert_equal(unstack_layers(stacked, config), params)
    assert_equal(stack_layers(stacked, config), stacked)
    assert_equal(unstack_layers(params, config), params)
    for scan_layers, expected in ((True, stacked), (False, params)):
        wanted = dataclasses.replace(config, scan_layers=scan_layers)
        for either in (params, stacked):
            assert_equal(arrange_layers(either, wanted), expected)
    for stage, depth in (("encoder", depths[0]), ("decoder", depths[1] - 1)):
        for index in range(depth):
            layer = jax.tree.map(
                lambda leaf, index=index: leaf[index], stacked["backbone"][f"{stage}_stack"]
            )
            assert_equal(layer, params["backbone"][f"{stage}_{index}"])


def test_blocks_of_other_depths_are_refused():
    params, config = apart(2, 2), backbone(2, 2).config
    stacked = stack_layers(params, config)
    for tree, depths in ((params, (3, 2)), (params, (1, 2)), (params, (2, 3)), (stacked, (0, 2))):
        with pytest.raises(ValueError, match=r"the blocks decoder_.*; allowed for encoder_depth"):
            stack_layers(tree, backbone(*depths).config)
    mixed = {"backbone": stacked["backbone"] | {"encoder_0": params["backbone"]["encoder_0"]}}
    with pytest.raises(ValueError, match=r"encoder_0, encoder_stack; allowed"):
        unstack_layers(mixed, config)
    message = r"backbone/encoder_stack has arrays of \[2\] blocks; allowed: 4"
    for function in (stack_layers, unstack_layers):
        with pytest.raises(ValueError, match=message):
            function(stacked, backbone(4, 2).config)


# ---------------------------------------------------------------------------------- one function


def outcome(model: MAR) -> jax.Array:
    run = jax.jit(functools.partial(model.apply, num_visible=8))
    return run({"params": params_for(model)["backbone"]}, *BATCH)


@pytest.mark.parametrize("depths", DEPTHS)
def test_scanned_blocks_are_the_same_function(depths):
    found, expected = (outcome(backbone(*depths, scan_layers=scan)) for scan in (True, False))
    tolerance.assert_close(found, expected, backbone_rounding(sum(depths)))


# --------------------------------------------------------------------------------- one stack


class Stack(nn.Module):
    """The encoder's blocks alone."""

    config: BackboneConfig

    def setup(self) -> None:
        self.blocks = make_blocks(self.config, "encoder", self.config.encoder_depth, jnp.float32)

    def __call__(
        self, x: jax.Array, key_mask: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        return run_blocks(
            self.blocks,
            x,
            self.config,
            depth=self.config.encoder_depth,
            key_mask=key_mask,
            deterministic=deterministic,
        )


def stack(depth: int, **changes: Any) -> Stack:
    return Stack(dataclasses.replace(CONFIG, encoder_depth=depth, **changes))


def mean_square(module: Stack) -> Any:
    """Of what a stack makes of (variables, x, key mask), with dropout where it has some."""

    def loss(variables: Any, x: jax.Array, key_mask: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(1)}
        return jnp.mean(jnp.square(module.apply(variables, x, key_mask, False, rngs=rngs)))

    return loss


def stack_inputs(module: Stack, num_clips: int = 2, length: int = 8) -> tuple[Any, ...]:
    """Parameters, a stream, and a mask that hides the last position of the first clip."""
    x = random_params(jax.ShapeDtypeStruct((num_clips, length, CONFIG.width), jnp.float32), scale=1)
    variables = random_params(jax.eval_shape(module.init, jax.random.key(0), x), seed=1)
    return variables, x, jnp.ones((num_clips, length), jnp.bool_).at[0, -1].set(False)


def test_scanned_blocks_have_the_same_gradients():
    plain, scanned = stack(2), stack(2, scan_layers=True)
    variables, *rest = stack_inputs(plain)
    blocks = variables["params"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks.values())
    run = {
        module: jax.jit(jax.value_and_grad(mean_square(module), argnums=(0, 1)))
        for module in (plain, scanned)
    }
    loss, (by_blocks, by_x) = run[plain](variables, *rest)
    found_loss, (by_stack, found_by_x) = run[scanned]({"params": {"encoder_stack": stacked}}, *rest)
    assert_close((found_loss, found_by_x), (loss, by_x))
    by_stack = by_stack["params"]["encoder_stack"]
    for index, name in enumerate(blocks):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], by_stack)
        assert_close(layer, by_blocks["params"][name])


def test_every_block_starts_from_draws_of_its_own():
    x = jnp.zeros((1, 2, CONFIG.width))
    init = jax.jit(stack(4, scan_layers=True).init)
    params = init(jax.random.key(0), x)["params"]["encoder_stack"]
    alone = jax.jit(stack(1).init)(jax.random.key(0), x)["params"]["encoder_0"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for name, leaf in flatten_dict(params, sep="/").items():
        like = flatten_dict(alone, sep="/")[name]
        assert leaf.shape == (4, *like.shape)
        if not name.endswith("kernel"):
            np.testing.assert_array_equal(leaf, np.broadcast_to(like, leaf.shape))
            continue
        # Xavier's bound of one block, not of the stack; 576 and more draws come close to it
        largest = np.abs(leaf).max(axis=tuple(range(1, leaf.ndim)))
        np.testing.assert_allclose(largest, np.abs(like).max(), rtol=0.03)
        for first, second in itertools.combinations(np.asarray(leaf), 2):
            assert (first == second).mean() < 0.01, name  # draws on a grid of 2**23 may meet


def test_every_block_has_dropout_of_its_own():
    """Blocks that add drop(1) to a zero stream: 0, 2 or 4 after two of them; never 2 if shared."""
    x = jnp.zeros((4, 16, CONFIG.width))
    module = stack(2, projection_dropout=0.5, scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    last = variables["params"]["encoder_stack"]["mlp_out"]
    last["bias"] = jnp.ones_like(last["bias"])

    def run(variables: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return module.apply(variables, x, deterministic=False, rngs={"dropout": key})

    found = jax.jit(run)(variables, x, jax.random.key(1))
    values, counts = np.unique(np.asarray(found), return_counts=True)
    assert values.tolist() == [0.0, 2.0, 4.0]
    # 4 x 16 x 24 elements: a quarter, a half, a quarter, within five standard deviations
    share, deviation = np.asarray([0.25, 0.5, 0.25]), np.sqrt(0.25 / found.size)
    np.testing.assert_allclose(counts / found.size, share, rtol=0, atol=5 * deviation)


# ----------------------------------------------------------------------------------------- remat

# A block has six products, two of them attention's. "full" computes all again but the last, whose
# result no gradient needs; "projections" attention's two.
AGAIN = {"none": 0, "dots": 0, "projections": 2, "full": 5}
EITHER = pytest.mark.parametrize(("depth", "scan_layers"), [(1, False), (2, True)])


@pytest.mark.parametrize(
    ("depth", "scan_layers", "policies"), [(1, False, ["full"]), (2, True, list(REMAT_POLICIES))]
)
def test_remat_changes_no_loss_and_no_gradient(depth, scan_layers, policies):
    def compute(remat: str) -> Any:
        module = stack(depth, scan_layers=scan_layers, remat=remat, **DROPOUT)
        run = jax.value_and_grad(mean_square(module), argnums=(0, 1))
        return jax.jit(run)(*stack_inputs(module))

    expected = compute("none")
    for remat in policies:
        assert_close(compute(remat), expected)


def gradient(model: MAR) -> Any:
    """Loss and gradients as a function of {"backbone": parameters}, with dropout where there is."""

    def loss(params: dict[str, Any]) -> jax.Array:
        hidden = model.apply(
            {"params": params["backbone"]},
            *BATCH,
            positions=jnp.asarray([[0, 9], [3, 3], [7, 1]]),
            deterministic=False,
            rngs={"dropout": jax.random.key(5)},
        )
        return jnp.mean(jnp.square(hidden))

    return jax.value_and_grad(loss)


def count_products(jaxpr: Any) -> int:
    """Matrix products of a jaxpr, those of a loop once."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                count += count_products(inner) if hasattr(inner, "eqns") else 0
    return count


def test_remat_acts_on_every_block_of_a_backbone():
    def products(remat: str) -> int:
        model = backbone(1, 2, scan_layers=True, remat=remat, **DROPOUT)
        return count_products(jax.make_jaxpr(gradient(model))(params_for(model)).jaxpr)

    kept = products("none")
    for remat, again in AGAIN.items():
        # Two loops' bodies, and the last block, which projects its queries apart from keys and
        # values: one product more.
        last = again + (remat == "full")
        assert products(remat) - kept == 2 * again + last, remat


@EITHER
def test_remat_keeps_what_it_says(depth, scan_layers):
    """Numbers of a clip that wait for the backward pass, in each block."""
    length = 8

    def kept(remat: str, num_clips: int) -> int:
        module = stack(depth, scan_layers=scan_layers, remat=remat, **DROPOUT)
        shapes = jax.eval_shape(
            lambda *arguments: jax.vjp(mean_square(module), *arguments)[1],
            *stack_inputs(module, num_clips, length),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.dtype == jnp.float32)

    # The difference of two batches, for parameters are kept whatever their size. The loss keeps
    # what the last block returned.
    row, logits = length * CONFIG.width, CONFIG.num_heads * length**2
    found = {remat: kept(remat, 3) - kept(remat, 2) - row for remat in AGAIN}
    products = 3 + 1 + 4  # qkv, projection, mlp_in; no gradient needs mlp_out
    assert found["full"] == depth * row
    assert found["projections"] == depth * (1 + products) * row
    assert found["dots"] == depth * ((1 + products + 1) * row + logits)
    assert found["none"] > 1.5 * found["dots"]


@EITHER
def test_remat_computes_again_what_it_says(depth, scan_layers):
    """And the compiler is told not to merge equal products, except between two loops of a scan."""

    def lowered(remat: str) -> str:
        module = stack(depth, scan_layers=scan_layers, remat=remat, **DROPOUT)
        return jax.jit(jax.grad(mean_square(module))).lower(*stack_inputs(module)).as_text()

    none = lowered("none")
    for remat in REMAT_POLICIES:
        text = lowered(remat)
        assert text.count("optimization_barrier") == (0 if scan_layers else depth), remat
        assert text.count("dot_general") - none.count("dot_general") == AGAIN[remat]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_is_not_in_a_program_without_gradient(scan_layers):
    def program(remat: str) -> str:
        model = backbone(2, 2, scan_layers=scan_layers, remat=remat)
        variables = {"params": params_for(model)["backbone"]}
        return jax.jit(model.apply).lower(variables, *BATCH).as_text()

    expected = program("none")
    assert all(program(remat) == expected for remat in REMAT_POLICIES)
