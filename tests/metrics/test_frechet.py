"""The Fréchet distance equals the textbook formula for every shape of problem.

In float64 an eigenvalue of a d x d matrix is good to d u of the largest, 4e-15 for d up to 32, and
so is the distance relative to the traces, which are up to three times the distance. The textbook's
root of a product of matrices loses three digits of that, at most: 1e-9 holds with room, and a
covariance divided by n instead of n - 1 is off by more than 1e-3. An eigenvalue that should be 0
enters through its root, and d of them are off by d sqrt(d u), 1e-6.
"""

import warnings

import numpy as np
import pytest
import scipy.linalg

from fasttta_jax.metrics.bootstrap import bootstrap, measured, paired_difference
from fasttta_jax.metrics.frechet import (
    frechet_distance,
    frechet_estimate,
    frechet_limit,
)


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(covariance_a + covariance_b - 2 * root.real))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 16), (20, 24, 48)])
def test_agrees_with_the_published_evaluators(n: int, m: int, d: int) -> None:
    """audioldm_eval takes sqrtm of the product, which is singular for fewer clips than features.

    The root of a number that should be 0 is off by the root of rounding, and d of them add up.
    """
    a, b = draw(20, n, d), draw(21, m, d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of singular matrices
        expected = textbook(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def draw(seed: int, n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 16), (50, 40, 32), (500, 12, 8)])
