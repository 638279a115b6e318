"""Attention, transformer block and modulated MLP against independent float64 arithmetic.

Bounds are those of the sums in a row, 3e-6 of the largest entry. Another epsilon in a norm changes
a block by some 1e-5, GELU by its tanh form by 1e-3, an exchanged axis by all of it.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.models.attention import attention
from fasttta_jax.models.layers import Block, ModulatedMLP, SelfAttention
from tests.support.helpers import random_params
from tests.support.layers_float64 import (
    HEADS,
    WIDTH,
    affine,
    dense,
    in_float64,
    reference_block,
    reference_norm,
    silu,
)
from tests.support.tolerance import assert_close, block_terms, kernel_terms, rounding

BLOCK = Block(HEADS, 4, 0.0, 0.0, jnp.float32)


def block_params() -> dict:
    shapes = jax.eval_shape(BLOCK.init, jax.random.key(0), jnp.zeros((1, 2, WIDTH)))
    return random_params(shapes["params"])


@pytest.mark.parametrize("masked_keys", [False, True])
def test_block_equals_the_float64_reading(masked_keys):
    x = jnp.float32(np.random.default_rng(1).normal(size=(2, 7, WIDTH)))
    keep = np.ones((2, 7), bool)
    if masked_keys:
        keep[0, 3:], keep[1, :2] = False, False
    params = block_params()
    found = BLOCK.apply({"params": params}, x, key_mask=jnp.asarray(keep) if masked_keys else None)
    expected = np.stack(
        [reference_block(np.float64(x[i]), in_float64(params), keep[i]) for i in range(2)]
    )
    assert_close(found, expected, rounding(block_terms(WIDTH, 4 * WIDTH, 7, WIDTH // HEADS)))


def test_block_has_the_published_number_of_parameters():
    count = sum(leaf.size for leaf in jax.tree.leaves(block_params()))
    assert count == 12 * WIDTH**2 + 13 * WIDTH


def test_initial_bounds_are_those_of_the_fused_matrices():
    width = 64
    layer = SelfAttention(4, 0.0, 0.0, jnp.float32)
    init = jax.jit(functools.partial(layer.init, key_mask=None, positions=None, deterministic=True))
    params = init(jax.random.key(0), jnp.zeros((1, 2, width)))["params"]
    for name, fan_out in (("qkv", 3 * width), ("projection", width)):
        bound = math.sqrt(6 / (width + fan_out))
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel).max() <= bound
        assert np.abs(kernel).max() > 0.99 * bound
        # a uniform law: the variance is known to 5 standard errors (kurtosis 1.8)
        error = bound**2 / 3 * math.sqrt(0.8 / kernel.size)
        assert abs(kernel.var() - bound**2 / 3) < 5 * error
        np.testing.assert_array_equal(params[name]["bias"], 0.0)


def test_masked_keys_get_no_weight_at_all():
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(one, (1, 5, 2, 4)) for one in keys)
    mask = jnp.asarray([[True, True, False, True, False]])
    found = attention(query, key, value, key_mask=mask)
    poisoned = attention(
        query,
        jnp.where(mask[..., None, None], key, 1e4),
        jnp.where(mask[..., None, None], value, 1e30),
        key_mask=mask,
    )
    np.testing.assert_array_equal(found, poisoned)


def test_attention_weights_are_float32_for_half_precision_inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(one, (1, 64, 2, 8)).astype(jnp.bfloat16) for one in keys)
    text = jax.make_jaxpr(attention)(query, key, value)
    exponentials = [
        equation.outvars[0].aval.dtype
        for equation in _equations(text.jaxpr)
        if equation.primitive.name == "exp"
    ]
    assert exponentials == [jnp.float32]
    assert attention(query, key, value).dtype == jnp.bfloat16


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from _equations(inner)


def test_dropout_acts_only_where_it_is_asked_for():
    block = Block(HEADS, 4, 0.5, 0.5, jnp.float32)
    x = jax.random.normal(jax.random.key(1), (1, 5, WIDTH))
    params = {"params": block_params()}
    still = block.apply(params, x)
    np.testing.assert_array_equal(still, BLOCK.apply(params, x))
    noisy = jax.jit(lambda rngs: block.apply(params, x, deterministic=False, rngs=rngs))
    rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = map(noisy, rngs)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, still)


def test_half_precision_block_keeps_a_float32_stream():
    block = Block(HEADS, 4, 0.0, 0.0, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (1, 5, WIDTH))
    params = {"params": block_params()}
    found = block.apply(params, x)
    assert found.dtype == jnp.float32
    expected = np.asarray(BLOCK.apply(params, x))
    # five products of bfloat16 numbers in a row, each a relative 2^-8
    np.testing.assert_allclose(found, expected, rtol=0, atol=5 * 2**-8 * np.abs(expected).max())


def reference_mlp(stream: np.ndarray, modulation: np.ndarray, params: dict) -> np.ndarray:
    x = dense(stream, params["stream"])
    depth = sum(name.startswith("block_") for name in params)
    for index in range(depth):
        block = params[f"block_{index}"]
        shift, scale, gate = np.split(dense(silu(modulation), block["modulation"]), 3, axis=-1)
        hidden = affine(x, block["norm"]) * (1 + scale) + shift
        x = x + gate * dense(silu(dense(hidden, block["mlp_in"])), block["mlp_out"])
    shift, scale = np.split(dense(silu(modulation), params["final_modulation"]), 2, axis=-1)
    return dense(reference_norm(x) * (1 + scale) + shift, params["final"])


def test_modulated_mlp_equals_the_float64_reading():
    mlp = ModulatedMLP(16, 2, 6, jnp.float32)
    rng = np.random.default_rng(0)
    stream = jnp.float32(rng.normal(size=(5, 4)))
    modulation = jnp.float32(rng.normal(size=(5, 16)))
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), stream, modulation)
    params = random_params(shapes["params"])
    found = mlp.apply({"params": params}, stream, modulation)
    expected = reference_mlp(np.float64(stream), np.float64(modulation), in_float64(params))
    assert_close(found, expected, rounding(kernel_terms(params)))


def test_modulated_mlp_starts_at_zero_and_first_moves_its_last_layer():
    mlp = ModulatedMLP(16, 2, 6, jnp.float32)
    stream, modulation = jnp.ones((3, 4)), jnp.ones((3, 16))
    params = jax.jit(mlp.init)(jax.random.key(0), stream, modulation)["params"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params: dict) -> tuple[jax.Array, jax.Array]:
        output = mlp.apply({"params": params}, stream, modulation)
        return jnp.sum(output), output

    (_, output), gradients = run(params)
    np.testing.assert_array_equal(output, 0.0)
    moving = {name for name, tree in gradients.items() if any(map(jnp.any, jax.tree.leaves(tree)))}
    assert moving == {"final"}


def test_last_layer_of_a_half_precision_mlp_is_float32():
    mlp = ModulatedMLP(16, 1, 6, jnp.bfloat16)
    stream, modulation = jnp.ones((3, 4)), jnp.ones((3, 16))
    params = mlp.init(jax.random.key(0), stream, modulation)
    assert mlp.apply(params, stream, modulation).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
