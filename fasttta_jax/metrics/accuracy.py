"""Shares of clips and attributes that a classifier recognises.

Dimensions: n clips, E events, A attribute axes, V values of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fasttta_jax.metrics.intervals import Measured, proportion


def event_accuracy(
    probabilities: Float[np.ndarray, "n E"], labels: Int[np.ndarray, " n"]
) -> Measured:
    """Share of single-event clips whose likeliest event is the right one (`labels`: its index).

    Raises:
      ValueError: there are no clips, or the lengths differ.
    """
    if len(labels) == 0 or probabilities.shape[:1] != np.shape(labels):
        raise ValueError(
            f"probabilities {probabilities.shape} and labels {np.shape(labels)} must be "
            "[clips, events] and [clips], with at least one clip"
        )
    return proportion(int(np.sum(probabilities.argmax(axis=1) == labels)), len(labels))


def recall_at_k(
    probabilities: Float[np.ndarray, "n E"], events: Bool[np.ndarray, "n E"]
) -> Measured:
    """Share of the events of clips with several that are among the k likeliest of their clip.

    k is how many events the clip holds.

    Raises:
      ValueError: a clip holds fewer than two events, or there are no clips.
    """
    if len(events) == 0 or probabilities.shape != events.shape or np.any(events.sum(axis=1) < 2):
        raise ValueError(
            f"recall at k needs clips with two events or more each, as [clips, events]; "
            f"probabilities are {probabilities.shape}, events {events.shape} with "
            f"{sorted(set(events.sum(axis=-1).ravel().tolist()))} events a clip"
        )
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")
    found = np.take_along_axis(events, likeliest, axis=1)
    among_k = np.arange(events.shape[1]) < events.sum(axis=1, keepdims=True)
    return proportion(int(found[among_k].sum()), int(events.sum()))


def attribute_accuracy(
    probabilities: Sequence[Float[np.ndarray, "n _"]],
    attributes: Int[np.ndarray, "n A"],
    mask: Bool[np.ndarray, "n A"],
) -> Measured:
    """Share of right values over the (clip, axis) pairs in `mask`.

    Args:
      probabilities: [n, V] of each axis, in the order of the columns of `attributes`.
      attributes: index of the value asked for; negative where it is unknown.
      mask: the pairs that count: those that the caption mentions.

    Raises:
      ValueError: the mask is empty, or holds a pair whose value is unknown.
    """
    if attributes.shape != mask.shape or attributes.shape[1:] != (len(probabilities),):
        raise ValueError(
            f"attributes {attributes.shape} and mask {mask.shape} must be [clips, axes] with "
            f"{len(probabilities)} axes"
        )
    if not mask.any():
        raise ValueError("mask holds no (clip, axis) pair, so the accuracy is not defined")
    if np.any(attributes[mask] < 0):
        clip = int(np.argwhere(mask & (attributes < 0))[0, 0])
        raise ValueError(f"mask holds a pair whose value is unknown, first in clip {clip}")
    guesses = np.stack([values.argmax(axis=1) for values in probabilities], axis=1)
    return proportion(int((guesses == attributes)[mask].sum()), int(mask.sum()))
