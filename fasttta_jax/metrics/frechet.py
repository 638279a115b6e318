"""Fréchet distance between two sets of features, each summarised by its mean and covariance.

    d^2 = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^{1/2}

With centred, scaled features A and B (S_a = A^T A, S_b = B^T B) the last trace is the nuclear norm
of A B^T: the non-zero eigenvalues of S_a S_b are the squared singular values of that matrix. It is
taken on the triangular factors of A and B, so no d x d square root is formed and singular
covariances need no jitter.

Source: Dowson and Landau, 1982 (the distance); Heusel et al., 2017, arXiv:1706.08500 (its use on
network features).
Dimensions: n and m clips, d features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64


def frechet_distance(
    features_a: Float[np.ndarray, "n d"], features_b: Float[np.ndarray, "m d"]
) -> float:
    """Squared 2-Wasserstein distance between the Gaussians fitted to two sets of features.

    The sample covariance divides by n - 1. Everything is computed in float64. The estimate is
    biased upwards when n or m is not large against d: compare only figures of equal n, m.

    Args:
      features_a: one row for each clip of the first set.
      features_b: one row for each clip of the second set.

    Returns:
      A number >= 0, in squared units of the features.

    Raises:
      ValueError: a set is not a matrix, has fewer than two rows or non-finite values, or the two
        have different numbers of features.
    """
    a = _checked(features_a, "features_a")
    b = _checked(features_b, "features_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features_a has {a.shape[1]} features and features_b has {b.shape[1]}; "
            "both must come from the same network"
        )
    mean_a, factor_a = _mean_and_factor(a)
    mean_b, factor_b = _mean_and_factor(b)
    cross_trace = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    distance = (
        np.sum((mean_a - mean_b) ** 2)
        + np.sum(factor_a**2)
        + np.sum(factor_b**2)
        - 2.0 * cross_trace
    )
    return max(float(distance), 0.0)


def _checked(features: np.ndarray, name: str) -> Float64[np.ndarray, "n d"]:
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"{name} has shape {features.shape}; expected [clips, features]")
    if features.shape[0] < 2:
        raise ValueError(f"{name} has {features.shape[0]} rows; a covariance needs at least 2")
    finite_rows = np.isfinite(features).all(axis=1)
    if not finite_rows.all():
        raise ValueError(
            f"{name} has NaN or infinity in {int((~finite_rows).sum())} of {len(features)} rows, "
            f"first in row {int(np.argmin(finite_rows))}"
        )
    return features


def _mean_and_factor(
    features: Float64[np.ndarray, "n d"],
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "r d"]]:
    """The mean [d] and a triangular R [min(n, d), d] with R^T R = covariance."""
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.asarray(np.linalg.qr(centred, mode="r"))
