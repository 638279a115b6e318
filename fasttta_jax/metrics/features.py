"""What metrics on sets of feature vectors share: their checks, and distances block by block.

Dimensions: n and m clips, d features, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

BLOCK_ROWS = 1024


def checked_features(features: Float[np.ndarray, "n d"], name: str) -> Float64[np.ndarray, "n d"]:
    """The features in float64.

    Raises:
      ValueError: they are not a matrix, have fewer than two rows, or non-finite values; names them.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"{name} has shape {features.shape}; expected [clips, features]")
    if features.shape[0] < 2:
        raise ValueError(f"{name} has {features.shape[0]} rows; at least 2 are needed")
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


def squared_distances(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float64[np.ndarray, "b m"]]]:
    """Squared Euclidean distances of some rows of x to all of y, with the place of these rows.

    They come from inner products of the rows around their common mean; what is below the rounding
    of those is 0, so that copies are at distance 0.
    """
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norms, other_norms = np.sum(x**2, axis=1), np.sum(y**2, axis=1)
    rounding = 4 * x.shape[1] * np.finfo(np.float64).eps
    for start in range(0, len(x), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(x)))
        sums = norms[rows, None] + other_norms
        squared = sums - 2 * x[rows] @ y.T
        squared[squared < rounding * sums] = 0.0
        yield rows, squared
