"""Quality and variety of generated clips by k nearest neighbours: four shares of clips.

A clip's ball reaches as far as its k-th nearest neighbour among the other clips of its set.

* precision: generated clips that lie in a ball of a real clip,
* recall: real clips that lie in a ball of a generated clip,
* density: for each generated clip the real balls that hold it, divided by k (may be above 1),
* coverage: real clips whose ball holds a generated clip.

Each function gives one value a clip, whose mean is the figure. A clip on the edge is inside. For
two equal sets precision, recall and coverage are 1 and density is (k + 1) / k.

Source: Kynkäänniemi et al., 2019, arXiv:1904.06991 (precision and recall, k = 3); Naeem et al.,
2020, arXiv:2002.09797 (density and coverage, k = 5).
Dimensions: n generated and m real clips, d features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64

from fasttta_jax.metrics.features import checked_pair, squared_distances

PRECISION_K = 3
DENSITY_K = 5
EDGE = 1e-9
"""Relative width of the edge of a ball, for rounding."""


def precision(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    *,
    k: int = PRECISION_K,
) -> Float64[np.ndarray, " n"]:
    """1 for each generated clip that lies in the ball of a real one, else 0.

    Args:
      generated: one row for each generated clip.
      reference: one row for each real clip.
      k: which neighbour a ball reaches.

    Raises:
      ValueError: a set has non-finite values or k clips or fewer, or the numbers of features
        differ.
    """
    generated, reference = _checked(generated, reference, k)
    inside = (part.any(axis=0) for part in _in_balls(reference, generated, k))
    return np.any(list(inside), axis=0).astype(np.float64)


def recall(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    *,
    k: int = PRECISION_K,
) -> Float64[np.ndarray, " m"]:
    """1 for each real clip that lies in the ball of a generated one, else 0.

    Arguments and errors are those of `precision`.
    """
    return precision(reference, generated, k=k)


def density(
    generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], *, k: int = DENSITY_K
) -> Float64[np.ndarray, " n"]:
    """For each generated clip the number of real balls that hold it, divided by k.

    Arguments and errors are those of `precision`.
    """
    generated, reference = _checked(generated, reference, k)
    counts = (part.sum(axis=0) for part in _in_balls(reference, generated, k))
    return np.sum(list(counts), axis=0) / k


def coverage(
    generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], *, k: int = DENSITY_K
) -> Float64[np.ndarray, " m"]:
    """1 for each real clip whose ball holds a generated one, else 0.

    Arguments and errors are those of `precision`.
    """
    generated, reference = _checked(generated, reference, k)
    covered = [part.any(axis=1) for part in _in_balls(reference, generated, k)]
    return np.concatenate(covered).astype(np.float64)


def _in_balls(
    centres: Float64[np.ndarray, "n d"], clips: Float64[np.ndarray, "m d"], k: int
) -> Iterator[Bool[np.ndarray, "b m"]]:
    """Block by block of centres, which clips lie in the ball of each."""
    radii = np.concatenate(
        [
            np.partition(squared, k, axis=1)[:, k]
            for _, squared in squared_distances(centres, centres)
        ]
    )  # the nearest is the clip itself
    for rows, squared in squared_distances(centres, clips):
        yield squared <= (1 + EDGE) * radii[rows, None]


def _checked(
    generated: np.ndarray, reference: np.ndarray, k: int
) -> tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]]:
    generated, reference = checked_pair(generated, reference)
    if not 1 <= k < min(len(generated), len(reference)):
        raise ValueError(
            f"k is {k}, with {len(generated)} generated and {len(reference)} real clips; allowed: "
            "1 to one less than the smaller number"
        )
    return generated, reference
