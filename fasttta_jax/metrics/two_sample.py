"""Classifier two-sample test: how often a small classifier tells generated clips from real ones.

A logistic regression on embeddings is fitted to all folds but one and judged on that one, so every
clip is judged by a classifier that has not seen it. An accuracy of 1/2 means that this classifier
finds no difference; 1 that it always does.

Features are standardised by the clips that the classifier is fitted to, and divided by the root of
their number d; with the penalty |w|^2 / 2 beside the sum of the losses that is a prior under which
logits have about unit variance, so there may be more features than clips.

Source: Lopez-Paz and Oquab, 2017, arXiv:1610.06545 (the test); Wilson, 1927 (the interval).
Dimensions: n clips of a set, d features.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Float64

from fasttta_jax.metrics.features import checked_pair
from fasttta_jax.metrics.intervals import Measured, proportion

NUM_FOLDS = 5
CONFIDENCE = 0.95


class TwoSampleTest(NamedTuple):
    """What the classifier found.

    Attributes:
      accuracy: share of clips of both sets that it put into their own set, with Wilson's interval.
      p_value: of an accuracy at least as high where the sets cannot be told apart: exact, one-sided
        and binomial, with clips as independent trials.
      right: of each pair of clips, the share that it put into their own set: 0, 1/2 or 1; in the
        order of the sets where they are paired, else that of the clips that were drawn.
    """

    accuracy: Measured
    p_value: float
    right: Float64[np.ndarray, " p"]


def classifier_test(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    *,
    paired: bool,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> TwoSampleTest:
    """Cross-fitted accuracy of a logistic regression.

    Args:
      generated: one row for each generated clip.
      reference: one row for each real clip.
      paired: whether row i of both sets belongs to one prompt: such clips stay in one fold, so that
        nothing of a prompt is learned from its other clip. Otherwise as many clips of the larger
        set are drawn as the smaller one has.
      num_folds: K.
      seed: of the folds and of the clips that are drawn.

    Raises:
      ValueError: a set has fewer clips than there are folds or non-finite values, the numbers of
        features differ, or paired sets have different numbers of clips.
    """
    generated, reference = checked_pair(generated, reference)
    number = min(len(generated), len(reference))
    if paired and len(generated) != len(reference):
        raise ValueError(
            f"{len(generated)} generated and {len(reference)} real clips cannot be paired"
        )
    if not 2 <= num_folds <= number:
        raise ValueError(
            f"num_folds is {num_folds}; allowed: 2 to {number}, the clips of the smaller set"
        )
    rng = np.random.default_rng(seed)
    if not paired:
        generated = generated[np.sort(rng.choice(len(generated), number, replace=False))]
        reference = reference[np.sort(rng.choice(len(reference), number, replace=False))]
    features = np.concatenate([generated, reference])
    is_generated = np.arange(2 * number) < number
    folds = np.tile(rng.permutation(np.arange(number) % num_folds), 2)
    if not paired:
        folds[number:] = rng.permutation(folds[number:])
    right = np.empty(2 * number, bool)
    for fold in range(num_folds):
        held_out = folds == fold
        logits = _fitted_logits(features, is_generated, ~held_out)[held_out]
        right[held_out] = (logits > 0) == is_generated[held_out]
    return TwoSampleTest(
        wilson(int(right.sum()), len(right)),
        float(scipy.stats.binomtest(int(right.sum()), len(right), alternative="greater").pvalue),
        right.reshape(2, number).mean(axis=0),
    )


def wilson(hits: int, count: int) -> Measured:
    """A share of independent outcomes with Wilson's 95 % interval, which never has width 0."""
    interval = scipy.stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return dataclasses.replace(
        proportion(hits, count), interval=(float(interval.low), float(interval.high))
    )


def _fitted_logits(
    features: Float64[np.ndarray, "N d"],
    is_generated: Bool[np.ndarray, " N"],
    fitted: Bool[np.ndarray, " N"],
) -> Float64[np.ndarray, " N"]:
    """Logits for all clips of a regression that was fitted to some."""
    mean, deviation = features[fitted].mean(axis=0), features[fitted].std(axis=0)
    deviation[deviation == 0] = 1.0
    inputs = (features - mean) / deviation / math.sqrt(features.shape[1])
    x, signs = inputs[fitted], np.where(is_generated[fitted], 1.0, -1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        slopes, offset = weights[:-1], weights[-1]
        margins = signs * (x @ slopes + offset)
        slope_of_loss = -signs * scipy.special.expit(-margins)
        value = np.logaddexp(0, -margins).sum() + slopes @ slopes / 2
        return value, np.append(x.T @ slope_of_loss + slopes, slope_of_loss.sum())

    start = np.zeros(x.shape[1] + 1)
    weights = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x
    return inputs @ weights[:-1] + weights[-1]
