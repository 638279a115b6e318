"""Shares are counted right, with the error of a proportion."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.metrics.accuracy import attribute_accuracy, event_accuracy, recall_at_k
from fasttta_jax.metrics.intervals import proportion


def test_a_proportion_has_its_binomial_error() -> None:
    found = proportion(1, 4)
    assert (found.value, found.count) == (0.25, 4)
    assert found.standard_error == pytest.approx((0.25 * 0.75 / 4) ** 0.5)
    for hits, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"{hits} hits of {count}"):
            proportion(hits, count)


def test_scores_by_hand() -> None:
    probabilities = np.array([[0.9, 0.2, 0.1], [0.3, 0.2, 0.4], [0.1, 0.8, 0.7]])
    assert event_accuracy(probabilities, np.array([0, 1, 1])) == proportion(2, 3)
    events = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]], bool)
    assert recall_at_k(probabilities, events) == proportion(2 + 1 + 2, 6)
    events[0, 2] = True
    assert recall_at_k(probabilities, events) == proportion(3 + 1 + 2, 7)
    values = [np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.4, 0.6], [0.9, 0.1]])]
    attributes = np.array([[0, 0], [1, -1]])
    mask = np.array([[True, True], [True, False]])
    assert attribute_accuracy(values, attributes, mask) == proportion(2, 3)
    with pytest.raises(ValueError, match="unknown, first in clip 1"):
        attribute_accuracy(values, attributes, np.ones((2, 2), bool))
    with pytest.raises(ValueError, match=r"no .* pair"):
        attribute_accuracy(values, attributes, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="two events or more"):
        recall_at_k(probabilities, np.eye(3, dtype=bool))
