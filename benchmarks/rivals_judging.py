"""Judges the runs of a comparison: guidance chosen on validation clips, figures on test clips.

One rule for all: of the scales with which a run can sample in so many passes, that of the lowest
Fréchet distance on validation clips, the lower one where two are equal. IMPACT is judged with all
its iterations and diffusion steps, and in the cheapest setting that is as good on those clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

from benchmarks import frontier_grid, frontier_ratios
from benchmarks.frontier_times import Cell, Limits, Rate, time_cell
from benchmarks.rivals_plan import Run, candidates, why_not
from benchmarks.settings import Setting, SettingEvaluator
from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.metric import NotMeasured
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.generation.pipeline import GenerateConfig
from fasttta_jax.performance.flops import sampling_flops

CHOOSES = TAGGER_FRECHET.quantity
TIMED_BATCH = 8


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
    return frontier_grid.num_passes(frontier_grid.sampled({run.name: run.config}, setting))


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
