"""Judges the runs of a comparison: guidance chosen on validation clips, figures on test clips.

One rule for all: of the scales with which a run can sample in so many passes, that of the lowest
Fréchet distance on validation clips, the lower one where two are equal. IMPACT is judged with all
its iterations and diffusion steps, and in the cheapest setting that is as good on those clips. A
figure is kept with the influence of every clip, so that two systems are compared clip by clip.
Dimensions: n clips.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from benchmarks import frontier_grid, frontier_ratios
from benchmarks.frontier_times import Cell, Limits, Rate, time_cell
from benchmarks.rivals_plan import Run, candidates, num_passes, why_not
from benchmarks.settings import Setting, SettingEvaluator
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.metric import EstimatingMetric, Metric, Needs, NotMeasured, Quantity
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.evaluation.tagger_distances import TAGGER_KERNEL, TAGGER_TWO_SAMPLE
from fasttta_jax.evaluation.tagger_metrics import AttributeAccuracy, EventAccuracy, RecallAtK
from fasttta_jax.generation.pipeline import GenerateConfig
from fasttta_jax.metrics import bootstrap
from fasttta_jax.metrics.intervals import Estimate, Measured
from fasttta_jax.performance.flops import sampling_flops

CHOOSES = TAGGER_FRECHET.quantity
TIMED_BATCH = 8


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
            metric.quantity.name: _to_json(metric.last)
            for metric in self._kept
            if metric.last is not None
        }
        return figures | {"estimates": estimates}


def _to_json(estimate: Estimate) -> dict[str, Any]:
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


# ------------------------------------------------------------------------------------- settings


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      run: what samples.
      passes: of the network, for a clip.
      setting: how it samples.
      note: how the setting was found, where it is no number of passes that was asked for.
    """

    run: Run
    passes: int
    setting: Setting
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """How everything samples.

    Attributes:
      rows: lines of the table.
      tuned: by name of the run and passes, the scale that was chosen and the figures behind it.
      left_out: run, passes and why there is no such row.
    """

    rows: tuple[Row, ...]
    tuned: tuple[Mapping[str, Any], ...]
    left_out: tuple[Mapping[str, Any], ...]


def lowest(figures: Mapping[float, float]) -> float:
    """The scale of guidance with the lowest distance, the lower scale where two are equal."""
    return min(figures, key=lambda scale: (figures[scale], scale))


def choose(
    runs: Sequence[Run],
    config: EvaluationConfig,
    passes: Sequence[int],
    scales: Sequence[float],
    impact: Run,
) -> Chosen:
    """Chooses guidance on validation clips for every run and number of passes.

    Args:
      runs: but for IMPACT.
      config: clips and output folder of the choice.
      passes: of the network.
      scales: of guidance.
      impact: the diffusion teacher.

    Raises:
      NotMeasured: validation clips give no Fréchet distance.
    """
    options: dict[tuple[str, int], list[Setting]] = {}
    left_out = []
    for run in runs:
        for number in sorted(passes):
            found, reasons = candidates(run, number, scales)
            options[run.name, number] = found
            if not found:
                left_out.append({"run": run.name, "passes": number, "reason": why_not(reasons)})
    grid = [row.setting for row in frontier_grid.plan({impact.name: impact.config})]
    settings = [one for found in options.values() if len(found) > 1 for one in found]
    settings += [one.changed(guidance_scale=float(scale)) for one in grid for scale in scales]
    evaluator = SettingEvaluator(
        config, list(dict.fromkeys(settings)), (TAGGER_FRECHET,), with_energy=False
    )
    rows, tuned = [], []
    with tqdm.tqdm(options.items(), "choosing guidance", unit="choice") as progress:
        by_name = {run.name: run for run in runs}
        for (name, number), found in progress:
            progress.set_postfix_str(f"{name}, {number} passes")
            if not found:
                continue
            setting = found[0]
            if len(found) > 1:
                figures = _distances(evaluator, found)
                scale = lowest(figures)
                setting = next(one for one in found if one.decode.guidance_scale == scale)
                tuned.append(_tuned(name, number, scale, figures))
            rows.append(Row(by_name[name], number, setting))
    found, choice = _impact(impact, grid, evaluator, scales)
    return Chosen((*found, *rows), (choice, *tuned), tuple(left_out))


def _distances(evaluator: SettingEvaluator, settings: Sequence[Setting]) -> dict[float, float]:
    found = {}
    for setting in settings:
        row = evaluator.row(setting)
        if row[CHOOSES.name] is None:
            reason = row["not_measured"][CHOOSES.name]
            raise NotMeasured(f"guidance cannot be chosen on validation clips: {reason}")
        found[setting.decode.guidance_scale] = row[CHOOSES.name]
    return found


def _tuned(name: str, passes: int, scale: float, figures: Mapping[float, float]) -> dict[str, Any]:
    by_scale = {f"{one:g}": value for one, value in figures.items()}
    return {"run": name, "passes": passes, "scale": scale, CHOOSES.name: by_scale}


def _impact(
    run: Run, grid: Sequence[Setting], evaluator: SettingEvaluator, scales: Sequence[float]
) -> tuple[list[Row], dict[str, Any]]:
    """IMPACT with all iterations and diffusion steps, and its cheapest setting that is as good."""
    full = max(grid, key=lambda one: (one.decode.num_iterations, one.sampling_steps or 0))
    figures = _distances(evaluator, [full.changed(guidance_scale=float(one)) for one in scales])
    scale = lowest(figures)
    quantity = {"name": CHOOSES.name, "better": CHOOSES.better}
    settings = [one.changed(guidance_scale=scale) for one in grid]  # the cheapest first
    best = full.changed(guidance_scale=scale)
    reference = {"figures": evaluator.row(best)}
    cheap = next(
        one
        for one in settings
        if one == best
        or frontier_ratios.as_good({"figures": evaluator.row(one)}, reference, quantity)
    )
    rows = [Row(run, passes_of(run, best), best, "all iterations and diffusion steps")]
    if cheap != best:
        note = "cheapest within one standard error of that on validation clips"
        rows.append(Row(run, passes_of(run, cheap), cheap, note))
    return rows, _tuned(run.name, rows[0].passes, scale, figures)


def passes_of(run: Run, setting: Setting) -> int:
    """Passes of the network for a clip."""
    return num_passes(frontier_grid.sampled({run.name: run.config}, setting))


def gflop_of(row: Row) -> float:
    """Operations of a clip, in GFLOP."""
    config = frontier_grid.sampled({row.run.name: row.run.config}, row.setting)
    return sampling_flops(config).total / 1e9


def time_rows(
    evaluator: SettingEvaluator, rows: Sequence[Row], limits: Limits
) -> Iterator[tuple[Row, Cell]]:
    """Times the token sampler of each row for a batch of `TIMED_BATCH`, one after the other."""
    rate, inner = Rate(), evaluator.evaluator
    for row in rows:
        name = row.setting.name
        sampler = inner.runs.pipeline(name).sampler(GenerateConfig(batch_size=TIMED_BATCH))
        yield (
            row,
            time_cell(
                sampler,
                inner.setup.trained[name].params,
                inner.test.prompts,
                limits=limits,
                flops=1e9 * gflop_of(row) * TIMED_BATCH,
                rate=rate,
                anew=False,
            ),
        )