def test_equals_the_matrix_square_root_for_full_rank(n: int, m: int, d: int) -> None:
    a, b = draw(0, n, d), draw(1, m, d)
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(10, 200, 24), (200, 10, 24), (6, 9, 24)])
def test_singular_covariances_equal_the_limit_of_regular_ones(n: int, m: int, d: int) -> None:
    a, b = draw(2, n, d), draw(3, m, d)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    difference = a.mean(axis=0) - b.mean(axis=0)
    expected = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def whitened(seed: int, n: int, d: int) -> np.ndarray:
    """Features whose sample mean is 0 and whose sample covariance is the identity, exactly."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(axis=0)
    return np.linalg.qr(x)[0] * np.sqrt(n - 1)


def test_closed_form_for_gaussians_with_commuting_covariances() -> None:
    deviations_a, deviations_b = np.array([0.1, 1.0, 3.0]), np.array([2.0, 1.0, 0.5])
    shift = np.array([1.0, -2.0, 0.0])
    a = whitened(4, 100, 3) * deviations_a
    b = whitened(5, 80, 3) * deviations_b + shift
    expected = np.sum(shift**2) + np.sum((deviations_a - deviations_b) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_is_zero_for_the_same_set_and_symmetric_and_blind_to_order_and_rotation() -> None:
    a, b = draw(6, 60, 20), draw(7, 90, 20)
    scale = np.trace(np.cov(a, rowvar=False))
    assert 0.0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    rotation = np.linalg.qr(np.random.default_rng(8).normal(size=(20, 20)))[0]
    rotated = frechet_distance(a @ rotation, b @ rotation)
    assert rotated == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_a_shift_adds_its_squared_length() -> None:
    a = draw(9, 64, 5)
    assert frechet_distance(a, a + np.array([0, 3.0, 0, 4.0, 0])) == pytest.approx(25.0, rel=1e-9)


def test_float32_features_are_computed_in_float64() -> None:
    a = (whitened(10, 50, 4) * 1e-3 + 1e3).astype(np.float32)
    b = a + np.float32(0.5)
    expected = np.sum((a.astype(np.float64) - b.astype(np.float64)).mean(axis=0) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)


def test_closed_form_of_two_gaussians() -> None:
    """A hundred thousand draws of N(0, S) and N(m, T) give |m|^2 + tr(S + T - 2 (S T)^{1/2}).

    The distance is off by a few of its standard errors.
    """
    rng = np.random.default_rng(12)
    mixing, other = rng.normal(size=(2, 3, 3))
    shift = np.array([1.0, 0.0, -1.0])
    covariance, second = mixing.T @ mixing, other.T @ other
    root = scipy.linalg.sqrtm(covariance @ second).real
    expected = shift @ shift + np.trace(covariance + second - 2 * root)
    a = rng.normal(size=(100_000, 3)) @ mixing
    b = rng.normal(size=(100_000, 3)) @ other + shift
    found = measured(frechet_estimate(a, b), num_resamples=2)
    assert found.value == pytest.approx(expected, abs=4 * found.standard_error)
    assert found.standard_error < 0.05 * expected


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 6), (12, 15, 30), (40, 12, 20)])
def test_the_influence_of_a_clip_is_the_derivative_of_the_distance(n: int, m: int, d: int) -> None:
    """Differences of the distance by the weight of one clip lose half the digits of float64."""
    a, b = draw(16, n, d), draw(17, m, d)
    estimate = frechet_estimate(a, b)
    assert estimate.value == pytest.approx(frechet_distance(a, b), rel=1e-9)

    def distance(weights_a: np.ndarray, weights_b: np.ndarray) -> float:
        moments = []
        for x, weights in ((a, weights_a), (b, weights_b)):
            shares = weights / weights.sum()
            mean = shares @ x
            factor = np.sqrt(shares * len(x) / (len(x) - 1))[:, None] * (x - mean)
            moments.append((mean, factor))
        (mean_a, factor_a), (mean_b, factor_b) = moments
        nuclear = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
        squares = np.sum(factor_a**2) + np.sum(factor_b**2)
        return float(np.sum((mean_a - mean_b) ** 2) + squares - 2 * nuclear)

    for clip in (0, 5):
        step_a, step_b = 1e-5 * np.eye(n)[clip], 1e-5 * np.eye(m)[clip]
        ones_a, ones_b = np.ones(n), np.ones(m)
        slope_a = (distance(ones_a + step_a, ones_b) - distance(ones_a - step_a, ones_b)) / 2e-5
        slope_b = (distance(ones_a, ones_b + step_b) - distance(ones_a, ones_b - step_b)) / 2e-5
        assert estimate.influence[clip] / n == pytest.approx(slope_a, rel=1e-4, abs=1e-5)
        assert estimate.reference_influence[clip] / m == pytest.approx(slope_b, rel=1e-4, abs=1e-5)


def test_patches_are_pooled_and_stay_with_their_clip() -> None:
    a, b = draw(18, 60, 5).reshape(20, 3, 5), draw(19, 45, 5).reshape(15, 3, 5)
    estimate = frechet_estimate(a, b)
    assert estimate.value == pytest.approx(frechet_distance(a.reshape(60, 5), b.reshape(45, 5)))
    rows = frechet_estimate(a.reshape(60, 5), b.reshape(45, 5))
    np.testing.assert_allclose(estimate.influence, rows.influence.reshape(20, 3).mean(axis=1))
    padded = np.concatenate([a, np.full((20, 1, 5), np.nan)], axis=1)
    np.testing.assert_allclose(frechet_estimate(padded, b).influence, estimate.influence)
    padded[0, 1:] = np.nan
    shorter = frechet_estimate(padded, b)
    assert shorter.value == pytest.approx(
        frechet_distance(a.reshape(60, 5)[[0, *range(3, 60)]], b.reshape(45, 5))
    )
    assert shorter.influence.mean() == pytest.approx(0, abs=1e-9)
    padded[3] = np.nan
    with pytest.raises(ValueError, match="1 of 20 clips have no patch, first clip 3"):
        frechet_estimate(padded, b)
    copies = np.repeat(draw(22, 40, 5)[:, None], 4, axis=1)
    single = frechet_estimate(copies[:, 0], b[:, 0])
    repeated = frechet_estimate(copies, b[:, 0])
    # four copies of a clip are one clip for an error, but for the divisor n - 1
    assert measured(repeated).standard_error == pytest.approx(
        measured(single).standard_error, rel=0.05
    )


@pytest.mark.parametrize(("n", "d"), [(60, 100), (60, 10)])
def test_errors_are_those_of_new_clips_where_drawing_clips_anew_overstates_them(
    n: int, d: int
) -> None:
    rng = np.random.default_rng(23)
    scales = np.arange(1, d + 1) ** -0.25
    found, values = [], []
    for _ in range(100):
        a = rng.normal(size=(n, d)) * scales
        b = 1.2 * rng.normal(size=(n, d)) * scales + 0.3
        found.append(measured(frechet_estimate(a, b), num_resamples=200))
        values.append(found[-1].value)
    truth, error = np.mean(values), np.std(values, ddof=1)
    cover = np.mean([one.interval[0] <= truth <= one.interval[1] for one in found])
    assert 0.95 - 0.066 < cover <= 1.0
    errors = np.mean([one.standard_error for one in found])
    assert 0.85 * error < errors < 1.4 * error
    both = np.concatenate([a, b], axis=1)
    drawn = bootstrap(
        lambda rows: frechet_distance(both[rows, :d], both[rows, d:]), n, num_resamples=50
    )
    if n < d:
        paired = measured(frechet_estimate(a, b).paired(), num_resamples=2)
        assert drawn.standard_error > 1.4 * paired.standard_error


@pytest.mark.parametrize(("n", "d"), [(60, 100), (60, 10)])
def test_the_difference_of_two_systems_on_the_same_prompts_is_known_as_well_as_it_says(
    n: int, d: int
) -> None:
    rng = np.random.default_rng(25)
    scales = np.arange(1, d + 1) ** -0.25
    found = []
    for _ in range(100):
        prompts, *noise = rng.normal(size=(4, n, d)) * scales
        real, one, other = (prompts + 0.7 * part for part in noise)
        sides = (1.1 * one + 0.2, other)
        estimates = [frechet_estimate(side, real).paired() for side in sides]
        found.append(paired_difference(*estimates, num_resamples=200))
    differences = np.array([one.value for one in found])
    error = differences.std(ddof=1)
    assert 0.85 * error < np.mean([one.standard_error for one in found]) < 1.4 * error
    truth = differences.mean()
    cover = np.mean([one.interval[0] <= truth <= one.interval[1] for one in found])
    assert 0.95 - 0.066 < cover <= 1.0


def test_the_limit_is_closer_to_the_truth_than_the_value() -> None:
    """Two sets of one distribution, whose distance is 0, and two a known distance apart."""
    rng = np.random.default_rng(24)
    a, b = rng.normal(size=(2, 300, 20))
    found = frechet_limit(a, b)
    assert found.value == frechet_distance(a, b)
    assert found.shares[0] == 1.0
    assert found.distances[-1] > found.distances[0] > 0
    assert abs(found.limit) < 0.3 * found.value
    assert found.bias == found.value - found.limit
    assert found == frechet_limit(a, b), "by seed"
    scaled = frechet_limit(a, 2 * b)
    assert abs(scaled.limit - 20) < abs(scaled.value - 20)
    with pytest.raises(ValueError, match=r"smallest 0.001; allowed"):
        frechet_limit(a, b, smallest=0.001)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    good = draw(11, 10, 4)
    with pytest.raises(ValueError, match=r"features_b has 1 rows"):
        frechet_distance(good, good[:1])
    with pytest.raises(ValueError, match=r"has 4 features and features_b has 3"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(ValueError, match=r"features_a has shape \(10,\)"):
        frechet_distance(good[:, 0], good)
    bad = good.copy()
    bad[7, 2] = np.inf
    with pytest.raises(ValueError, match=r"features_a has NaN or infinity in 1 of 10 .* row 7"):
        frechet_distance(bad, good)
