"""The Fréchet distance equals the textbook formula for every shape of problem.

In float64 an eigenvalue of a d x d matrix is good to d u of the largest, 4e-15 for d up to 32, and
so is the distance relative to the traces, which are up to three times the distance. The textbook's
root of a product of matrices loses three digits of that, at most: 1e-9 holds with room, and a
covariance divided by n instead of n - 1 is off by more than 1e-3. An eigenvalue that should be 0
enters through its root, and d of them are off by d sqrt(d u), 1e-6.
"""

import numpy as np
import pytest
import scipy.linalg

from fasttta_jax.metrics.frechet import frechet_distance


def textbook(a: np.ndarray, b: np.ndarray) -> float:
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(covariance_a + covariance_b - 2 * root.real))


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
