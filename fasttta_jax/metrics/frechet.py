"""Fréchet distance between two sets of features, each summarised by its mean and covariance.

    d^2 = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^{1/2}

With centred, scaled features A and B (S_a = A^T A, S_b = B^T B) the last trace is the nuclear norm
of A B^T: the non-zero eigenvalues of S_a S_b are the squared singular values of that matrix. It is
taken on the triangular factors of A and B, so no d x d square root is formed and singular
covariances need no jitter.

How far row i of the first set moves the distance follows from the same singular vectors: with
A B^T = U s V^T, up to a constant,

    influence_i = n (|A_i|^2 - sum_k s_k U_ik^2) + 2 (mu_a - mu_b) . (a_i - mu_a).

Source: Dowson and Landau, 1982 (the distance); Heusel et al., 2017, arXiv:1706.08500 (its use on
network features); Rippl, Munk and Sturm, 2016, arXiv:1507.04090 (its derivative); Chong and
Forsyth, 2020, arXiv:1911.07023 (its limit for many clips).
Dimensions: n and m clips, d features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from fasttta_jax.metrics.features import checked_features, of_clips, pooled
from fasttta_jax.metrics.intervals import Estimate


class FrechetLimit(NamedTuple):
    """The distance extrapolated to infinitely many clips.

    Attributes:
      value: the distance of all clips there are.
      limit: of infinitely many; may be negative for sets of one distribution.
      shares: of the clips of either set, in each subset.
      distances: of the subsets.
      residual: root mean square of what the straight line leaves of `distances`.
    """

    value: float
    limit: float
    shares: tuple[float, ...]
    distances: tuple[float, ...]
    residual: float

    @property
    def bias(self) -> float:
        """How much of the value is due to the number of clips."""
        return self.value - self.limit


def frechet_distance(
    features_a: Float[np.ndarray, "n d"],
    features_b: Float[np.ndarray, "m _"],
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
    a, b = _gaussian(features_a, "features_a"), _gaussian(features_b, "features_b")
    _check_same_features(a, b, "features_a", "features_b")
    cross = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False)
    return _distance(a, b, cross)


def frechet_estimate(
    generated: Float[np.ndarray, "n *patches d"],
    reference: Float[np.ndarray, "m *other _"],
) -> Estimate:
    """The distance of `frechet_distance` with the influence of every clip, by one decomposition.

    Args:
      generated: features of each generated clip, or of each of its patches: see `features.pooled`.
      reference: likewise of the real clips.

    Raises:
      ValueError: as `frechet_distance`.
    """
    rows, clips = pooled(generated)
    a = _gaussian(rows, "generated", with_basis=True)
    reference_rows, reference_clips = pooled(reference)
    b = _gaussian(reference_rows, "reference", with_basis=True)
    _check_same_features(a, b, "generated", "reference")
    left, cross, right = np.linalg.svd(a.factor @ b.factor.T, full_matrices=False)
    shift = a.mean - b.mean
    return Estimate(
        _distance(a, b, cross),
        of_clips(_influence(a, left, cross, shift), clips),
        of_clips(_influence(b, right.T, cross, -shift), reference_clips),
    )


def frechet_limit(
    generated: Float[np.ndarray, "n *patches d"],
    reference: Float[np.ndarray, "m *other _"],
    *,
    num_subsets: int = 15,
    smallest: float = 0.5,
    seed: int = 0,
) -> FrechetLimit:
    """The distance for infinitely many clips on both sides: how much of a figure is bias.

    The expected distance is a straight line in 1/n for large n. It is fitted to random subsets of
    the same share of both sets, and read off where 1/share is 0. With fewer clips than features the
    line bends, and the limit is only closer to the truth than the value is.

    Args:
      generated: features of each generated clip, or of each of its patches.
      reference: likewise of the real clips.
      num_subsets: subsets, of shares whose inverses are evenly spaced.
      smallest: share of the clips in the smallest subset; the largest holds all.
      seed: of the subsets.

    Raises:
      ValueError: as `frechet_distance`; or fewer than two subsets, or a share that leaves fewer
        than two clips.
    """
    if num_subsets < 2 or not 2 / min(len(generated), len(reference)) <= smallest < 1:
        raise ValueError(
            f"num_subsets is {num_subsets} and smallest {smallest}; allowed: two subsets or more, "
            f"and a share below 1 that leaves two of {min(len(generated), len(reference))} clips"
        )
    rng = np.random.default_rng(seed)
    inverses = np.linspace(1.0, 1 / smallest, num_subsets)
    shares, distances = 1 / inverses, []
    for share in shares:
        subsets = []
        for features in (generated, reference):
            number = round(share * len(features))
            rows = np.sort(rng.choice(len(features), number, replace=False))
            subsets.append(pooled(features[rows])[0])
        distances.append(frechet_distance(*subsets))
    slope, limit = np.polyfit(inverses, distances, 1)
    residual = np.sqrt(np.mean((np.array(distances) - slope * inverses - limit) ** 2))
    return FrechetLimit(
        distances[0], float(limit), tuple(shares.tolist()), tuple(distances), float(residual)
    )


class _Gaussian(NamedTuple):
    """A fitted Gaussian: factor [r, d] with factor^T factor = covariance.

    With the features come `centred`, the deviations from the mean divided by the root of the rows
    less one, and `basis` [rows, r] with basis factor = centred; None stands for the identity.
    """

    mean: Float64[np.ndarray, " d"]
    factor: Float64[np.ndarray, "r d"]
    centred: Float64[np.ndarray, "rows d"] | None = None
    basis: Float64[np.ndarray, "rows r"] | None = None


def _gaussian(
    features: Float[np.ndarray, "n d"], name: str, *, with_basis: bool = False
) -> _Gaussian:
    features = checked_features(features, name)
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return _Gaussian(mean, centred, centred)
    if with_basis:
        basis, factor = np.linalg.qr(centred)
        return _Gaussian(mean, factor, centred, basis)
    return _Gaussian(mean, np.asarray(np.linalg.qr(centred, mode="r")), centred)


def _check_same_features(a: _Gaussian, b: _Gaussian, name_a: str, name_b: str) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"{name_a} has {len(a.mean)} features and {name_b} has {len(b.mean)}; "
            "both must come from the same network"
        )


def _distance(a: _Gaussian, b: _Gaussian, cross: Float64[np.ndarray, " r"]) -> float:
    distance = (
        np.sum((a.mean - b.mean) ** 2)
        + np.sum(a.factor**2)
        + np.sum(b.factor**2)
        - 2.0 * cross.sum()
    )
    return max(float(distance), 0.0)


def _influence(
    gaussian: _Gaussian,
    vectors: Float64[np.ndarray, "r s"],
    cross: Float64[np.ndarray, " s"],
    shift: Float64[np.ndarray, " d"],
) -> Float64[np.ndarray, " rows"]:
    """Influence of the rows of one set."""
    assert gaussian.centred is not None
    if gaussian.basis is not None:
        vectors = gaussian.basis @ vectors
    centred, rows = gaussian.centred, len(gaussian.centred)
    influence = rows * (np.sum(centred**2, axis=1) - vectors**2 @ cross)
    influence += 2 * np.sqrt(rows - 1) * centred @ shift
    return influence - influence.mean()
