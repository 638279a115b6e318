"""Parallel decoding reveals every token once, for every grouping, and each clip on its own."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decode import parallel_decode, plan_segments
from fasttta_jax.diffusion.sampler import normal_per_clip
from fasttta_jax.masking import decode_counts, guidance_scales, sample_orders
from fasttta_jax.models.mar import unconditional
from fasttta_jax.models.text_to_audio import Student, Teacher, build_model
from fasttta_jax.typing import TextStream
from tests import helpers

EPSILON = float(np.finfo(np.float32).eps)


def config(**changes) -> DecodeConfig:
    return DecodeConfig(
        **{"num_iterations": 3, "guidance_scale": 1.0, "max_segments": 2, **changes}
    )


@dataclasses.dataclass(eq=False)
class Recorder:
    """Answers, in place of a token: its position, how much was revealed before, the guidance scale.

    Attributes:
      num_traces: how often Python ran `hidden`.
    """

    num_traces: int = 0

    def hidden(self, params, tokens, masked, conditioning, *, num_visible=None):
        self.num_traces += 1
        batch_size, num_tokens = masked.shape
        revealed = jnp.sum(~masked, axis=1)[:, None]
        enough = revealed <= num_visible
        # what is revealed must hold its own position; what is not must be zero
        places = jnp.arange(1, num_tokens + 1)[None]
        intact = (tokens[..., 0] == jnp.where(masked, 0, places)).all(axis=1, keepdims=True)
        positions = jnp.broadcast_to(places, (batch_size, num_tokens))
        sound = jnp.broadcast_to(enough & intact, positions.shape)
        started = jnp.broadcast_to(revealed, positions.shape)
        return jnp.stack([positions, started, sound], axis=-1).astype(jnp.float32)

    def sample_tokens(self, params, hidden, baseline, guidance_scale, keys, temperature):
        scale = jnp.broadcast_to(guidance_scale, hidden.shape[:2])[..., None]
        draws = normal_per_clip(keys, (hidden.shape[1], 1))
        return jnp.concatenate([hidden, scale, temperature * draws], axis=-1)


@functools.cache
def record(num_tokens: int, decode_config: DecodeConfig, batch_size: int = 3) -> np.ndarray:
    text = {"words": TextStream(jnp.zeros((batch_size, 2, 1)), jnp.ones((batch_size, 2), bool))}
    keys = jax.random.split(jax.random.key(0), batch_size)
    decode = jax.jit(
        lambda text, keys: parallel_decode(
            Recorder(), {}, text, keys, decode_config, num_tokens=num_tokens, token_dim=5
        )
    )
    return np.asarray(decode(text, keys))


SIZES = [(1, 1, 1), (2, 1, 2), (2, 2, 2), (8, 3, 1), (8, 8, 3), (31, 7, 2), (64, 16, 4)]


@pytest.mark.parametrize(("num_tokens", "num_iterations", "max_segments"), SIZES)
def test_every_token_is_revealed_exactly_once(num_tokens, num_iterations, max_segments):
    found = record(
        num_tokens,
        config(
            num_iterations=num_iterations,
            max_segments=max_segments,
            guidance_scale=4.0,
        ),
    )
    counts = decode_counts(num_tokens, num_iterations)
    starts = np.cumsum((0, *counts[:-1]))
    places = np.broadcast_to(np.arange(1, num_tokens + 1), found.shape[:2])
    np.testing.assert_array_equal(found[..., 0], places)
    np.testing.assert_array_equal(found[..., 2], 1.0)
    scales = np.float32(guidance_scales(counts, 4.0, "linear"))
    for clip in found:
        in_turn = np.sort(clip[:, 1])
        np.testing.assert_array_equal(in_turn, np.repeat(starts, counts))
        for start, scale in zip(starts, scales, strict=True):
            assert set(clip[clip[:, 1] == start, 3]) == {scale}


def test_clips_have_orders_and_noise_of_their_own():
    found = record(31, config(num_iterations=7, max_segments=1))
    assert len({clip[:, 1].tobytes() for clip in found}) == 3
    assert len(np.unique(found[..., 4])) == found[..., 4].size


@pytest.mark.parametrize("max_segments", [2, 7])
def test_grouping_into_segments_does_not_change_the_result(max_segments):
    one = record(31, config(num_iterations=7, max_segments=1))
    many = record(31, config(num_iterations=7, max_segments=max_segments))
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize(("num_tokens", "num_iterations"), [(1, 1), (9, 4), (31, 31), (256, 64)])
@pytest.mark.parametrize("max_segments", [1, 2, 4, 100])
def test_segments_cover_all_iterations(num_tokens, num_iterations, max_segments):
    counts = decode_counts(num_tokens, num_iterations)
    segments = plan_segments(counts, max_segments)
    assert len(segments) <= max_segments
    assert tuple(itertools.chain(*(segment.counts for segment in segments))) == counts
    starts = tuple(itertools.chain(*(segment.starts for segment in segments)))
    assert starts == tuple(np.cumsum((0, *counts[:-1])).tolist())
    iterations = [segment.first for segment in segments]
    lengths = [len(segment.counts) for segment in segments]
    assert iterations == np.cumsum((0, *lengths[:-1])).tolist()
    for segment in segments:
        assert segment.num_visible == max(segment.starts)
        assert segment.num_revealed == max(segment.counts)


def test_segments_are_the_cheapest():
    counts = decode_counts(31, 8)

    def cost(bounds: tuple[int, ...]) -> int:
        edges = (0, *bounds, 8)
        starts = np.cumsum((0, *counts[:-1]))
        return sum((b - a) * int(starts[b - 1]) for a, b in itertools.pairwise(edges))

    cheapest = min(cost(bounds) for bounds in itertools.combinations(range(1, 8), 2))
    segments = plan_segments(counts, 3)
    assert sum(len(segment.counts) * segment.num_visible for segment in segments) == cheapest


def test_more_iterations_than_tokens_are_refused():
    with pytest.raises(ValueError, match=r"num_iterations is 9; allowed: 1 to .* 8"):
        record(8, config(num_iterations=9))


def test_one_program_per_batch_and_config():
    model = Recorder()

    @functools.partial(jax.jit, static_argnames="decode_config")
    def decode(text, keys, decode_config):
        return parallel_decode(model, {}, text, keys, decode_config, num_tokens=8, token_dim=5)

    text = {"words": TextStream(jnp.zeros((2, 2, 1)), jnp.ones((2, 2), bool))}
    for seed in range(3):
        decode(text, jax.random.split(jax.random.key(seed), 2), decode_config=config())
    assert decode._cache_size() == 1
    num_segments = len(plan_segments(decode_counts(8, 3), 2))
    assert model.num_traces == num_segments


# ----------------------------------------------------------------------------- with real models


CAPTIONS = ["a loud tone", "", "clicks that is quiet", "a quiet noise"]


@functools.cache
def system(stage: str) -> tuple[Teacher | Student, dict]:
    """A tiny model, with every parameter drawn at random."""
    run = helpers.tiny_teacher_config("unused", stage=stage)
    run = dataclasses.replace(run, diffusion=dataclasses.replace(run.diffusion, sampling_steps=3))
    model = build_model(run, helpers.tiny_text_encoder())
    return model, helpers.random_params(jax.eval_shape(model.init, jax.random.key(0)), scale=0.2)


def clip_keys() -> jax.Array:
    return jax.random.split(jax.random.key(9), len(CAPTIONS))


@functools.partial(jax.jit, static_argnames=("stage", "decode_config"))
def _decode(params, text, keys, stage, decode_config):
    model, _ = system(stage)
    return parallel_decode(
        model,
        params,
        model.condition(params, text),
        keys,
        decode_config,
        num_tokens=helpers.NUM_TOKENS,
        token_dim=helpers.TOKEN_DIM,
    )


def decode(stage: str, decode_config: DecodeConfig, chosen: list[int]) -> np.ndarray:
    """Tokens of the clips `chosen`, in that order."""
    model, params = system(stage)
    text = model.text.tokenize([CAPTIONS[index] for index in chosen])
    keys = clip_keys()[jnp.asarray(chosen)]
    return np.asarray(_decode(params, text, keys, stage, decode_config))


GUIDED = config(guidance_scale=3.0)
STAGES = ["student", "teacher"]
# Other programs add in another order. Tokens feed back through the iterations; the teacher's chain
# of three steps multiplies an error by far less than 1 / alpha_bar because it predicts v.
TOLERANCE = {"student": 2e-5, "teacher": 2e-4}


def plain_loop(stage: str, decode_config: DecodeConfig) -> np.ndarray:
    """Decoding as MAR's paper words it: a full pass, some positions, no padding, no scan."""
    model, params = system(stage)
    keys, num_clips = clip_keys(), len(CAPTIONS)
    text = model.condition(params, model.text.tokenize(CAPTIONS))
    counts = decode_counts(helpers.NUM_TOKENS, decode_config.num_iterations)
    scales = guidance_scales(counts, decode_config.guidance_scale, "linear")
    order_keys = jax.vmap(lambda key: jax.random.fold_in(key, len(counts)))(keys)
    orders = np.asarray(sample_orders(order_keys, helpers.NUM_TOKENS))
    tokens = np.zeros((num_clips, helpers.NUM_TOKENS, helpers.TOKEN_DIM), np.float32)
    masked = np.ones(tokens.shape[:2], bool)
    hidden_of, sample = jax.jit(model.hidden), jax.jit(model.sample_tokens)
    start = 0
    for iteration, (count, scale) in enumerate(zip(counts, scales, strict=True)):
        chosen = orders[:, start : start + count]
        start += count
        asked = [
            np.take_along_axis(
                np.asarray(hidden_of(params, tokens, masked, words)), chosen[..., None], axis=1
            )
            for words in (text, unconditional(text))
        ]
        iteration_keys = jax.vmap(lambda key, i=iteration: jax.random.fold_in(key, i))(keys)
        new = sample(params, *asked, jnp.float32(scale), iteration_keys, jnp.float32(1.0))
        np.put_along_axis(tokens, chosen[..., None], np.asarray(new), axis=1)
        np.put_along_axis(masked, chosen, False, axis=1)
    return tokens


