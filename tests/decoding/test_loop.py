"""Parallel decoding reveals every token once, for every grouping, and each clip on its own."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.loop import DecodeResult, Guidance, parallel_decode
from fasttta_jax.decoding.plan import plan_segments
from fasttta_jax.masking import decode_counts, guidance_scales, order_stages, reveal_counts
from fasttta_jax.randomness import normal_per_clip
from fasttta_jax.typing import TextStream
from tests.support.decoding import config, given_tokens

EPSILON = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(eq=False)
class Recorder:
    """Answers, in place of a token: its position, how much was revealed before, the guidance scale.

    Attributes:
      batch_sizes: of every time that Python ran `hidden`.
    """

    batch_sizes: list[int] = dataclasses.field(default_factory=list)
    guides_itself = False

    def hidden(self, params, tokens, masked, conditioning, *, num_visible, positions, strength):
        assert strength is None
        batch_size, num_tokens = masked.shape
        self.batch_sizes.append(batch_size)
        revealed = jnp.sum(~masked, axis=1)[:, None]
        enough = revealed <= num_visible
        # what is revealed must hold its own position; what is not must be zero
        places = jnp.arange(1, num_tokens + 1)[None]
        intact = (tokens[..., 0] == jnp.where(masked, 0, places)).all(axis=1, keepdims=True)
        inside = (positions >= 0) & (positions < num_tokens)
        started = jnp.broadcast_to(revealed, positions.shape)
        return jnp.stack([positions + 1, started, enough & intact & inside], axis=-1).astype(
            jnp.float32
        )

    def sample_tokens(self, params, hidden, baseline, guidance_scale, keys, temperature):
        scale = jnp.broadcast_to(guidance_scale, (*hidden.shape[:2], 1))
        draws = normal_per_clip(keys, (hidden.shape[1], 1))
        return jnp.concatenate([hidden, scale, temperature * draws], axis=-1)


@functools.cache
def record(
    num_tokens: int,
    decode_config: DecodeConfig,
    num_known: int = 0,
    batch_size: int = 3,
    tokens_per_column: int | None = None,
) -> DecodeResult:
    """Tokens [B, N, 5] and states, as NumPy arrays."""
    text = {"words": TextStream(jnp.zeros((batch_size, 2, 1)), jnp.ones((batch_size, 2), bool))}
    keys = jax.random.split(jax.random.key(0), batch_size)
    decode = jax.jit(
        lambda text, keys, known: parallel_decode(
            Recorder(),
            {},
            text,
            keys,
            decode_config,
            num_tokens=num_tokens,
            token_dim=5,
            tokens_per_column=tokens_per_column,
            known=known,
            num_known=num_known,
            return_states=True,
        )
    )
    known = given_tokens(num_known, num_tokens, 5, batch_size)
    return jax.tree.map(np.asarray, decode(text, keys, known))


SIZES = [
    *[(1, 1, 1, 0), (9, 1, 3, 0), (9, 2, 3, 0), (9, 5, 3, 0), (9, 8, 3, 0), (9, 9, 3, 0)],
    *[(64, 16, 4, 0), (2, 1, 1, 1), (9, 3, 2, 5), (31, 7, 2, 24)],
]


@pytest.mark.parametrize(("num_tokens", "num_iterations", "max_segments", "num_known"), SIZES)
def test_every_token_is_revealed_exactly_once(num_tokens, num_iterations, max_segments, num_known):
    found, _ = record(
        num_tokens,
        config(num_iterations=num_iterations, max_segments=max_segments, guidance_scale=4.0),
        num_known,
    )
    known = given_tokens(num_known, num_tokens, 5, 3)
    counts = decode_counts(num_tokens - num_known, num_iterations)
    starts = num_known + np.cumsum((0, *counts[:-1]))
    places = np.broadcast_to(np.arange(1, num_tokens + 1), found.shape[:2])
    np.testing.assert_array_equal(found[..., 0], places)
    np.testing.assert_array_equal(found[known.mask], known.tokens[known.mask])
    settings = config(guidance_scale=4.0)
    scales = np.float32(guidance_scales(settings, counts, num_known=num_known))
    for clip, mask in zip(found, np.asarray(known.mask), strict=True):
        generated = clip[~mask]
        np.testing.assert_array_equal(generated[:, 2], 1.0)
        np.testing.assert_array_equal(np.sort(generated[:, 1]), np.repeat(starts, counts))
        for start, scale in zip(starts, scales, strict=True):
            assert set(generated[generated[:, 1] == start, 3]) == {scale}


@pytest.mark.parametrize(("num_tokens", "num_iterations", "max_segments", "num_known"), SIZES)
def test_states_show_how_the_result_comes_about(
    num_tokens, num_iterations, max_segments, num_known
):
    settings = config(num_iterations=num_iterations, max_segments=max_segments, guidance_scale=4.0)
    found, states = record(num_tokens, settings, num_known)
    assert states.tokens.shape == (num_iterations, *found.shape)
    counts = decode_counts(num_tokens - num_known, num_iterations)
    left = num_tokens - num_known - np.cumsum(counts)
    np.testing.assert_array_equal(states.masked.sum(axis=2), np.tile(left[:, None], (1, 3)))
    assert not (states.masked[1:] & ~states.masked[:-1]).any()  # what is revealed stays revealed
    expected = np.where(states.masked[..., None], 0.0, found[None])
    np.testing.assert_array_equal(states.tokens, expected)


def test_clips_have_orders_and_noise_of_their_own():
    found, _ = record(9, config(num_iterations=5, max_segments=3, guidance_scale=4.0))
    assert len({clip[:, 1].tobytes() for clip in found}) == 3
    assert len(np.unique(found[..., 4])) == found[..., 4].size


CHOICES = config(
    num_iterations=6,
    counts=(1, 2, 2, 4, 7, 16),
    order="bisection",
    guidance_scale=4.0,
    guided=(0.2, 0.7),
    max_segments=4,
)


@pytest.mark.parametrize("num_known", [0, 9])
def test_order_counts_and_interval_are_followed_around_known_tokens(num_known):
    """Each clip reveals stage by stage, so many at once, and guides in the interval alone."""
    found, states = record(32, CHOICES, num_known, tokens_per_column=4)
    known = np.asarray(given_tokens(num_known, 32, 5, 3).mask)
    counts = reveal_counts(CHOICES, 32, num_known)
    starts = num_known + np.cumsum((0, *counts[:-1]))
    scales = np.float32(guidance_scales(CHOICES, counts, num_known=num_known))
    assert [scale != 1 for scale in scales] == [False, False, True, True, True, False]
    stages = order_stages(CHOICES, 32, 4)
    np.testing.assert_array_equal(found[..., 0], np.tile(np.arange(1, 33), (3, 1)))
    for clip, mask in zip(found, known, strict=True):
        generated = clip[~mask]
        np.testing.assert_array_equal(generated[:, 2], 1.0)
        np.testing.assert_array_equal(np.sort(generated[:, 1]), np.repeat(starts, counts))
        by_time = np.argsort(generated[:, 1], kind="stable")
        expected = np.split(np.sort(stages[~mask]), np.cumsum(counts)[:-1])
        revealed = np.split(stages[~mask][by_time], np.cumsum(counts)[:-1])
        for one, other in zip(revealed, expected, strict=True):
            np.testing.assert_array_equal(np.sort(one), other)
        for start, scale in zip(starts, scales, strict=True):
            assert set(generated[generated[:, 1] == start, 3]) == {scale}
    assert len({clip[:, 1].tobytes() for clip in found}) == 3
    np.testing.assert_array_equal(states.tokens[-1], found)


def test_positions_come_in_the_order_that_names_them():
    order = (4, 2, (7, 0), 5, 1, (3, 6))
    settings = config(num_iterations=8, counts=(1,) * 8, order=order, max_segments=1)
    found, _ = record(8, settings)
    revealed = np.argsort(found[..., 1], axis=1)
    np.testing.assert_array_equal(revealed[:, [0, 1, 4, 5]], np.tile([4, 2, 5, 1], (3, 1)))
    np.testing.assert_array_equal(np.sort(revealed[:, 2:4]), np.tile([0, 7], (3, 1)))
    np.testing.assert_array_equal(np.sort(revealed[:, 6:]), np.tile([3, 6], (3, 1)))


def test_one_stage_and_the_whole_interval_are_plain_decoding():
    plain = config(num_iterations=5, guidance_scale=4.0)
    named = dataclasses.replace(plain, order=(tuple(range(9)),), guided=(0, 1))
    named = dataclasses.replace(named, counts=decode_counts(9, 5))
    for ours, theirs in zip(record(9, named), record(9, plain), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_texts_negatives_and_the_interval_go_together():
    """A guided iteration has a row more than a clip has texts; the others have none for it."""
    model = Recorder()
    text = {"words": TextStream(jnp.zeros((6, 2, 1)), jnp.ones((6, 2), bool))}
    negative = jax.tree.map(lambda rows: rows[:3], text)
    scales = jnp.arange(18, dtype=jnp.float32).reshape(3, 6)
    decode = jax.jit(
        lambda keys: (
            parallel_decode(
                model,
                {},
                text,
                keys,
                CHOICES,
                num_tokens=32,
                token_dim=5,
                tokens_per_column=4,
                guidance=Guidance(scales, negative),
                weights=jnp.full((3, 32, 2), 0.5),
            ).tokens
        )
    )
    found = decode(jax.random.split(jax.random.key(0), 3))
    branches = [segment.branches for segment in plan_segments(CHOICES, 32)]
    assert model.batch_sizes == [3 * (1 + number) for number in branches]
    assert set(branches) == {1, 2}
    alone, _ = record(32, CHOICES, tokens_per_column=4)
    np.testing.assert_array_equal(found[..., :3], alone[..., :3])
    for clip, own in zip(np.asarray(found), np.asarray(scales), strict=True):
        starts = np.cumsum((0, *CHOICES.counts[:-1]))
        for start, scale, inside in zip(starts, own, [0, 0, 1, 1, 1, 0], strict=True):
            assert set(clip[clip[:, 1] == start, 3]) == {scale if inside else 1.0}


@pytest.mark.parametrize("max_segments", [2, 7])
def test_grouping_into_segments_does_not_change_the_result(max_segments):
    one, _ = record(31, config(num_iterations=7, max_segments=1), 24)
    many, _ = record(31, config(num_iterations=7, max_segments=max_segments), 24)
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize(("guidance_scale", "factor"), [(1.0, 1), (3.0, 2), (0.0, 2)])
def test_only_guidance_doubles_the_batch(guidance_scale, factor):
    model = Recorder()
    text = {"words": TextStream(jnp.zeros((3, 2, 1)), jnp.ones((3, 2), bool))}
    settings = config(guidance_scale=guidance_scale)
    program = jax.make_jaxpr(
        lambda keys: parallel_decode(model, {}, text, keys, settings, num_tokens=8, token_dim=5)
    )(jax.random.split(jax.random.key(0), 3))
    assert model.batch_sizes == [3 * factor] * len(plan_segments(settings, 8))
    assert "callback" not in str(program)  # nothing in it waits for the host


@pytest.mark.parametrize(
    ("num_iterations", "num_known", "message"),
    [
        (9, 0, r"num_iterations is 9; allowed: 1 to .* 8"),
        (4, 5, r"num_iterations is 4; allowed: 1 to 3, the tokens left .* 5 of 8 are known"),
        (1, 8, r"num_known is 8; allowed: 0 to 7, .* something is left to generate"),
    ],
)
def test_more_iterations_than_tokens_to_generate_are_refused(num_iterations, num_known, message):
    with pytest.raises(ValueError, match=message):
        record(8, config(num_iterations=num_iterations), num_known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": (1, 2, 4)}, r"counts is \(1, 2, 4\); allowed: a sum of 8, .* found 7"),
        ({"order": (0, (1, 2))}, r"order is \(0, \(1, 2\)\); .* permutation of 8 .* found 3"),
        ({"order": "bisection"}, r"order is 'bisection'; .* where tokens_per_column is None"),
    ],
)
def test_choices_that_do_not_fit_the_tokens_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        record(8, config(**changes))


def test_known_tokens_that_do_not_fit_are_refused():
    keys = jax.random.split(jax.random.key(0), 3)
    decode = functools.partial(
        parallel_decode, Recorder(), {}, {}, keys, config(), num_tokens=8, token_dim=5, num_known=2
    )
    with pytest.raises(ValueError, match="num_known is 2, but no known tokens are given"):
        decode()
    with pytest.raises(
        ValueError, match=r"tokens \(3, 9, 5\) .* expected \(3, 8, 5\) and \(3, 8\)"
    ):
        decode(known=given_tokens(2, 9, 5, 3))
