"""Decoding with real models equals a plain loop, hears known tokens, keeps clips apart."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.loop import Guidance, Known, parallel_decode
from fasttta_jax.masking import decode_counts, guidance_scales, sample_orders
from fasttta_jax.systems import TextToAudio, build_model
from fasttta_jax.typing import unconditional
from tests.support import helpers
from tests.support.decoding import config, given_tokens
from tests.support.tolerance import assert_close, model_terms, rounding

CAPTIONS = ["a loud tone", "", "clicks that is quiet", "a quiet noise"]


@functools.cache
def system(objective: str) -> tuple[TextToAudio, dict]:
    """A tiny model, with every parameter drawn at random."""
    run = helpers.tiny_teacher_config("unused", objective=objective)
    run = dataclasses.replace(run, diffusion=dataclasses.replace(run.diffusion, sampling_steps=3))
    model = build_model(run, helpers.tiny_text_encoder())
    return model, helpers.random_params(jax.eval_shape(model.init, jax.random.key(0)), scale=0.2)


def clip_keys() -> jax.Array:
    return jax.random.split(jax.random.key(9), len(CAPTIONS))


# Programs that are compared bit for bit here round alike with the emitters that users have, which
# the tests' own setting leaves out to compile faster.
_FLAG = "xla_cpu_use_fusion_emitters"
EMITTERS = {_FLAG: True} if _FLAG in os.environ.get("XLA_FLAGS", "") else {}


@functools.partial(
    jax.jit,
    static_argnames=("objective", "decode_config", "num_known"),
    compiler_options=EMITTERS,
)
def _decode(params, text, keys, known, objective, decode_config, num_known):
    model, _ = system(objective)
    return parallel_decode(
        model,
        params,
        model.condition(params, text),
        keys,
        decode_config,
        num_tokens=helpers.NUM_TOKENS,
        token_dim=helpers.TOKEN_DIM,
        tokens_per_column=TOKENS_PER_COLUMN,
        known=known,
        num_known=num_known,
    ).tokens


def given(num_known: int, seed: int = 0) -> Known:
    """Known tokens for `CAPTIONS`."""
    return given_tokens(num_known, helpers.NUM_TOKENS, helpers.TOKEN_DIM, len(CAPTIONS), seed)


def decode(
    objective: str,
    decode_config: DecodeConfig,
    chosen: list[int],
    known: Known | None = None,
) -> np.ndarray:
    """Tokens of the clips `chosen`, in that order."""
    model, params = system(objective)
    text = model.text.tokenize([CAPTIONS[index] for index in chosen])
    keys = clip_keys()[jnp.asarray(chosen)]
    num_known = 0 if known is None else int(known.mask[0].sum())
    known = jax.tree.map(lambda rows: rows[jnp.asarray(chosen)], known)
    return np.asarray(_decode(params, text, keys, known, objective, decode_config, num_known))


GUIDED = config(guidance_scale=3.0, max_segments=1)
CHOICES = config(counts=(1, 2, 5), order="bisection", guided=(0.0, 0.7), guidance_scale=3.0)
"""Counts, an order, and guidance in the last two of three iterations."""
TOKENS_PER_COLUMN = 2
OBJECTIVES = ["energy", "diffusion"]


def decode_rounding(objective: str, decode_config: DecodeConfig = GUIDED) -> float:
    """Relative to the largest token; an exchanged draw, caption or place changes all of it.

    Tokens feed back through the iterations, and guidance of scale s weighs the errors of two states
    by s and s - 1. A teacher's chain has three steps, which hand an error on with a factor of at
    most 1 because it predicts v.
    """
    terms = model_terms(helpers.tiny_model_config(), 3 if objective == "diffusion" else 1)
    factor = 2 * decode_config.guidance_scale - 1
    return factor * rounding(decode_config.num_iterations * terms)


def plain_loop(
    objective: str, decode_config: DecodeConfig, known: Known | None = None
) -> np.ndarray:
    """Decoding as MAR's paper words it: a full pass, some positions, no padding, no scan."""
    model, params = system(objective)
    keys, num_clips, num_tokens = clip_keys(), len(CAPTIONS), helpers.NUM_TOKENS
    num_iterations, strength = decode_config.num_iterations, decode_config.guidance_scale
    text = model.condition(params, model.text.tokenize(CAPTIONS))
    order_keys = jax.vmap(lambda key: jax.random.fold_in(key, num_iterations))(keys)
    tokens = np.zeros((num_clips, num_tokens, helpers.TOKEN_DIM), np.float32)
    masked = np.ones(tokens.shape[:2], bool)
    if known is not None:
        masked = ~np.asarray(known.mask)
        tokens[~masked] = np.asarray(known.tokens)[~masked]
    every_order = np.asarray(sample_orders(order_keys, num_tokens))
    if decode_config.order == "bisection":
        diagonals = [sum(divmod(place, TOKENS_PER_COLUMN)) % 4 for place in range(num_tokens)]
        rank = {0: 0, 2: 1, 1: 2, 3: 2}
        every_order = np.stack(
            [
                np.asarray(sorted(row, key=lambda place: rank[diagonals[place]]))
                for row in every_order
            ]
        )
    order = np.stack([row[hidden[row]] for row, hidden in zip(every_order, masked, strict=True)])
    hidden_of, sample = jax.jit(model.hidden), jax.jit(model.sample_tokens)
    num_unknown = remaining = order.shape[1]
    for iteration in range(num_iterations):
        before = remaining
        share = math.cos(math.pi / 2 * (iteration + 1) / num_iterations)
        if isinstance(decode_config.counts, tuple):
            share = sum(decode_config.counts[iteration + 1 :]) / num_tokens
        least = num_iterations - iteration - 1 or 1
        remaining = max(least, min(before - 1, math.floor(num_unknown * share)))
        scale = 1 + (strength - 1) * (num_tokens - remaining) / num_tokens
        if iteration == num_iterations - 1:
            remaining = 0
        chosen = order[:, num_unknown - before : num_unknown - remaining]
        asked = [
            np.take_along_axis(
                np.asarray(hidden_of(params, tokens, masked, words)), chosen[..., None], axis=1
            )
            for words in (text, unconditional(text))
        ]
        low, high = decode_config.guided
        if not low < (num_iterations - iteration) / num_iterations <= high:
            asked[1], scale = None, 1.0
        iteration_keys = jax.vmap(lambda key, i=iteration: jax.random.fold_in(key, i))(keys)
        new = sample(params, *asked, jnp.float32(scale), iteration_keys, jnp.float32(1.0))
        np.put_along_axis(tokens, chosen[..., None], np.asarray(new), axis=1)
        np.put_along_axis(masked, chosen, False, axis=1)
    return tokens