@pytest.mark.parametrize("stage", STAGES)
def test_decoding_equals_a_plain_loop(stage):
    found = decode(stage, GUIDED, [0, 1, 2, 3])
    expected = plain_loop(stage, GUIDED)
    tolerance = TOLERANCE[stage] * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("stage", STAGES)
def test_a_clip_does_not_depend_on_its_place(stage):
    found = decode(stage, GUIDED, [0, 1, 2, 3])
    np.testing.assert_array_equal(decode(stage, GUIDED, [2, 3, 0, 1]), found[[2, 3, 0, 1]])
    np.testing.assert_array_equal(decode(stage, GUIDED, [2, 2, 2, 2])[3], found[2])


@pytest.mark.parametrize("stage", STAGES)
def test_a_clip_does_not_depend_on_the_batch_size(stage):
    together = decode(stage, GUIDED, [0, 1, 2, 3])
    alone = decode(stage, GUIDED, [2])
    tolerance = TOLERANCE[stage] * np.abs(together).max()
    np.testing.assert_allclose(alone[0], together[2], rtol=0, atol=tolerance)


def test_segments_do_not_change_a_real_clip():
    found = decode("student", GUIDED, [0, 1, 2, 3])
    other = decode("student", dataclasses.replace(GUIDED, max_segments=1), [0, 1, 2, 3])
    tolerance = TOLERANCE["student"] * np.abs(found).max()
    np.testing.assert_allclose(other, found, rtol=0, atol=tolerance)


