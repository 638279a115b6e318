"""The classifier finds what is there and nothing else, and its fit is a logistic regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from fasttta_jax.metrics.two_sample import _fitted_logits, classifier_test


def draw(seed: int, n: int, d: int = 10, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=(n, d))


def test_sets_of_one_distribution_are_not_told_apart():
    """p-values are uniform at best: of 40 tests two are below 5 %, and seven one time in 150."""
    found = [
        classifier_test(draw(2 * seed, 60), draw(2 * seed + 1, 60), paired=False)
        for seed in range(40)
    ]
    assert sum(one.p_value < 0.05 for one in found) < 7
    assert np.mean([one.accuracy.value for one in found]) == pytest.approx(0.5, abs=0.03)


def test_a_shift_is_found_as_well_as_can_be():
    """Two Gaussians a distance D apart are told apart in a share Phi(D / 2) of clips at best.

    The share that was found is off by three of its standard errors at most.
    """
    found = classifier_test(draw(0, 800, d=4), draw(1, 800, d=4, shift=1.0), paired=False)
    best = scipy.stats.norm.cdf(math.sqrt(4) / 2)
    assert found.accuracy.value == pytest.approx(best, abs=3 * found.accuracy.standard_error)
    assert found.accuracy.standard_error < 0.01
    assert found.p_value < 1e-6
    assert found.accuracy.count == 1600


def test_the_interval_is_wilsons():
    found = classifier_test(draw(2, 50), draw(3, 40, shift=0.3), paired=False).accuracy
    n, p, z = found.count, found.value, scipy.stats.norm.ppf(0.975)
    assert n == 80, "the larger set is cut to the smaller"
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found.interval == pytest.approx((centre - half, centre + half))


def test_equal_paired_sets_give_exactly_one_half():
    x = draw(4, 33, d=50)
    found = classifier_test(x, x, paired=True)
    assert found.accuracy.value == 0.5
    assert found.p_value > 0.5
    np.testing.assert_array_equal(found.right, 0.5)


def test_pairs_stay_in_one_fold():
    """Prompts far apart with more features than clips: a clip in the fitted folds would give its
    pair away, to a classifier that is then wrong throughout."""
    prompts = 10 * draw(5, 60, d=200)
    x, y = prompts + draw(6, 60, d=200), prompts + draw(7, 60, d=200)
    apart = classifier_test(x, y, paired=False)
    together = classifier_test(x, y, paired=True)
    assert apart.accuracy.value < 0.3
    assert together.accuracy.value == pytest.approx(0.5, abs=0.15)


def test_more_features_than_clips_and_a_constant_one_do_no_harm():
    x, y = draw(8, 40, d=300), draw(9, 40, d=300, shift=0.3)
    x[:, 0] = y[:, 0] = 3.0
    assert classifier_test(x, y, paired=False).accuracy.value > 0.9


def test_the_same_seed_gives_the_same_result():
    x, y = draw(10, 30), draw(11, 35, shift=0.4)
    one, other = (classifier_test(x, y, paired=False, seed=3) for _ in range(2))
    assert one.accuracy == other.accuracy
    assert one.p_value == other.p_value


def test_the_fit_is_stationary():
    """The gradient of losses and penalty is 0 to the optimiser's tolerance, 1e-5 a clip."""
    x, labels = draw(12, 50), np.arange(50) % 2 == 0
    logits = _fitted_logits(x, labels, np.ones(50, bool))
    inputs = (x - x.mean(axis=0)) / x.std(axis=0) / math.sqrt(10)
    with_offset = np.column_stack([inputs, np.ones(50)])
    weights = np.linalg.lstsq(with_offset, logits, rcond=None)[0]
    gradient = with_offset.T @ (scipy.special.expit(logits) - labels) + [*weights[:-1], 0.0]
    assert np.abs(gradient).max() < 50 * 1e-4


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="30 generated and 31 real clips cannot be paired"):
        classifier_test(draw(13, 30), draw(14, 31), paired=True)
    with pytest.raises(ValueError, match="num_folds is 5; allowed: 2 to 4"):
        classifier_test(draw(15, 4), draw(16, 9), paired=False)