@pytest.mark.parametrize(
    ("objective", "settings", "num_known"),
    [
        ("energy", GUIDED, 0),
        ("energy", GUIDED, 4),
        ("energy", dataclasses.replace(GUIDED, num_iterations=8), 0),
        ("diffusion", GUIDED, 0),
        ("diffusion", GUIDED, 4),
        ("energy", CHOICES, 4),
    ],
)
def test_decoding_equals_a_plain_loop(objective, settings, num_known):
    known = given(num_known) if num_known else None
    found = decode(objective, settings, [0, 1, 2, 3], known)
    expected = plain_loop(objective, settings, known)
    assert_close(found, expected, decode_rounding(objective, settings))


def test_guidance_is_each_clips_own():
    """The teacher's as the student's; what a clip reads and how strongly is no neighbour's."""
    model, params = system("diffusion")
    negatives = ["", "", "", "a loud tone"]
    scales = jnp.asarray(guidance_scales(GUIDED, decode_counts(8, 3)), jnp.float32)
    each = jnp.stack([scales, scales, 0.5 * scales, scales])

    @jax.jit
    def guided(params, text, negative, keys, scales):
        return parallel_decode(
            model,
            params,
            model.condition(params, text),
            keys,
            GUIDED,
            num_tokens=helpers.NUM_TOKENS,
            token_dim=helpers.TOKEN_DIM,
            guidance=Guidance(scales, model.condition(params, negative)),
        ).tokens

    text, negative = model.text.tokenize(CAPTIONS), model.text.tokenize(negatives)
    found = np.asarray(guided(params, text, negative, clip_keys(), each))
    plain = decode("diffusion", GUIDED, [0, 1, 2, 3])
    assert_close(found[:2], plain[:2], decode_rounding("diffusion"))
    for clip in (2, 3):
        assert not np.array_equal(found[clip], plain[clip])
    np.testing.assert_array_equal(
        guided(params, text, text, clip_keys(), each.at[0].set(0.0))[1:3],
        guided(params, text, text, clip_keys(), each)[1:3],
    )


