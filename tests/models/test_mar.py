"""The backbone: dropping masked tokens exactly, ignoring what must not matter, counting right."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import BackboneConfig
from fasttta_jax.models.mar import MAR, neighbourhoods, visible_positions
from fasttta_jax.typing import TextStream, unconditional
from tests.support.helpers import random_params
from tests.support.layers_float64 import (
    affine,
    dense,
    gelu,
    in_float64,
    reference_block,
)
from tests.support.tiny_mar import (
    CONFIG,
    NUM_TOKENS,
    TEXT,
    TEXT_WIDTH,
    TOKEN_DIM,
    backbone_rounding,
    conditioning,
    inputs,
)
from tests.support.tolerance import assert_close

MODEL = MAR(CONFIG, NUM_TOKENS, (("words", TEXT),))


@functools.cache
def params() -> dict:
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *inputs())["params"]
    return random_params(shapes, scale=0.15)


@functools.partial(jax.jit, static_argnames="num_visible")
def _apply(params, tokens, masked, text, num_visible):
    return MODEL.apply({"params": params}, tokens, masked, text, num_visible=num_visible)


def apply(tokens, masked, text, num_visible=None):
    return _apply(params(), tokens, masked, text, num_visible)


def rows(tree, chosen):
    return jax.tree.map(lambda leaf: leaf[chosen], tree)


def reference_neighbourhoods(tokens: np.ndarray, masked: np.ndarray, reach: int) -> np.ndarray:
    """Token by token: what is seen there, and whether nothing is."""
    rows = []
    for position in range(NUM_TOKENS):
        row: list[float] = []
        for place in range(position - reach, position + reach + 1):
            unseen = not 0 <= place < NUM_TOKENS or bool(masked[place])
            row += [*(np.zeros(TOKEN_DIM) if unseen else tokens[place]), float(unseen)]
        rows.append(row)
    return np.asarray(rows)


def reference_backbone(
    params: dict, tokens: np.ndarray, masked: np.ndarray, words: np.ndarray, has_word: np.ndarray
) -> np.ndarray:
    """One clip in float64: masked tokens are left out of the encoder, nothing is padded."""
    text = np.where(has_word[:, None], dense(words, params["text_words"]), params["null_text"])
    visible = dense(tokens[~masked], params["token_projection"])
    positions = params["encoder_positions"]
    visible = visible + positions[TEXT:][~masked]
    x = affine(np.concatenate([text + positions[:TEXT], visible]), params["token_norm"])
    for index in range(CONFIG.encoder_depth):
        x = reference_block(x, params[f"encoder_{index}"])
    x = dense(affine(x, params["encoder_norm"]), params["decoder_embedding"])
    grid = np.repeat(params["mask_token"], NUM_TOKENS, axis=0)
    grid[~masked] = x[TEXT:]
    if "neighbours_in" in params:
        reach = (len(params["neighbours_in"]["kernel"]) // (TOKEN_DIM + 1) - 1) // 2
        around = reference_neighbourhoods(tokens, masked, reach)
        grid = grid + dense(gelu(dense(around, params["neighbours_in"])), params["neighbours_out"])
    x = np.concatenate([x[:TEXT], grid]) + params["decoder_positions"]
    for index in range(CONFIG.decoder_depth):
        x = reference_block(x, params[f"decoder_{index}"])
    return affine(x, params["decoder_norm"])[TEXT:] + params["head_positions"]


def test_backbone_equals_the_float64_reading():
    tokens, masked, text = inputs()
    found = apply(tokens, masked, text)
    words = text["words"]
    arrays = [np.float64(tokens), np.asarray(masked)]
    arrays += [np.float64(words.embeddings), np.asarray(words.mask)]
    for row in range(5):
        clip = (array[row] for array in arrays)
        expected = reference_backbone(in_float64(params()), *clip)
        assert_close(found[row], expected, backbone_rounding())


NEAR_CONFIG = dataclasses.replace(CONFIG, neighbours=3)
NEAR = MAR(NEAR_CONFIG, NUM_TOKENS, (("words", TEXT),))


def near_params() -> dict:
    shapes = jax.eval_shape(NEAR.init, jax.random.key(0), *inputs())["params"]
    return random_params(shapes, scale=0.15)


@jax.jit
def near(params, tokens, masked, text):
    return NEAR.apply({"params": params}, tokens, masked, text)


def test_a_backbone_with_neighbours_equals_the_float64_reading():
    tokens, masked, text = inputs()
    found = near(near_params(), tokens, masked, text)
    words = text["words"]
    for row in range(5):
        expected = reference_backbone(
            in_float64(near_params()),
            np.float64(tokens[row]),
            np.asarray(masked[row]),
            np.float64(words.embeddings[row]),
            np.asarray(words.mask[row]),
        )
        assert_close(found[row], expected, backbone_rounding())


def test_what_is_masked_does_not_matter_to_neighbours():
    tokens, masked, text = inputs()
    other = jnp.where(masked[..., None], 1e3, tokens)
    found = near(near_params(), other, masked, text)
    np.testing.assert_array_equal(found, near(near_params(), tokens, masked, text))


def test_a_backbone_whose_neighbours_say_nothing_is_the_one_without():
    silent = {
        **params(),
        "neighbours_in": near_params()["neighbours_in"],
        "neighbours_out": jax.tree.map(jnp.zeros_like, near_params()["neighbours_out"]),
    }
    assert_close(near(silent, *inputs()), apply(*inputs()), backbone_rounding())
    assert set(near_params()) - set(params()) == {"neighbours_in", "neighbours_out"}


def test_neighbours_reach_as_far_as_they_are_told():
    tokens = jnp.arange(1.0, 6.0)[None, :, None]
    masked = jnp.asarray([[False, True, False, False, True]])
    found = neighbourhoods(tokens, masked, 1)
    assert found[0].tolist() == [
        [0, 1, 1, 0, 0, 1],
        [1, 0, 0, 1, 3, 0],
        [0, 1, 3, 0, 4, 0],
        [3, 0, 4, 0, 0, 1],
        [4, 0, 0, 1, 0, 1],
    ]


def test_padded_visible_tokens_equal_dropping():
    batch = inputs()
    padded = np.asarray(apply(*batch))
    for row in (0, 2, 4):
        clip = rows(batch, slice(row, row + 1))
        exact = int((~clip[1]).sum())
        alone = apply(*clip, num_visible=exact)
        assert_close(padded[row], alone[0], backbone_rounding())


def test_any_sufficient_padding_gives_the_same():
    batch = inputs()
    most = int((~batch[1]).sum(axis=1).max())
    for num_visible in (most, most + 1):
        found = apply(*batch, num_visible=num_visible)
        assert_close(found, apply(*batch), backbone_rounding())


def test_values_at_masked_positions_do_not_matter():
    tokens, masked, text = inputs()
    other = jnp.where(masked[..., None], 1e3, tokens)
    np.testing.assert_array_equal(apply(tokens, masked, text), apply(other, masked, text))


def test_values_at_visible_positions_do_matter():
    tokens, masked, text = inputs()
    moved = apply(jnp.where(masked[..., None], tokens, tokens + 0.1), masked, text)
    distance = np.abs(np.asarray(moved - apply(tokens, masked, text))).max(axis=(1, 2))
    has_visible = np.asarray((~masked).any(axis=1))
    assert (distance[has_visible] > 1e-3).all()
    np.testing.assert_array_equal(distance[~has_visible], 0.0)


def test_empty_text_is_unconditional_whatever_its_embeddings():
    tokens, masked, text = inputs()
    words = text["words"]
    empty = {"words": TextStream(jnp.full_like(words.embeddings, 7.0), jnp.zeros_like(words.mask))}
    found = apply(tokens, masked, unconditional(text))
    np.testing.assert_array_equal(found, apply(tokens, masked, empty))
    # the first clip of the batch has a caption without any word
    np.testing.assert_array_equal(found[0], apply(tokens, masked, text)[0])
    assert not np.allclose(found[1], apply(tokens, masked, text)[1], atol=1e-3)


def test_empty_text_reads_the_null_embedding():
    text = unconditional(conditioning(2))
    prefix = MODEL.apply({"params": params()}, text, method="text_prefix")
    expected = np.broadcast_to(params()["null_text"], (2, TEXT, CONFIG.width))
    np.testing.assert_array_equal(prefix, expected)


def test_padding_behind_a_caption_does_not_matter():
    tokens, masked, text = inputs()
    words = text["words"]
    other = {
        "words": words._replace(embeddings=jnp.where(words.mask[..., None], words.embeddings, 9.0))
    }
    np.testing.assert_array_equal(apply(tokens, masked, text), apply(tokens, masked, other))


def test_a_clip_does_not_depend_on_its_place_or_neighbours():
    batch = inputs()
    order = np.asarray([3, 0, 4, 1, 2])
    found = np.asarray(apply(*batch))
    np.testing.assert_array_equal(apply(*rows(batch, order)), found[order])
    others = rows(batch, np.asarray([2, 2, 2, 2, 2]))
    np.testing.assert_array_equal(apply(*others)[4], found[2])


def test_visible_positions_rise_and_are_padded_with_masked_ones():
    masked = jnp.asarray([[True, False, True, False, False], [True] * 5])
    positions, is_visible = visible_positions(masked, 4)
    assert positions[0, :3].tolist() == [1, 3, 4]
    assert is_visible.tolist() == [[True, True, True, False], [False] * 4]
    assert bool(jnp.take_along_axis(masked, positions, axis=1)[0, 3])


def test_streams_that_the_backbone_was_not_built_for_are_refused():
    tokens, masked, text = inputs()
    with pytest.raises(ValueError, match=r"\{'other': 4\}; .* built for \{'words': 4\}"):
        apply(tokens, masked, {"other": text["words"]})
    longer = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=1), text)
    with pytest.raises(ValueError, match=r"\{'words': 8\}"):
        apply(tokens, masked, longer)


def test_two_streams_stand_side_by_side():
    tokens, masked, text = inputs(2)
    model = MAR(CONFIG, NUM_TOKENS, (("words", TEXT), ("scene", 1)))
    scene = TextStream(jnp.ones((2, 1, 3)), jnp.ones((2, 1), jnp.bool_))
    both = {"scene": scene, "words": text["words"]}
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, masked, both)
    variables = random_params(shapes)
    assert model.num_text == TEXT + 1
    prefix = model.apply(variables, both, method="text_prefix")
    assert prefix.shape == (2, TEXT + 1, CONFIG.width)
    without = model.apply(
        variables, both | {"scene": unconditional(both)["scene"]}, method="text_prefix"
    )
    np.testing.assert_array_equal(prefix[:, :TEXT], without[:, :TEXT])
    assert not np.array_equal(prefix[:, TEXT], without[:, TEXT])


def expected_parameters(
    width: int, depth: int, num_tokens: int, token_dim: int, text: int, text_width: int
) -> int:
    """MAR's count with L text positions for its 64 class slots, and no class table.

    text projection + token projection + its norm + two position tables + blocks + encoder norm +
    decoder embedding + decoder norm + head positions + null text + mask token.
    """
    block = 12 * width**2 + 13 * width
    return (
        (text_width * width + width)
        + (token_dim * width + width)
        + 2 * width
        + 2 * (text + num_tokens) * width
        + depth * block
        + 2 * width
        + (width**2 + width)
        + 2 * width
        + num_tokens * width
        + width
        + width
    )


def count(model: MAR, token_dim: int, text_width: int) -> int:
    """Parameters of a backbone, without making them."""
    text = {
        name: TextStream(
            jax.ShapeDtypeStruct((1, positions, text_width), jnp.float32),
            jax.ShapeDtypeStruct((1, positions), jnp.bool_),
        )
        for name, positions in model.text_streams
    }
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, model.num_tokens, token_dim), jnp.float32),
        jax.ShapeDtypeStruct((1, model.num_tokens), jnp.bool_),
        text,
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_number_of_parameters():
    expected = expected_parameters(24, 3, NUM_TOKENS, TOKEN_DIM, TEXT, TEXT_WIDTH)
    assert count(MODEL, TOKEN_DIM, TEXT_WIDTH) == expected


def test_published_number_of_parameters_at_full_size():
    # MAR-B: 64 slots, 16-dimensional tokens; its class table of 1000 rows becomes a projection.
    model = MAR(BackboneConfig(), 256, (("slots", 64),))
    text_projection, class_table = 768 * 768 + 768, 1000 * 768
    assert count(model, 16, 768) - text_projection + class_table == 172_174_848
    assert count(model, 16, 768) == expected_parameters(768, 24, 256, 16, 64, 768)


def test_half_precision_backbone_returns_float32():
    model = dataclasses.replace(MODEL, dtype=jnp.bfloat16)
    hidden = jax.eval_shape(lambda: model.apply({"params": params()}, *inputs()))
    assert hidden.dtype == jnp.float32
    assert hidden.shape == (5, NUM_TOKENS, CONFIG.width)


def test_positions_asked_for_are_those_of_the_whole():
    """Only queries are left out: what remains is the same sum of the same products."""
    tokens, masked, text = inputs()
    asked = jnp.asarray([[0, 9], [3, 3], [7, 1], [5, 4], [2, 8]])
    variables = {"params": params()}
    some = jax.jit(functools.partial(MODEL.apply, positions=asked))(variables, tokens, masked, text)
    whole = apply(tokens, masked, text)
    expected = jnp.take_along_axis(whole, asked[..., None], axis=1)
    assert_close(some, expected, backbone_rounding())


SINGLE_CONFIG = dataclasses.replace(CONFIG, encoder_depth=0, decoder_depth=2)
SINGLE = MAR(SINGLE_CONFIG, NUM_TOKENS, (("words", TEXT),))


def test_single_stack_equals_the_float64_reading():
    """EAR: the mask token stands in for what is masked, and nothing is dropped."""
    tokens, masked, text = inputs()
    shapes = jax.eval_shape(SINGLE.init, jax.random.key(0), tokens, masked, text)["params"]
    variables = random_params(shapes, scale=0.15)
    found = SINGLE.apply({"params": variables}, tokens, masked, text)
    exact = in_float64(variables)
    words = text["words"]
    for row in range(5):
        has_word = np.asarray(words.mask[row])[:, None]
        prefix = dense(np.float64(words.embeddings[row]), exact["text_words"])
        prefix = np.where(has_word, prefix, exact["null_text"])
        audio = dense(np.float64(tokens[row]), exact["token_projection"])
        audio = np.where(np.asarray(masked[row])[:, None], exact["mask_token"], audio)
        x = np.concatenate([prefix, audio]) + exact["decoder_positions"]
        for index in range(SINGLE_CONFIG.decoder_depth):
            x = reference_block(x, exact[f"decoder_{index}"])
        expected = affine(x, exact["decoder_norm"])[TEXT:]
        assert_close(found[row], expected, backbone_rounding())


def test_single_stack_has_nothing_of_an_encoder():
    shapes = jax.eval_shape(SINGLE.init, jax.random.key(0), *inputs())["params"]
    assert set(shapes) == {
        "text_words",
        "null_text",
        "mask_token",
        "token_projection",
        "decoder_positions",
        "decoder_0",
        "decoder_1",
        "decoder_norm",
    }


def test_published_number_of_parameters_of_a_single_stack():
    # EAR-B, as above: 171,138,816 with a class table of 1000 rows.
    model = MAR(BackboneConfig(encoder_depth=0, decoder_depth=24), 256, (("slots", 64),))
    assert count(model, 16, 768) - (768 * 768 + 768) + 1000 * 768 == 171_138_816


def test_a_stream_without_width_has_no_projection():
    tokens, masked, _ = inputs(2)
    empty = {"none": TextStream(jnp.zeros((2, TEXT, 0)), jnp.zeros((2, TEXT), jnp.bool_))}
    model = MAR(CONFIG, NUM_TOKENS, (("none", TEXT),))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, masked, empty)["params"]
    assert not [name for name in shapes if name.startswith("text_")]
    ours = {name: leaf for name, leaf in params().items() if name != "text_words"}
    found = model.apply({"params": ours}, tokens, masked, empty)
    expected = apply(tokens, masked, unconditional(conditioning(2)))
    assert_close(found, expected, backbone_rounding())
