"""Figures of the comparison of rivals, each kept with the influence of every clip on it.

So two systems are compared clip by clip, shares included. Dimensions: n clips.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.settings import Setting, SettingEvaluator
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.metric import EstimatingMetric, Metric, Needs, NotMeasured, Quantity
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.evaluation.tagger_distances import TAGGER_KERNEL, TAGGER_TWO_SAMPLE
from fasttta_jax.evaluation.tagger_metrics import AttributeAccuracy, EventAccuracy, RecallAtK
from fasttta_jax.metrics import bootstrap
from fasttta_jax.metrics.intervals import Estimate, Measured


@dataclasses.dataclass(frozen=True)
class Shares:
    """A share of what clips hold, such as their attributes, with the influence of each clip."""

    metric: Metric

    @property
    def quantity(self) -> Quantity:
        """Of the metric."""
        return self.metric.quantity

    @property
    def needs(self) -> Needs:
        """Of the metric."""
        return self.metric.needs

    def estimate(self, clips: Clips, reference: Clips | None) -> Estimate:
        """Hits over observations, both summed over clips: a ratio, whose influences those are."""
        hits, counts = np.zeros(len(clips)), np.zeros(len(clips))
        for row in range(len(clips)):
            with contextlib.suppress(NotMeasured):
                one = self.metric.score(clips.take([row]), reference, 0)
                counts[row] = one.count or 0
                hits[row] = one.value * counts[row]
        if not counts.any():
            raise NotMeasured(f"no clip counts for {self.quantity.title}")
        value = float(hits.sum() / counts.sum())
        return Estimate(value, (hits - value * counts) / counts.mean())

    def measured(self, estimate: Estimate) -> Measured:
        """See `EstimatingMetric`."""
        return bootstrap.measured(estimate)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        return self.measured(self.estimate(clips, reference))


class Kept:
    """A metric that keeps the estimate behind its last figure.

    Args:
      metric: what computes.

    Attributes:
      last: that estimate; None where nothing was measured.
    """

    def __init__(self, metric: EstimatingMetric) -> None:
        self._metric = metric
        self.last: Estimate | None = None

    @property
    def quantity(self) -> Quantity:
        """Of the metric."""
        return self._metric.quantity

    @property
    def needs(self) -> Needs:
        """Of the metric."""
        return self._metric.needs

    def estimate(self, clips: Clips, reference: Clips | None) -> Estimate:
        """See `EstimatingMetric`."""
        return self._metric.estimate(clips, reference)

    def measured(self, estimate: Estimate) -> Measured:
        """See `EstimatingMetric`."""
        self.last = estimate
        return self._metric.measured(estimate)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        return self.measured(self.estimate(clips, reference))


def judges() -> tuple[Kept, ...]:
    """What all systems are judged by, in the order of the columns."""
    shares = (EventAccuracy(), AttributeAccuracy(), RecallAtK())
    distances = (TAGGER_FRECHET, TAGGER_KERNEL, TAGGER_TWO_SAMPLE)
    return tuple(Kept(metric) for metric in (*map(Shares, shares), *distances))


class RivalEvaluator(SettingEvaluator):
    """Figures of settings on test clips, with the estimates behind them.

    Args:
      config: clips, seed and output folder; its runs are those of the settings.
      settings: what is judged.
    """

    def __init__(self, config: EvaluationConfig, settings: Sequence[Setting]) -> None:
        self._kept = judges()
        super().__init__(config, settings, self._kept, with_energy=False)

    def _evaluate(self, setting: Setting) -> dict[str, Any]:
        for metric in self._kept:
            metric.last = None
        figures = super()._evaluate(setting)
        estimates = {
            metric.quantity.name: to_json(metric.last)
            for metric in self._kept
            if metric.last is not None
        }
        return figures | {"estimates": estimates}


def to_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON values; `estimate_of` reads it."""
    reference = estimate.reference_influence
    return {
        "value": estimate.value,
        "influence": estimate.influence.tolist(),
        "reference_influence": None if reference is None else reference.tolist(),
    }


def estimate_of(figures: Mapping[str, Any], name: str) -> Estimate | None:
    """The estimate behind a figure of `RivalEvaluator`; None where it was not measured."""
    found = figures.get("estimates", {}).get(name)
    if found is None:
        return None
    reference = found["reference_influence"]
    return Estimate(
        found["value"],
        np.asarray(found["influence"], np.float64),
        None if reference is None else np.asarray(reference, np.float64),
    )


def difference(
    figures: Mapping[str, Any], ours: Mapping[str, Any], quantity: Quantity
) -> dict[str, Any] | None:
    """How far a figure is above ours on the same clips, as JSON has it; None without both.

    Args:
      figures: of a rival.
      ours: of our system.
      quantity: which figure.
    """
    one, other = (estimate_of(found, quantity.name) for found in (figures, ours))
    if one is None or other is None:
        return None
    found = bootstrap.paired_difference(one, other)
    assert found.interval is not None, "the bootstrap gives one"
    low, high = found.interval
    verdict = "cannot tell"
    if low > 0 or high < 0:
        verdict = "better" if (low > 0) == (quantity.better == "higher") else "worse"
    return {"value": found.value, "interval": [low, high], "verdict": verdict}
