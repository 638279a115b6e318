"""Timelines: every column follows the texts of its time, and a position the states of its texts."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.generation.timeline import Entry, TimelineError, parse_timeline, weights
from tests.decoding.test_models import decode_rounding
from tests.generation.test_length import as_int16
from tests.support.helpers import CLIP_SAMPLES, NUM_TOKENS, SAMPLE_RATE
from tests.support.tolerance import assert_close

COLUMN = 0.16


def test_entries_are_read() -> None:
    found = parse_timeline("0-4 rain; 2-3.5  thunder rolls ;.5-1 a bell - loud")
    assert found == (
        Entry(0.0, 4.0, "rain"),
        Entry(2.0, 3.5, "thunder rolls"),
        Entry(0.5, 1.0, "a bell - loud"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no part of a timeline; write START-END TEXT in seconds"),
        ("0-4 rain;", "'' is no part of a timeline"),
        ("0-4", "'0-4' is no part of a timeline"),
        ("rain 0-4", "'rain 0-4' is no part"),
        ("-1-4 rain", "'-1-4 rain' is no part"),
        ("0-nan rain", "'0-nan rain' is no part"),
        ("4-4 rain", "'4-4 rain' ends at 4 s; allowed: after its start, 4"),
    ],
)
def test_what_is_no_timeline_is_named(text: str, message: str) -> None:
    with pytest.raises(TimelineError, match=message):
        parse_timeline(text)


def test_a_timeline_of_more_than_a_day_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the end of '0-86401 rain' is 86401\.0; allowed: above 0"
    ):
        parse_timeline("0-86401 rain")


def test_columns_share_their_time_among_their_texts() -> None:
    """Of columns of a second: the prompt, then the texts, of which two hold in the third column."""
    entries = parse_timeline("1.5-4 rain; 2-3 thunder; 4-4.25 rain; 9-10 wind")
    texts, shares = weights(entries, 5, 1.0)
    assert texts == ("rain", "thunder", "wind")
    expected = [
        [1, 0, 0, 0],
        [0.5, 0.5, 0, 0],
        [0, 0.5, 0.5, 0],
        [0, 1, 0, 0],
        [0.75, 0.25, 0, 0],
    ]
    np.testing.assert_array_equal(shares, np.float32(expected))


@pytest.mark.parametrize("seed", range(5))
def test_shares_sum_to_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 3, (6, 2)), axis=1)
    entries = tuple(Entry(*pair, str(number % 4)) for number, pair in enumerate(times.tolist()))
    texts, shares = weights(entries, 16, COLUMN)
    assert shares.shape == (16, 1 + len(texts))
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares >= 0).all()


def test_one_text_all_the_time_is_a_prompt(student: Pipeline) -> None:
    """Of which neither the seed nor the length changes."""
    plain = next(student.generate(["a loud tone"], seed=5))
    found = next(student.generate([""], seed=5, timeline="0-0.64 a loud tone"))
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    assert found.audio.shape == (CLIP_SAMPLES,)


def test_positions_follow_their_texts(student: Pipeline) -> None:
    """What is decoded first depends on the text of its place alone."""
    settings = {"seed": 5, "num_iterations": NUM_TOKENS, "with_states": True}
    quiet, loud, both, same = (
        next(student.generate([prompt], **settings, **more))
        for prompt, more in [
            ("a quiet noise", {}),
            ("a loud tone", {}),
            ("a loud tone", {"timeline": "0-0.32 a quiet noise"}),
            ("", {"timeline": "0-0.64 a loud tone; 0-0.64 a loud tone"}),
        ]
    )
    assert both.states is not None
    # A first iteration reveals one token, which knows of no other.
    (place,) = np.flatnonzero(~both.states.masked[0])
    of_place = quiet if place < NUM_TOKENS // 2 else loud
    other = loud if of_place is quiet else quiet
    assert of_place.states is not None
    assert other.states is not None
    tolerance = decode_rounding("energy")
    first = both.states.tokens[0, place]
    assert_close(first, of_place.states.tokens[0, place], tolerance)
    assert not np.allclose(first, other.states.tokens[0, place], atol=0.01)
    np.testing.assert_array_equal(same.tokens, loud.tokens)


def test_a_mixture_lies_between_its_texts_and_goes_on_for_any_length(student: Pipeline) -> None:
    timeline = "0-1 a loud tone; 0.5-1.5 a quiet noise"
    (clip,) = student.generate(["clicks"], timeline=timeline, guidance_scale=1.5)
    assert clip.audio.shape == (1.5 * SAMPLE_RATE,)
    longer = next(student.generate(["clicks"], timeline=timeline, seconds=2.0, guidance_scale=1.5))
    assert longer.audio.shape == (2.0 * SAMPLE_RATE,)
    shared = clip.tokens.shape[0] - 2
    np.testing.assert_array_equal(longer.tokens[: shared // 2], clip.tokens[: shared // 2])
    neighbours = student.generate(
        ["a tone", "clicks"], seeds=[7, 0], timeline=timeline, seconds=2.0
    )
    beside = next(clip for clip in neighbours if clip.prompt == "clicks")
    alone = next(student.generate(["clicks"], timeline=timeline, seconds=2.0))
    np.testing.assert_allclose(as_int16(beside), as_int16(alone), atol=1)
