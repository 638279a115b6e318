"""A metric of its own: how far the loudness of a sound is from that of the real clip."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.metric import Metric, Needs, NotMeasured, Quantity
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.evaluation.tagger_metrics import AttributeAccuracy, EventAccuracy, RecallAtK
from fasttta_jax.metrics.intervals import Measured

TAGGER_METRICS: tuple[Metric, ...] = (
    EventAccuracy(),
    AttributeAccuracy(),
    RecallAtK(),
    TAGGER_FRECHET,
)
"""Those of the tagger; what else an evaluation computes changes no test of them."""


@dataclasses.dataclass(frozen=True)
class LevelError:
    """Mean absolute difference of the root mean square, in decibels."""

    quantity = Quantity(
        "level_error", "level error, dB", "mean difference of loudness to the real clip", "lower"
    )
    needs = Needs(reference="test", paired=True)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        if reference is None or len(clips) < 2:
            raise NotMeasured("an error of the mean needs two clips")
        differences = np.abs(_decibels(clips) - _decibels(reference))
        error = np.std(differences, ddof=1) / math.sqrt(len(differences))
        return Measured(float(differences.mean()), float(error), len(differences))


def _decibels(clips: Clips) -> np.ndarray:
    power = np.mean(to_float(clips.audio).astype(np.float64) ** 2, axis=1)
    return 10 * np.log10(power + 1e-10)
