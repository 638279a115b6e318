"""Rows of an evaluation: every figure of one set of clips by its name, and their JSON form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fasttta_jax.evaluation.judging import Judged
from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.tagger_metrics import EventCount
from fasttta_jax.evaluation.timing import SamplingTime
from fasttta_jax.metrics.energy_score import HeldOutEnergy
from fasttta_jax.metrics.intervals import Measured

REAL = "real"
REFERENCES = (REAL, "codec")
"""Names of the rows of real clips."""
ENERGY_SCORE = Quantity(
    "energy_score",
    "energy score",
    "how well single tokens of unseen clips are predicted",
    "lower",
)
SAMPLING = "sampling_ms"
TIMES_SLOWER = "times_slower"


def sampling_quantity(batch_size: int) -> Quantity:
    """The median sampling time; its heading names the batch."""
    return Quantity(
        SAMPLING,
        f"sampling, ms, batch of {batch_size}",
        "median of warm calls of the token sampler",
        "lower",
    )


def times_slower_quantity(run: str) -> Quantity:
    """The median sampling time over that of a run, which the heading names."""
    return Quantity(
        TIMES_SLOWER, f"times slower than {run}", f"sampling time over that of {run}", "lower"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RowResult:
    """Everything that was found for one row of the main table.

    Attributes:
      name: "real", "codec", or the name of a run or of a folder of sounds.
      kind: "reference", "sounds", or the run's objective.
      values: the figures, by the names of their quantities.
      not_measured: by name, why a figure is missing.
      num_events: clips by the number of events that their labels name.
      events: single-event clips event by event; empty without labels or a tagger.
      energy: the energy score in detail; runs only.
      sampling: sampling times in detail; runs only.
      left_out: what of a folder of sounds was left out.
      judged: what the figures of a protocol were taken on; None without one.
    """

    name: str
    kind: str
    values: Mapping[str, Measured]
    not_measured: Mapping[str, str] = dataclasses.field(default_factory=dict)
    num_events: Mapping[int, int] = dataclasses.field(default_factory=dict)
    events: Sequence[EventCount] = ()
    energy: HeldOutEnergy | None = None
    sampling: SamplingTime | None = None
    left_out: Mapping[str, Any] | None = None
    judged: Judged | None = None

    @property
    def num_scenes(self) -> int:
        """Clips whose labels name several events."""
        return sum(clips for number, clips in self.num_events.items() if number > 1)

    def with_judged(self, judged: Judged) -> RowResult:
        """The row with further figures."""
        return dataclasses.replace(
            self,
            values={**self.values, **judged.values},
            not_measured={**self.not_measured, **judged.not_measured},
            judged=judged,
        )

    def to_json(self, quantities: Sequence[Quantity]) -> dict[str, Any]:
        """All figures with their errors and counts; null for those that were not measured.

        Args:
          quantities: those of the evaluation.
        """
        result: dict[str, Any] = {"kind": self.kind}
        for quantity in quantities:
            result |= _to_json(quantity.name, self.values.get(quantity.name))
        result["not_measured"] = dict(self.not_measured)
        result["num_clips"] = sum(self.num_events.values()) - self.num_scenes
        result["num_scenes"] = self.num_scenes
        if self.energy is not None:
            error = finite_or_none(self.energy.standard_error)
            result["energy"] = self.energy._asdict() | {"standard_error": error}
        if self.sampling is not None:
            result["sampling"] = self.sampling.to_json()
        if self.left_out is not None:
            result["sounds"] = dict(self.left_out)
        if self.judged is not None:
            result["judged"] = dict(self.judged.about)
        result["events"] = {
            count.event: {
                "clips": count.clips,
                "right": count.right,
                "taken_for": dict(count.taken_for),
            }
            for count in self.events
        }
        return result


def energy_value(energy: HeldOutEnergy) -> Measured:
    """The figure `ENERGY_SCORE`."""
    return Measured(energy.mean, finite_or_none(energy.standard_error), energy.num_clips)


def sampling_value(sampling: SamplingTime) -> Measured:
    """The figure `sampling_quantity`."""
    return Measured(1000 * sampling.median, count=len(sampling.timing.calls))


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _to_json(name: str, measured: Measured | None) -> dict[str, Any]:
    if measured is None:
        return {name: None}
    result: dict[str, Any] = {name: finite_or_none(measured.value)}
    if measured.standard_error is not None:
        result[f"{name}_standard_error"] = finite_or_none(measured.standard_error)
    if measured.count is not None:
        result[f"{name}_count"] = measured.count
    if measured.interval is not None:
        result[f"{name}_interval"] = [finite_or_none(bound) for bound in measured.interval]
    return result
