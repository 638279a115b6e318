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
from fasttta_jax.decode import DecodeResult, cheapest_bounds, parallel_decode, plan_segments
from fasttta_jax.masking import decode_counts, guidance_scales
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

    def hidden(self, params, tokens, masked, conditioning, *, num_visible, positions):
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
    num_tokens: int, decode_config: DecodeConfig, num_known: int = 0, batch_size: int = 3
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


@pytest.mark.parametrize(("num_tokens", "num_iterations"), [(1, 1), (9, 4), (31, 31), (256, 64)])
@pytest.mark.parametrize("max_segments", [1, 2, 4, 100])
@pytest.mark.parametrize("num_known", [0, 5])
def test_segments_cover_all_iterations(num_tokens, num_iterations, max_segments, num_known):
    settings = config(num_iterations=num_iterations, max_segments=max_segments, guidance_scale=4.0)
    counts = decode_counts(num_tokens, num_iterations)
    segments = plan_segments(settings, num_tokens + num_known, num_known)
    assert len(segments) <= max_segments
    assert tuple(itertools.chain(*(segment.counts for segment in segments))) == counts
    starts = tuple(itertools.chain(*(segment.starts for segment in segments)))
    assert starts == tuple(np.cumsum((num_known, *counts[:-1])).tolist())
    scales = tuple(itertools.chain(*(segment.guidance_scales for segment in segments)))
    assert scales == guidance_scales(settings, counts, num_known=num_known)
    iterations = [segment.first for segment in segments]
    lengths = [len(segment.counts) for segment in segments]
    assert iterations == np.cumsum((0, *lengths[:-1])).tolist()
    for segment in segments:
        assert segment.num_visible == max(segment.starts)
        assert segment.num_revealed == max(segment.counts)


def test_the_config_chooses_the_mask_schedule():
    """For all tokens, and for those that are left where some are known."""
    settings = config(num_iterations=4, mask_schedule="linear", max_segments=1)
    assert plan_segments(settings, 16)[0].counts == (4, 4, 4, 4)
    assert plan_segments(settings, 16, 8)[0].counts == (2, 2, 2, 2)


def test_segments_are_the_cheapest():
    counts = decode_counts(31, 8)
    starts = list(itertools.accumulate(counts[:-1], initial=0))

    def cost(bounds: tuple[int, ...]) -> int:
        return sum((end - begin) * starts[end - 1] for begin, end in itertools.pairwise(bounds))

    every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), 2)]
    assert cost(cheapest_bounds(starts, 3)) == min(map(cost, every))


def test_the_worked_example_of_segments():
    assert cheapest_bounds([0, 2, 5, 9], 2) == (0, 2, 4)


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
