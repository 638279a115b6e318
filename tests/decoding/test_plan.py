"""The schedule of decoding covers all iterations, in segments that cost the least."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from fasttta_jax.decoding.plan import cheapest_bounds, plan_segments
from fasttta_jax.masking import decode_counts, guidance_scales
from tests.support.decoding import config


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
    settings = config(num_iterations=4, counts="linear", max_segments=1)
    assert plan_segments(settings, 16)[0].counts == (4, 4, 4, 4)
    assert plan_segments(settings, 16, 8)[0].counts == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("interval", "max_segments", "lengths", "branches"),
    [
        ((0.0, 1.0), 1, [8], [2]),
        ((0.25, 0.5), 1, [4, 2, 2], [1, 2, 1]),  # as many as it takes
        ((0.0, 0.5), 2, [4, 4], [1, 2]),
        ((0.5, 1.0), 2, [4, 4], [2, 1]),
        ((0.25, 0.5), 8, [1] * 8, [1] * 4 + [2] * 2 + [1] * 2),
    ],
)
def test_the_interval_of_guidance_ends_where_segments_do(interval, max_segments, lengths, branches):
    settings = config(
        num_iterations=8, guidance_scale=4.0, guided=interval, max_segments=max_segments
    )
    segments = plan_segments(settings, 64)
    assert [len(segment.counts) for segment in segments] == lengths
    assert [segment.branches for segment in segments] == branches
    for segment in segments:
        assert all((scale != 1.0) == (segment.branches == 2) for scale in segment.guidance_scales)
    alone = dataclasses.replace(settings, guidance_scale=1.0)
    assert {segment.branches for segment in plan_segments(alone, 64)} == {1}


@pytest.mark.parametrize("max_segments", [1, 3, 4, 6])
def test_segments_are_the_cheapest_within_the_interval(max_segments):
    starts = list(itertools.accumulate(decode_counts(31, 8)[:-1], initial=0))
    branches = [1, 1, 1, 2, 2, 2, 2, 1]

    def cost(bounds: tuple[int, ...]) -> float:
        runs = list(itertools.pairwise(bounds))
        if any(len(set(branches[begin:end])) > 1 for begin, end in runs):
            return math.inf
        return sum((end - begin) * starts[end - 1] * branches[begin] for begin, end in runs)

    every = [
        (0, *inner, 8)
        for number in range(max(3, max_segments))
        for inner in itertools.combinations(range(1, 8), number)
    ]
    assert cost(cheapest_bounds(starts, max_segments, branches)) == min(map(cost, every))


def test_segments_are_the_cheapest():
    counts = decode_counts(31, 8)
    starts = list(itertools.accumulate(counts[:-1], initial=0))

    def cost(bounds: tuple[int, ...]) -> int:
        return sum((end - begin) * starts[end - 1] for begin, end in itertools.pairwise(bounds))

    every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), 2)]
    assert cost(cheapest_bounds(starts, 3)) == min(map(cost, every))


def test_the_worked_example_of_segments():
    assert cheapest_bounds([0, 2, 5, 9], 2) == (0, 2, 4)
