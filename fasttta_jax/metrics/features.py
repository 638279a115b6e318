"""What metrics on sets of feature vectors share: checks, patches, and distances block by block.

Dimensions: n and m clips, N pooled rows, d features, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64, Int

BLOCK_ROWS = 128
"""Distances of so many rows to all others are in memory at once."""


def checked_features(
    features: Float[np.ndarray, "n d"], name: str, *, least: int = 2, columns: str = "features"
) -> Float64[np.ndarray, "n d"]:
    """The features, in float64.

    Args:
      features: a row for each clip.
      name: what errors call them.
      least: how many rows are needed.
      columns: what errors call the columns.

    Raises:
      ValueError: they are not a matrix, have fewer than `least` rows, or non-finite values; names
        them.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"{name} has shape {features.shape}; expected [clips, {columns}]")
    if features.shape[0] < least:
        raise ValueError(f"{name} has {features.shape[0]} rows; at least {least} are needed")
    finite_rows = np.isfinite(features).all(axis=1)
    if not finite_rows.all():
        raise ValueError(
            f"{name} has NaN or infinity in {int((~finite_rows).sum())} of {len(features)} rows, "
            f"first in row {int(np.argmin(finite_rows))}"
        )
    return features


def checked_pair(
    generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m _"]
) -> tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, "m d"]]:
    """Two sets in float64.

    Raises:
      ValueError: as `checked_features`, or the numbers of features differ.
    """
    generated = checked_features(generated, "generated")
    reference = checked_features(reference, "reference")
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated has {generated.shape[1]} features and reference has "
            f"{reference.shape[1]}; both must come from the same network"
        )
    return generated, reference


def pooled(
    features: Float[np.ndarray, "n *patches d"],
) -> tuple[Float[np.ndarray, "N d"], Int[np.ndarray, " N"]]:
    """The vectors of all clips or patches as one set, and the clip of each.

    Args:
      features: one vector a clip, or one for each of its patches. A patch that is NaN throughout
        is one that a shorter clip lacks.

    Raises:
      ValueError: a clip has no patch.
    """
    if features.ndim == 2:
        return features, np.arange(len(features))
    present = np.any(~np.isnan(features), axis=-1)
    empty = ~np.any(present, axis=1)
    if empty.any():
        raise ValueError(
            f"{int(empty.sum())} of {len(features)} clips have no patch, first clip "
            f"{int(np.argmax(empty))}"
        )
    return features[present], np.nonzero(present)[0]


def of_clips(
    influence: Float64[np.ndarray, " N"], clips: Int[np.ndarray, " N"]
) -> Float64[np.ndarray, " n"]:
    """Influences of clips, from those of their vectors and the clip of each, as `pooled` gives."""
    number = int(clips[-1]) + 1
    return number / len(clips) * np.bincount(clips, influence, number)


def squared_distances(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float64[np.ndarray, "b m"]]]:
    """Squared Euclidean distances of some rows of x to all of y, with the place of these rows.

    They come from inner products of the rows around a common mean; what is below the rounding of
    those is 0, so that copies are at distance 0.
    """
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norms, other_norms = np.sum(x**2, axis=1), np.sum(y**2, axis=1)
    rounding = 4 * x.shape[1] * np.finfo(np.float64).eps * (norms.max() + other_norms.max())
    twice = -2 * y.T
    for start in range(0, len(x), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(x)))
        squared = x[rows] @ twice
        squared += norms[rows, None]
        squared += other_norms
        squared[squared < rounding] = 0.0
        yield rows, squared