def test_no_known_tokens_is_plain_decoding():
    found = decode("energy", GUIDED, [0, 1, 2, 3], given(0))
    np.testing.assert_array_equal(found, decode("energy", GUIDED, [0, 1, 2, 3]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_known_tokens_come_back_and_are_heard(objective):
    known = given(4)
    mask = np.asarray(known.mask)
    found = decode(objective, GUIDED, [0, 1, 2, 3], known)
    np.testing.assert_array_equal(found[mask], np.asarray(known.tokens)[mask])
    changed = decode(objective, GUIDED, [0, 1, 2, 3], Known(-jnp.asarray(known.tokens), known.mask))
    # The program is the same one, so that any difference comes from the known tokens.
    assert (changed != found)[~mask].any(axis=-1).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_clip_does_not_depend_on_what_its_neighbours_know(objective):
    known, others = given(4), given(4, seed=1)
    mixed = jax.tree.map(lambda one, other: jnp.concatenate([one[:1], other[1:]]), known, others)
    found = decode(objective, GUIDED, [0, 1, 2, 3], known)
    neighbours = decode(objective, GUIDED, [0, 1, 2, 3], mixed)
    np.testing.assert_array_equal(neighbours[0], found[0])
    np.testing.assert_array_equal(
        decode(objective, GUIDED, [2, 3, 0, 1], known), found[[2, 3, 0, 1]]
    )


def test_other_prompts_seeds_and_known_tokens_need_no_other_program():
    decode("energy", GUIDED, [0, 1, 2, 3], given(4))
    size = _decode._cache_size()
    for seed, chosen in enumerate(itertools.permutations(range(4))):
        decode("energy", GUIDED, list(chosen), given(4, seed))
    assert _decode._cache_size() == size


def test_latents_are_float32_whatever_the_model_computes_in():
    run = helpers.tiny_teacher_config("unused", objective="energy")
    run = dataclasses.replace(run, model=helpers.tiny_model_config(dtype="bfloat16"))
    model = build_model(run, helpers.tiny_text_encoder())
    _, params = system("energy")
    conditioning = model.condition(params, model.text.tokenize(CAPTIONS))
    known = given(4)
    decode = functools.partial(
        parallel_decode,
        model,
        config=config(num_iterations=1),
        num_tokens=helpers.NUM_TOKENS,
        token_dim=helpers.TOKEN_DIM,
        num_known=4,
    )
    program = jax.jit(decode)
    found = program(params, conditioning, clip_keys(), known=known).tokens
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[known.mask], known.tokens[known.mask])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_clip_does_not_depend_on_its_place(objective):
    found = decode(objective, GUIDED, [0, 1, 2, 3])
    np.testing.assert_array_equal(decode(objective, GUIDED, [2, 3, 0, 1]), found[[2, 3, 0, 1]])
    np.testing.assert_array_equal(decode(objective, GUIDED, [2, 2, 2, 2])[3], found[2])


def test_a_clip_does_not_depend_on_the_batch_size():
    together = decode("energy", GUIDED, [0, 1, 2, 3])
    alone = decode("energy", GUIDED, [2])
    assert_close(alone[0], together[2], decode_rounding("energy"))


def test_segments_do_not_change_a_real_clip():
    found = decode("energy", GUIDED, [0, 1, 2, 3])
    other = decode("energy", dataclasses.replace(GUIDED, max_segments=2), [0, 1, 2, 3])
    assert_close(other, found, decode_rounding("energy"))


def test_guidance_of_scale_one_is_no_guidance():
    without = decode("energy", config(max_segments=1), [0, 1, 2, 3])
    barely_above_one = float(np.nextafter(1.0, 2.0))  # guided, and 1 once it is float32
    one = config(max_segments=1, guidance_scale=barely_above_one)
    guided = decode("energy", one, [0, 1, 2, 3])
    assert_close(guided, without, decode_rounding("energy", one))


def test_guidance_moves_clips_with_text_and_leaves_those_without():
    without = decode("energy", config(max_segments=1), [0, 1, 2, 3])
    guided = decode("energy", GUIDED, [0, 1, 2, 3])
    moved = np.abs(guided - without).max(axis=(1, 2))
    tolerance = decode_rounding("energy") * np.abs(without).max()
    assert moved[1] < tolerance  # the empty caption
    assert (moved[[0, 2, 3]] > 10 * tolerance).all()


def test_temperature_zero_of_a_student_forgets_the_seed_but_for_the_order():
    model, params = system("energy")
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 32))
    keys = jax.random.split(jax.random.key(1), 2)
    arguments = (params, hidden, None, jnp.float32(1.0))
    cold = model.sample_tokens(*arguments, keys, jnp.float32(0.0))
    other = model.sample_tokens(*arguments, keys[::-1], jnp.float32(0.0))
    np.testing.assert_array_equal(cold, other)
    assert not np.array_equal(cold, model.sample_tokens(*arguments, keys, jnp.float32(1.0)))
