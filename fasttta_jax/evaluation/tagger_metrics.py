"""Metrics of what the tagger recognises: events, attributes, and several events of a clip.

Dimensions: n clips, E events, A attribute axes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from jaxtyping import Int

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedders import Features
from fasttta_jax.evaluation.labels import (
    Vocabulary,
    labels_for,
    labels_to_arrays,
    mentioned_mask,
)
from fasttta_jax.evaluation.metric import Needs, NotMeasured, Quantity
from fasttta_jax.evaluation.tagger import EVENTS, axis_name, vocabulary_in
from fasttta_jax.metrics.accuracy import attribute_accuracy, event_accuracy, recall_at_k
from fasttta_jax.metrics.intervals import Measured


@dataclasses.dataclass(frozen=True)
class EventAccuracy:
    """Share of single-event clips whose event is the likeliest one."""

    quantity = Quantity(
        "event_accuracy",
        "event accuracy",
        "the likeliest event is the one asked for, in single-event clips",
        "higher",
    )
    needs = Needs(embedder="tagger", labels=True)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        features, asked = _single_events(clips)
        return event_accuracy(features.probabilities[EVENTS], asked)


@dataclasses.dataclass(frozen=True)
class AttributeAccuracy:
    """Share of the attributes that captions mention which are recognised."""

    quantity = Quantity(
        "attribute_accuracy",
        "attribute accuracy",
        "over the attributes that a caption mentions, in single-event clips",
        "higher",
    )
    needs = Needs(embedder="tagger", labels=True)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        clips = _with_one_event(clips)
        features = _features(clips)
        vocabulary = vocabulary_in(features)
        labels = labels_for(clips.labels, vocabulary.axes)
        mask = mentioned_mask(labels, [0] * len(labels), list(vocabulary.axes))
        if not mask.any():
            raise NotMeasured("no caption mentions an attribute that the tagger knows")
        return attribute_accuracy(
            [features.probabilities[axis_name(axis)] for axis in vocabulary.axes],
            labels_to_arrays(labels, vocabulary).attributes,
            mask,
        )


@dataclasses.dataclass(frozen=True)
class RecallAtK:
    """Share of the events of clips with several that are among the k likeliest."""

    quantity = Quantity(
        "recall_at_k",
        "scene recall@k",
        "share of the k events of clips with several that are among the k likeliest",
        "higher",
    )
    needs = Needs(embedder="tagger", labels=True)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        rows = clips.scenes()
        if not rows:
            raise NotMeasured("no clip has several events")
        clips = clips.take(rows)
        features = _features(clips)
        vocabulary = vocabulary_in(features)
        events = labels_to_arrays(labels_for(clips.labels, vocabulary.axes), vocabulary).events
        return recall_at_k(features.probabilities[EVENTS], events)


@dataclasses.dataclass(frozen=True)
class EventCount:
    """How the clips of one event fared.

    Attributes:
      event: what was asked for.
      clips: how often.
      right: how often the tagger found it the likeliest.
      taken_for: other events that it found likelier, with their numbers, the most frequent first.
    """

    event: str
    clips: int
    right: int
    taken_for: tuple[tuple[str, int], ...]


def event_counts(clips: Clips) -> tuple[EventCount, ...]:
    """Single-event clips, with the tagger's features, event by event.

    Raises:
      NotMeasured: no clip has a single event.
    """
    features, asked = _single_events(clips)
    found = features.probabilities[EVENTS].argmax(axis=1)
    names = features.classes[EVENTS]
    counts = []
    for event in np.unique(asked):
        predicted = Counter(found[asked == event].tolist())
        right = predicted.pop(int(event), 0)
        total = right + predicted.total()
        mistakes = tuple((names[i], n) for i, n in predicted.most_common())
        counts.append(EventCount(names[event], total, right, mistakes))
    return tuple(counts)


def _single_events(clips: Clips) -> tuple[Features, Int[np.ndarray, " n"]]:
    """Features of the single-event clips, and the index of each one's event."""
    clips = _with_one_event(clips)
    features = _features(clips)
    vocabulary = Vocabulary(features.classes[EVENTS], {})
    events = labels_to_arrays(labels_for(clips.labels, {}), vocabulary).events
    return features, events.argmax(axis=1)


def _with_one_event(clips: Clips) -> Clips:
    rows = clips.rows_with(1)
    if not rows:
        raise NotMeasured("no clip has a single event")
    return clips.take(rows)


def _features(clips: Clips) -> Features:
    if clips.features is None:
        raise ValueError("the clips have no features; this metric needs the tagger's")
    return clips.features
