"""KL and Inception Score equal their sums written out, and their values at known points.

Sums of fewer than 600 terms of float64 are good to 600 u, 1e-13, of their largest: 1e-10 holds with
room for the exponentials.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fasttta_jax.metrics.bootstrap import bootstrap, measured
from fasttta_jax.metrics.divergence import inception_score, kl_sigmoid, kl_softmax

EXACT = 1e-10


def draw(seed: int, n: int = 24, k: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3.0, size=(n, k)).astype(np.float32)


def softmax(row: np.ndarray) -> list[float]:
    powers = [math.exp(float(value)) for value in row]
    return [power / sum(powers) for power in powers]


def sigmoid(row: np.ndarray) -> list[float]:
    return [1 / (1 + math.exp(-float(value))) for value in row]


@pytest.mark.parametrize(("metric", "squash"), [(kl_softmax, softmax), (kl_sigmoid, sigmoid)])
def test_kl_is_the_sum_over_classes(metric, squash):
    generated, reference = draw(0), draw(1)
    expected = [
        sum(
            r * (math.log(r) - math.log(g + 1e-6))
            for g, r in zip(squash(x), squash(y), strict=True)
        )
        for x, y in zip(generated, reference, strict=True)
    ]
    np.testing.assert_allclose(metric(generated, reference), expected, rtol=EXACT, atol=EXACT)


def test_equal_flat_logits_are_slightly_below_zero():
    flat = np.zeros((5, 527))
    np.testing.assert_allclose(kl_softmax(flat, flat), -math.log1p(527e-6), rtol=1e-9)
    assert kl_softmax(flat, flat)[0] == pytest.approx(-5.27e-4, abs=1e-6)
    np.testing.assert_allclose(kl_sigmoid(flat, flat), -527 / 2 * math.log1p(2e-6), rtol=1e-6)


def test_without_epsilon_it_is_the_divergence_and_0_for_equal_logits():
    flat = np.zeros((5, 527))
    np.testing.assert_allclose(kl_softmax(flat, flat, epsilon=0.0), 0, atol=EXACT)
    generated, reference = draw(2), draw(3)
    expected = [
        sum(r * math.log(r / g) for g, r in zip(softmax(x), softmax(y), strict=True))
        for x, y in zip(generated, reference, strict=True)
    ]
    np.testing.assert_allclose(kl_softmax(generated, reference, epsilon=0.0), expected, rtol=EXACT)
    missing, certain = np.array([[0.0, 800.0]]), np.array([[800.0, 0.0]])
    assert kl_softmax(missing, certain, epsilon=0.0)[0] == pytest.approx(800)


def test_a_missing_class_costs_the_log_of_epsilon():
    generated, reference = np.array([[0.0, 800.0]]), np.array([[800.0, 0.0]])
    assert kl_softmax(generated, reference)[0] == pytest.approx(-math.log(1e-6))


def test_sigmoid_kl_may_be_negative():
    assert kl_sigmoid(np.full((1, 4), 2.0), np.full((1, 4), -2.0))[0] < -0.1


def inception_by_loops(logits: np.ndarray, splits: int) -> tuple[float, float]:
    number = len(logits)
    rows = logits[np.random.RandomState(2020).permutation(number)]
    scores = []
    for i in range(splits):
        part = [softmax(row) for row in rows[i * number // splits : (i + 1) * number // splits]]
        marginal = [sum(p[k] for p in part) / len(part) for k in range(logits.shape[1])]
        kl = [sum(a * math.log(a / b) for a, b in zip(p, marginal, strict=True)) for p in part]
        scores.append(math.exp(sum(kl) / len(kl)))
    mean = sum(scores) / splits
    return mean, math.sqrt(sum((score - mean) ** 2 for score in scores) / splits)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_what_loops_give(splits):
    logits = draw(4, n=43)
    estimate, deviation = inception_score(logits, num_splits=splits)
    assert (estimate.value, deviation) == pytest.approx(
        inception_by_loops(logits, splits), rel=EXACT
    )


def test_inception_score_of_known_sets():
    same, deviation = inception_score(np.tile(draw(5, n=1), (30, 1)))
    assert (same.value, deviation) == pytest.approx((1.0, 0.0), abs=EXACT)
    sure = 800.0 * np.eye(6)[np.arange(60) % 6]
    assert inception_score(sure, num_splits=1)[0].value == pytest.approx(6.0)
    assert 1 < inception_score(sure)[0].value < 6, "splits of six clips rarely hold all classes"


def test_inception_score_without_splits_is_blind_to_order():
    logits = draw(6, n=30)
    scores = [inception_score(rows, num_splits=1)[0].value for rows in (logits, logits[::-1])]
    assert scores[0] == pytest.approx(scores[1], rel=EXACT)


@pytest.mark.parametrize("splits", [1, 4])
def test_the_influence_of_a_clip_is_the_derivative_of_the_score(splits):
    """Central differences of the score by the weight of one clip, which loses half the digits."""
    logits = draw(7, n=19)
    estimate, _ = inception_score(logits, num_splits=splits)
    order = np.random.RandomState(2020).permutation(19)
    probabilities = np.array([softmax(row) for row in logits])

    def score(weights: np.ndarray) -> float:
        scores = []
        for split in range(splits):
            rows = order[19 * split // splits : 19 * (split + 1) // splits]
            p, w = probabilities[rows], weights[rows] / weights[rows].sum()
            scores.append(math.exp(w @ np.sum(p * np.log(p / (w @ p)), axis=1)))
        return float(np.mean(scores))

    for clip in (0, 7):
        step = 1e-5 * np.eye(19)[clip]
        slope = (score(np.ones(19) + step) - score(np.ones(19) - step)) / 2e-5
        assert estimate.influence[clip] / 19 == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert estimate.influence.mean() == pytest.approx(0, abs=EXACT)


def test_the_error_of_a_score_is_that_of_drawing_clips():
    """Within 20 %: draws of 300 clips add their curvature, and 300 draws their own 4 %."""
    logits = draw(8, n=300)
    drawn = bootstrap(
        lambda rows: inception_score(logits[rows], num_splits=1)[0].value, 300, num_resamples=300
    )
    found = measured(inception_score(logits, num_splits=1)[0])
    assert found.standard_error == pytest.approx(drawn.standard_error, rel=0.2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="10 splits needs at least one clip for each; there are 9"):
        inception_score(draw(9, n=9))
    bad = draw(10)
    bad[3, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"reference has NaN or infinity in 1 of 24 rows, .* row 3"
    ):
        kl_softmax(draw(11), bad)


@pytest.mark.usefixtures("unchecked")
def test_unequal_sets_are_named():
    with pytest.raises(ValueError, match=r"generated has shape \(24, 7\) and reference \(20, 7\)"):
        kl_sigmoid(draw(12), draw(13, n=20))
    with pytest.raises(ValueError, match=r"expected \[clips, classes\]"):
        inception_score(draw(14)[0])
