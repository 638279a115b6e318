"""Kernel Audio Distance: the unbiased squared maximum mean discrepancy of two sets of embeddings.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(u, v) = exp(-|u - v|^2 / (2 s^2)),   KAD = 100 MMD^2

with x the generated and y the reference set. The bandwidth s is the median distance of two
different clips of the reference set, so all systems are measured by one kernel. The estimate is
unbiased for any number of clips, and may be negative.

kadtk (kadtk/kad.py, commit 7ec65d7) takes for s the lower of the two middle distances where their
number is even, for the exponent |u - v|^2 / (2 s^2 + 1e-8), for the factor 100, and computes in
float32; an earlier version (1376c67) took the median of the evaluated set.

Vectors of patches are one set, as in that package; an error still draws whole clips.

Source: Chung et al., 2025, arXiv:2502.15602; Gretton et al., 2012, lemma 6 (the estimate).
Dimensions: n and m clips, d features.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

from fasttta_jax.metrics.features import (
    checked_features,
    checked_pair,
    of_clips,
    pooled,
    squared_distances,
)
from fasttta_jax.metrics.intervals import Estimate

Bandwidth = Literal["median", "kadtk"] | float
"""A rule for the reference set, or s itself."""
SCALE = 100.0
KADTK_EPSILON = 1e-8
MEDIAN_ROWS = 8192
"""The median is that of so many rows at most, spread evenly: their distances fit in memory."""


def median_distance(reference: Float[np.ndarray, "m d"]) -> float:
    """The median Euclidean distance of two different rows.

    Raises:
      ValueError: there are fewer than two rows, or half of all distances are 0.
    """
    return _positive(float(np.median(_distances(checked_features(reference, "reference")))))


def kernel_distance(
    generated: Float[np.ndarray, "n *patches d"],
    reference: Float[np.ndarray, "m *other _"],
    *,
    bandwidth: Bandwidth = "median",
) -> Estimate:
    """KAD, with the influence of the clips of both sets.

    Args:
      generated: features of each generated clip, or of each of its patches: see `features.pooled`.
      reference: likewise of the real clips.
      bandwidth: "median" of the reference set's distances, "kadtk" for that package's rule, or the
        bandwidth in units of the features.

    Raises:
      ValueError: a set has fewer than two rows or non-finite values, the numbers of features
        differ, or the bandwidth is not above 0.
    """
    rows, clips = pooled(generated)
    reference_rows, reference_clips = pooled(reference)
    x, y = checked_pair(rows, reference_rows)
    exponent = _exponent(y, bandwidth)
    within, reference_within = (_mean_similarities(side, exponent) for side in (x, y))
    across, reference_across = np.empty(len(x)), np.zeros(len(y))
    for part, squared in squared_distances(x, y):
        kernel = _kernel(squared, exponent)
        across[part] = kernel.mean(axis=1)
        reference_across += kernel.sum(axis=0) / len(x)
    value = within.mean() + reference_within.mean() - 2 * across.mean()
    return Estimate(
        SCALE * float(value),
        of_clips(_centred(2 * SCALE * (within - across)), clips),
        of_clips(_centred(2 * SCALE * (reference_within - reference_across)), reference_clips),
    )


def _exponent(reference: Float64[np.ndarray, "m d"], bandwidth: Bandwidth) -> float:
    """The factor of the squared distance."""
    if bandwidth == "median":
        return 1 / (2 * median_distance(reference) ** 2)
    if bandwidth == "kadtk":
        distances = _distances(reference)
        middle = (len(distances) - 1) // 2
        lower = _positive(float(np.partition(distances, middle)[middle]))
        return 1 / (2 * lower**2 + KADTK_EPSILON)
    if isinstance(bandwidth, str) or not bandwidth > 0:
        raise ValueError(
            f'bandwidth is {bandwidth!r}; allowed: "median", "kadtk", or a number above 0'
        )
    return 1 / (2 * bandwidth**2)


def _positive(distance: float) -> float:
    if distance == 0:
        raise ValueError("half of the distances in the reference set are 0; its clips are copies")
    return distance


def _distances(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " p"]:
    """Distances of all pairs of different rows."""
    if len(x) > MEDIAN_ROWS:
        x = x[np.linspace(0, len(x), MEDIAN_ROWS, endpoint=False).astype(int)]
    columns = np.arange(len(x))
    return np.concatenate(
        [
            np.sqrt(squared[columns > columns[rows, None]])
            for rows, squared in squared_distances(x, x)
        ]
    )


def _kernel(squared: Float64[np.ndarray, "b m"], exponent: float) -> Float64[np.ndarray, "b m"]:
    """Similarities, in the place of the squared distances."""
    squared *= -exponent
    return np.exp(squared, out=squared)


def _mean_similarities(x: Float64[np.ndarray, "n d"], exponent: float) -> Float64[np.ndarray, " n"]:
    """Mean similarity of each clip to the other ones."""
    sums = np.empty(len(x))
    for rows, squared in squared_distances(x, x):
        sums[rows] = _kernel(squared, exponent).sum(axis=1) - 1.0  # without itself
    return sums / (len(x) - 1)


def _centred(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return values - values.mean()
