"""CLAP scores are cosines, in either convention."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.metrics.similarity import clap_scores


def test_cosines_by_hand():
    ours = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    others = np.array([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(clap_scores(ours, others), [1, 0, -1, 0.5**0.5], atol=1e-15)
    percent = clap_scores(ours, others, clamped_percent=True)
    np.testing.assert_allclose(percent, [100, 0, 0, 100 * 0.5**0.5], atol=1e-12)


def test_cosines_do_not_depend_on_length_and_agree_with_scipy():
    distance = pytest.importorskip("scipy.spatial.distance")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 5)).astype(np.float32)
    scores = clap_scores(x, y)
    expected = [1 - distance.cosine(*map(np.float64, pair)) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    np.testing.assert_allclose(clap_scores(4 * x, y), scores, rtol=1e-12)
    np.testing.assert_allclose(clap_scores(y, x), scores, rtol=1e-12)


def test_a_vector_without_direction_is_named():
    x = np.ones((4, 3))
    x[2] = 0
    with pytest.raises(ValueError, match=r"others has 1 of 4 vectors .* first in row 2"):
        clap_scores(np.ones((4, 3)), x)


@pytest.mark.usefixtures("unchecked")
def test_unpaired_sets_are_named():
    with pytest.raises(ValueError, match=r"shapes \(4, 3\) and \(5, 3\)"):
        clap_scores(np.ones((4, 3)), np.ones((5, 3)))
