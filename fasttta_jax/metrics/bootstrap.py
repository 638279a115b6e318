"""Confidence intervals over clips, and the difference of two systems on the same prompts.

Clips are drawn with replacement; a clip's patches stay together, and so do the clips of one prompt.
The interval holds the middle 95 % of what the draws give, moved so that their mean is the figure:
drawing again repeats the bias that a figure has for few clips, and would count it twice. The
interval is therefore about the expectation of the figure at this number of clips.

An `Estimate` is drawn by its influences, at the cost of a mean. For a Fréchet distance of fewer
clips than features that is also the better way: drawing the clips themselves leaves a third of them
out, so that covariances lose rank, and the errors come out up to twice too large
(`tests/metrics/test_frechet.py`).

Source: Efron and Tibshirani, 1993, chapters 12 and 13; Efron, 1982, chapter 6.
Dimensions: n clips, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int

from fasttta_jax.metrics.intervals import Estimate, Measured

NUM_RESAMPLES = 1000
OUTSIDE = 0.05
"""Share of the draws outside the interval."""
BLOCK = 2**22
"""Values that are drawn at once."""


def measured(estimate: Estimate, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Measured:
    """A figure with its standard error and its 95 % interval, from the influences of its clips.

    Args:
      estimate: the figure; with reference clips of their own, those are drawn too.
      num_resamples: R.
      seed: of the draws; figures of as many clips are drawn alike.
    """
    errors = _resampled_means(estimate.influence, num_resamples, seed, 0)
    variance = _variance_of_mean(estimate.influence)
    if estimate.reference_influence is not None:
        errors += _resampled_means(estimate.reference_influence, num_resamples, seed, 1)
        variance += _variance_of_mean(estimate.reference_influence)
    interval = _interval(estimate.value, errors)
    return Measured(estimate.value, math.sqrt(variance), len(estimate.influence), interval)


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " n"]], float],
    num_clips: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Measured:
    """Any statistic of clips with its standard error and its 95 % interval, computed R times.

    Args:
      statistic: of the rows that are drawn; called first with all rows in order.
      num_clips: n.
      num_resamples: R.
      seed: of the draws.

    Raises:
      ValueError: there are fewer than two clips.
    """
    if num_clips < 2:
        raise ValueError(f"an interval over clips needs two of them; there are {num_clips}")
    value = float(statistic(np.arange(num_clips)))
    rng = np.random.default_rng((seed, 0))
    draws = np.array(
        [statistic(rng.integers(num_clips, size=num_clips)) for _ in range(num_resamples)]
    )
    return Measured(value, float(draws.std(ddof=1)), num_clips, _interval(value, draws))


def paired_difference(
    estimate: Estimate, other: Estimate, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Measured:
    """How far a system's figure is above that of another on the same prompts in the same order.

    What a prompt does to both systems cancels, so the interval is narrower than those of the two
    figures suggest. The systems can be told apart where it does not hold 0.

    Args:
      estimate: the figure of the one.
      other: the figure of the other.
      num_resamples: R.
      seed: of the draws.

    Raises:
      ValueError: the numbers of clips differ, or one has reference clips that the other lacks.
    """
    references = (estimate.reference_influence, other.reference_influence)
    sizes = [None if one is None else len(one) for one in references]
    if len(estimate.influence) != len(other.influence) or sizes[0] != sizes[1]:
        raise ValueError(
            f"{len(estimate.influence)} clips and {len(other.influence)} (with {sizes[0]} and "
            f"{sizes[1]} reference clips) are not of the same prompts"
        )
    return measured(
        Estimate(
            estimate.value - other.value,
            estimate.influence - other.influence,
            None
            if references[0] is None or references[1] is None
            else references[0] - references[1],
        ),
        num_resamples=num_resamples,
        seed=seed,
    )


def clips_needed(difference: Measured) -> int | None:
    """How many clips more it would take until the same difference stood clear of 0.

    The interval narrows with the root of the number of clips. With that many, half of all
    repetitions of the comparison would tell the two apart.

    Args:
      difference: of `paired_difference`.

    Returns:
      0 where the interval does not hold 0; None where the difference is 0, as no number will do.

    Raises:
      ValueError: the difference has no interval or no count.
    """
    if difference.interval is None or difference.count is None:
        raise ValueError(f"{difference} has no interval and count to tell from")
    low, high = difference.interval
    if low > 0 or high < 0:
        return 0
    if difference.value == 0:
        return None
    reach = difference.value - low if difference.value > 0 else high - difference.value
    return math.ceil(difference.count * (reach / difference.value) ** 2) - difference.count


def _resampled_means(
    values: Float64[np.ndarray, " n"], num_resamples: int, seed: int, stream: int
) -> Float64[np.ndarray, " R"]:
    rng = np.random.default_rng((seed, stream))
    means = np.empty(num_resamples)
    block = max(BLOCK // len(values), 1)
    for start in range(0, num_resamples, block):
        number = min(block, num_resamples - start)
        rows = rng.integers(len(values), size=(number, len(values)))
        means[start : start + number] = values[rows].mean(axis=1)
    return means


def _variance_of_mean(values: Float64[np.ndarray, " n"]) -> float:
    if len(values) < 2:
        raise ValueError(f"an interval over clips needs two of them; there are {len(values)}")
    return float(values.var(ddof=1) / len(values))


def _interval(value: float, draws: Float64[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.quantile(draws - draws.mean(), (OUTSIDE / 2, 1 - OUTSIDE / 2))
    return value + float(low), value + float(high)
