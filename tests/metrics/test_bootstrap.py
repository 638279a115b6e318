"""Intervals cover the truth as often as they say, and comparisons use that prompts are the same.

A cover of 95 % in 200 repetitions is within three binomial standard errors, 4.6 %, of what is
counted; that of a percentile interval of 40 clips is about 1 % too low to begin with.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fasttta_jax.metrics.bootstrap import bootstrap, clips_needed, measured, paired_difference
from fasttta_jax.metrics.intervals import Estimate, Measured

REPETITIONS = 200
COVER = (0.94 - 0.046, 0.95 + 0.046)


def covers(found: Measured, truth: float) -> bool:
    assert found.interval is not None
    low, high = found.interval
    assert low <= high
    return low <= truth <= high


def test_intervals_of_a_mean_cover_it():
    rng = np.random.default_rng(0)
    hits = [
        covers(measured(Estimate.of_mean(rng.exponential(size=60)), num_resamples=300), 1.0)
        for _ in range(REPETITIONS)
    ]
    assert COVER[0] - 0.02 < np.mean(hits) < COVER[1]  # a skewed distribution costs two percent


def test_a_mean_has_the_textbook_error():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = measured(Estimate.of_mean(values), num_resamples=4000)
    error = values.std(ddof=1) / 20
    assert found.value == values.mean()
    assert found.count == 400
    assert found.standard_error == pytest.approx(error)
    # A quantile of 4000 draws is off by sqrt(0.025 0.975 / 4000) over its density 0.058, 4 %.
    low, high = found.interval
    assert (found.value - low) / error == pytest.approx(1.96, abs=0.15)
    assert (high - found.value) / error == pytest.approx(1.96, abs=0.15)
    assert found == measured(Estimate.of_mean(values), num_resamples=4000), "by seed"
    assert found != measured(Estimate.of_mean(values), num_resamples=4000, seed=1)


def test_any_statistic_agrees_with_its_influences():
    """A mean by rows draws what the influences draw."""
    values = np.random.default_rng(2).normal(size=50)
    by_rows = bootstrap(lambda rows: values[rows].mean(), 50, num_resamples=2000)
    by_influence = measured(Estimate.of_mean(values), num_resamples=2000)
    assert by_rows.value == by_influence.value
    # Either error is that of 2000 draws: off by 1 / sqrt(2 * 2000) = 1.6 %, and by 1 / 100 for n-1.
    assert by_rows.standard_error == pytest.approx(by_influence.standard_error, rel=0.06)
    assert by_rows.interval == pytest.approx(by_influence.interval, abs=0.03)


def test_an_interval_is_centred_on_a_biased_figure():
    """The largest of clips is never above itself in a draw: its draws are moved up to it."""
    values = np.random.default_rng(3).uniform(size=30)
    found = bootstrap(lambda rows: values[rows].max(), 30, num_resamples=500)
    assert found.interval[0] < found.value < found.interval[1]


def test_reference_clips_of_their_own_add_their_error():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=100), rng.normal(size=50)
    both = Estimate(x.mean() - y.mean(), x - x.mean(), y.mean() - y)
    found = measured(both)
    assert found.standard_error == pytest.approx(
        math.hypot(x.std(ddof=1) / 10, y.std(ddof=1) / 50**0.5)
    )
    # pairing: what the clips of a prompt share cancels
    y = x + 0.1 * rng.normal(size=100)
    same = Estimate(x.mean() - y.mean(), x - x.mean(), y.mean() - y).paired()
    assert measured(same).standard_error == pytest.approx((x - y).std(ddof=1) / 10)
    with pytest.raises(ValueError, match="100 of 100 clips and 50 of 50 reference clips cannot be"):
        both.paired()


def test_some_pairs_are_drawn_together():
    """The middle ones of 60 clips are of the prompts of 40 of 50 reference clips, reordered."""
    rng = np.random.default_rng(7)
    y = rng.normal(size=50)
    x = rng.normal(size=60)
    rows, reference_rows = range(10, 50), rng.permutation(50)[:40].tolist()
    x[rows] = y[reference_rows]
    estimate = Estimate(x.mean() - y.mean(), x - x.mean(), y.mean() - y)
    found = estimate.paired(rows, reference_rows)
    assert measured(found).standard_error < 0.6 * measured(estimate).standard_error
    total = found.influence.mean() + found.reference_influence.mean()
    assert total == pytest.approx(0, abs=1e-12)
    assert np.count_nonzero(found.reference_influence) == 10
    with pytest.raises(ValueError, match="each needs one counterpart"):
        estimate.paired([0, 1], [3, 3])


def test_systems_on_the_same_prompts_are_told_apart_where_their_own_intervals_overlap():
    rng = np.random.default_rng(5)
    prompts = rng.normal(size=100)
    better = Estimate.of_mean(prompts + 0.1 + 0.1 * rng.normal(size=100))
    worse = Estimate.of_mean(prompts + 0.1 * rng.normal(size=100))
    assert measured(worse).interval[1] > measured(better).interval[0]
    difference = paired_difference(better, worse)
    assert difference.value == better.value - worse.value
    assert difference.interval[0] > 0
    assert clips_needed(difference) == 0
    with pytest.raises(ValueError, match=r"100 clips and 99 .* not of the same prompts"):
        paired_difference(better, Estimate.of_mean(prompts[1:]))


def test_intervals_of_a_difference_cover_it():
    rng = np.random.default_rng(6)
    hits = []
    for _ in range(REPETITIONS):
        prompts = rng.normal(size=40)
        one, other = (Estimate.of_mean(prompts + 0.5 * rng.normal(size=40)) for _ in range(2))
        hits.append(covers(paired_difference(one, other, num_resamples=300), 0.0))
    assert COVER[0] < np.mean(hits) < COVER[1]


def test_the_clips_needed_make_the_interval_end_at_zero():
    assert clips_needed(Measured(1.0, 1.0, 100, (-1.0, 3.0))) == 300
    assert clips_needed(Measured(-1.0, 1.0, 100, (-3.0, 2.0))) == 800
    assert clips_needed(Measured(0.0, 1.0, 100, (-2.0, 2.0))) is None
    assert clips_needed(Measured(3.0, 1.0, 100, (1.0, 5.0))) == 0
    with pytest.raises(ValueError, match="no interval"):
        clips_needed(Measured(1.0))


def test_too_few_clips_are_an_error():
    with pytest.raises(ValueError, match="needs two of them; there are 1"):
        measured(Estimate.of_mean(np.ones(1)))
    with pytest.raises(ValueError, match="needs two of them; there are 1"):
        bootstrap(lambda rows: 0.0, 1)
    with pytest.raises(ValueError, match="no clips"):
        Estimate.of_mean(np.ones(0))