@pytest.mark.parametrize("stage", STAGES)
def test_guidance_of_scale_one_is_no_guidance(stage):
    without = decode(stage, config(max_segments=1), [0, 1, 2, 3])
    barely_above_one = float(np.nextafter(1.0, 2.0))  # guided, and 1 once it is float32
    one = config(max_segments=1, guidance_scale=barely_above_one)
    guided = decode(stage, one, [0, 1, 2, 3])
    tolerance = TOLERANCE[stage] * np.abs(without).max()
    np.testing.assert_allclose(guided, without, rtol=0, atol=tolerance)


def test_guidance_moves_clips_with_text_and_leaves_those_without():
    without = decode("student", config(max_segments=1), [0, 1, 2, 3])
    guided = decode("student", GUIDED, [0, 1, 2, 3])
    moved = np.abs(guided - without).max(axis=(1, 2))
    tolerance = TOLERANCE["student"] * np.abs(without).max()
    assert moved[1] < tolerance  # the empty caption
    assert (moved[[0, 2, 3]] > 10 * tolerance).all()


def test_temperature_zero_of_a_student_forgets_the_seed_but_for_the_order():
    model, params = system("student")
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 32))
    keys = jax.random.split(jax.random.key(1), 2)
    arguments = (params, hidden, None, jnp.float32(1.0))
    cold = model.sample_tokens(*arguments, keys, jnp.float32(0.0))
    other = model.sample_tokens(*arguments, keys[::-1], jnp.float32(0.0))
    np.testing.assert_array_equal(cold, other)
    assert not np.array_equal(cold, model.sample_tokens(*arguments, keys, jnp.float32(1.0)))
