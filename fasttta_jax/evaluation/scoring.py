"""What the tagger says about a set of clips, real or generated: shares, and distance to real clips.

The same clips were asked for in every set: set A's clip i and set B's clip i answer one prompt.

Dimensions: n single-event clips, m two-event clips, S samples, E events, A attribute axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
from jaxtyping import Num

from fasttta_jax.evaluation.clips import (
    Clips,
    Material,
    labels_for,
)
from fasttta_jax.evaluation.tagger import (
    Tagger,
    attribute_accuracy,
    event_accuracy,
    labels_to_arrays,
    mentioned_mask,
    recall_at_2,
)
from fasttta_jax.metrics.frechet import frechet_distance


@dataclasses.dataclass(frozen=True)
class Share:
    """A proportion.

    Attributes:
      value: from 0 to 1.
      count: yes-or-no answers behind it.
    """

    value: float
    count: int

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n), as if the answers were independent."""
        return math.sqrt(self.value * (1.0 - self.value) / self.count)


@dataclasses.dataclass(frozen=True)
class EventCount:
    """How the clips of one event fared.

    Attributes:
      event: what was asked for.
      clips: how often.
      right: how often the tagger heard it.
      taken_for: other events it heard instead, with their numbers, the most frequent first.
    """

    event: str
    clips: int
    right: int
    taken_for: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of one set of clips.

    Attributes:
      event_accuracy: share of single-event clips whose event is heard as the likeliest.
      attribute_accuracy: share of mentioned attributes that are heard, in single-event clips; None
        where captions mention none.
      recall_at_2: share of a scene's two events among the two likeliest; None without scenes.
      frechet: distance between tagger embeddings of the single-event clips and of as many real
        training clips; None where fewer than two could be matched.
      num_clips: single-event clips.
      num_scenes: two-event clips.
      frechet_clips: clips on each side of the distance.
      events: single-event clips event by event.
    """

    event_accuracy: Share
    attribute_accuracy: Share | None
    recall_at_2: Share | None
    frechet: float | None
    num_clips: int
    num_scenes: int
    frechet_clips: int
    events: tuple[EventCount, ...]


class Scorer:
    """Judges sets of clips that answer the same prompts.

    Args:
      tagger: the judge.
      material: the test clips whose captions are the prompts.
      reference: real training clips for the Fréchet distance.
      matched_rows: the single-event clips that are held against them, one for each.

    Raises:
      ValueError: a test clip has an event or attribute value that the tagger never heard of.
    """

    def __init__(
        self, tagger: Tagger, material: Material, reference: Clips, matched_rows: list[int]
    ) -> None:
        spec = tagger.spec
        self._tagger = tagger
        self._matched_rows = matched_rows
        self._reference = (
            tagger.predict(reference.audio).embeddings if len(matched_rows) > 1 else None
        )
        labels = labels_for(material.singles.labels, spec)
        self._singles = labels_to_arrays(labels, spec)
        self._mentioned = mentioned_mask(labels, [0] * len(labels), spec)
        self._scenes = labels_to_arrays(labels_for(material.scenes.labels, spec), spec)

    def score(self, singles: Num[np.ndarray, "n S"], scenes: Num[np.ndarray, "m S"]) -> Scores:
        """The figures of one set: int16, or floating in [-1, 1]."""
        heard = self._tagger.predict(singles)
        asked = self._singles.events.argmax(axis=1)
        attributes = None
        if self._mentioned.any():
            value = attribute_accuracy(
                heard.attribute_probabilities, self._singles.attributes, self._mentioned
            )
            attributes = Share(value, int(self._mentioned.sum()))
        recall = None
        if len(scenes):
            probabilities = self._tagger.predict(scenes).event_probabilities
            recall = Share(recall_at_2(probabilities, self._scenes.events), 2 * len(scenes))
        frechet = None
        if self._reference is not None:
            frechet = frechet_distance(heard.embeddings[self._matched_rows], self._reference)
        return Scores(
            Share(event_accuracy(heard.event_probabilities, asked), len(singles)),
            attributes,
            recall,
            frechet,
            len(singles),
            len(scenes),
            len(self._matched_rows),
            self._by_event(asked, heard.event_probabilities.argmax(axis=1)),
        )

    def _by_event(self, asked: np.ndarray, heard: np.ndarray) -> tuple[EventCount, ...]:
        names = self._tagger.spec.events
        counts = []
        for event in np.unique(asked):
            answers = Counter(heard[asked == event].tolist())
            right = answers.pop(int(event), 0)
            total = right + answers.total()
            mistakes = tuple((names[i], n) for i, n in answers.most_common())
            counts.append(EventCount(names[event], total, right, mistakes))
        return tuple(counts)
