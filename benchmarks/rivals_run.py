"""Runs a comparison of rivals from its options to its tables; what was done before stays done."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm

from benchmarks import measure, rivals_figures, rivals_judging, rivals_plan, rivals_training
from benchmarks.frontier_run import BUSY
from benchmarks.frontier_times import Limits
from benchmarks.rivals_figures import RivalEvaluator
from benchmarks.rivals_judging import Row
from benchmarks.rivals_plan import OURS, TEACHER, TEACHERS, Options, Run
from benchmarks.rivals_plot import rivals_png
from benchmarks.rivals_table import PLOTS, to_markdown
from benchmarks.settings import read
from fasttta_jax.storage.files import write_atomically, write_json

logger = logging.getLogger("fasttta_jax.rivals")

SETTINGS_FILE, RESULT_FILE, TABLE_FILE = "settings.json", "rivals.json", "rivals.md"
TIMES_FOLDER = "times"
LIMITS = Limits(repeats=10, seconds=3.0)


def compare(options: Options) -> dict[str, Any]:
    """Trains, tunes and judges what is missing.

    Returns:
      What rivals.json holds.

    Raises:
      RivalsError: the options, the demo's runs or the output folder do not fit.
      WorkdirError, DatasetError: a run or the data is missing.
    """
    rivals_plan.check(options)
    rivals_training.check_folder(options, rivals_plan.record(options), SETTINGS_FILE)
    load = os.getloadavg()[0]
    if load > BUSY:
        logger.warning("something else runs (load %.1f): seconds will be too long", load)
    costs = rivals_training.step_costs(options)
    runs = rivals_training.plan_runs(costs, options)
    rivals_training.train_runs(runs, costs, options)

    workdirs = {run.name: str(run.workdir) for run in runs}
    test = dataclasses.replace(options.evaluation, runs=workdirs)
    tuning = dataclasses.replace(
        test, split="validation", num_clips=options.tuning_clips, num_scenes=0
    )
    impact, *others = runs
    chosen = rivals_judging.choose(others, tuning, options.passes, options.scales, impact)
    settings = list(dict.fromkeys(row.setting for row in chosen.rows))
    evaluator = RivalEvaluator(test, settings)
    report = Report(options, runs, costs, chosen, evaluator, load)
    with tqdm.tqdm(chosen.rows, "judging", unit="row") as progress:
        for row in progress:
            progress.set_postfix_str(row.setting.name)
            evaluator.row(row.setting)
            report.write()
    if options.times:
        report.time()
    return report.write()


class Report:
    """What is known of all rows, written whole after each.

    Args:
      options: of the comparison.
      runs: all of them.
      costs: of a training step, by system.
      chosen: the rows, and how guidance was chosen.
      evaluator: of the test clips.
      load: of the machine, before the start.
    """

    def __init__(
        self,
        options: Options,
        runs: Sequence[Run],
        costs: Mapping[str, Mapping[str, Any]],
        chosen: rivals_judging.Chosen,
        evaluator: RivalEvaluator,
        load: float,
    ) -> None:
        self._options, self._chosen, self._evaluator = options, chosen, evaluator
        self._load, self._machine = load, measure.machine()
        self._quantities = [metric.quantity for metric in evaluator.evaluator.metrics]
        self._training = [self._trained(run, costs[run.system]) for run in runs]
        self._references = evaluator.references()
        self._difference = functools.cache(self._differences)

    def _trained(self, run: Run, cost: Mapping[str, Any]) -> dict[str, Any]:
        row = rivals_training.training_row(run, cost, rivals_training.training_seconds(run))
        trained = self._evaluator.evaluator.setup.trained
        models = (trained[one.setting.name] for one in self._chosen.rows if one.run == run)
        params = next((model.params for model in models), None)
        number = None if params is None else sum(leaf.size for leaf in jax.tree.leaves(params))
        return row | {"parameters": number}

    def _times_file(self, row: Row) -> pathlib.Path:
        return self._options.out / TIMES_FOLDER / f"{row.setting.name}.json"

    def _times_of(self, row: Row) -> dict[str, Any]:
        sha256 = self._evaluator.hashes[row.run.name]
        return {"machine": self._machine, "parameters_sha256": sha256}

    def _seconds(self, row: Row) -> float | None:
        """Of a clip; None where it was not timed on this machine."""
        found = read(self._times_file(row))
        if found.get("made_from") != self._times_of(row) or "seconds" not in found["cell"]:
            return None
        return found["cell"]["seconds"] / rivals_judging.TIMED_BATCH

    def time(self) -> None:
        """Times the rows that were not."""
        missing = [row for row in self._chosen.rows if self._seconds(row) is None]
        timed = rivals_judging.time_rows(self._evaluator, missing, LIMITS)
        for row, cell in tqdm.tqdm(timed, "timing", len(missing), unit="row"):
            path = self._times_file(row)
            path.parent.mkdir(exist_ok=True)
            write_json(path, {"made_from": self._times_of(row), "cell": cell})

    def _differences(self, row: Row, ours: Row) -> dict[str, Any]:
        one, other = (self._evaluator.known(side.setting) for side in (row, ours))
        found = {
            quantity.name: rivals_figures.difference(one or {}, other or {}, quantity)
            for quantity in self._quantities
        }
        return {name: one for name, one in found.items() if one is not None}

    def _ours(self, row: Row) -> Row | None:
        """What a row is held against: ours of its setting at as many passes, of IMPACT at most."""
        setting = self._options.settings[0] if row.run.setting == TEACHERS else row.run.setting
        ours = [
            one
            for one in self._chosen.rows
            if (one.run.system, one.run.setting) == (OURS, setting)
            and (row.run.system == TEACHER or one.passes == row.passes)
        ]
        found = max(ours, key=lambda one: one.passes, default=None)
        if found is None or found == row or self._evaluator.known(found.setting) is None:
            return None
        return found

    def _row(self, row: Row) -> dict[str, Any]:
        ours = self._ours(row)
        figures = dict(self._evaluator.known(row.setting) or {})
        figures.pop("estimates", None)
        return {
            "system": row.run.system,
            "setting": row.run.setting,
            "run": row.run.name,
            "passes": row.passes,
            "iterations": row.setting.decode.num_iterations,
            "sampling_steps": row.setting.sampling_steps,
            "scale": row.setting.decode.guidance_scale,
            "note": row.note,
            "gflop": rivals_judging.gflop_of(row),
            "seconds": self._seconds(row),
            "figures": figures,
            "differences": {} if ours is None else self._difference(row, ours),
        }

    def write(self) -> dict[str, Any]:
        """Writes JSON, Markdown and plots of what is judged."""
        judged = [row for row in self._chosen.rows if self._evaluator.known(row.setting)]
        config, out = self._options.evaluation, self._options.out
        results = {
            "rows": [self._row(row) for row in judged],
            "references": self._references,
            "quantities": [dataclasses.asdict(one) for one in self._quantities],
            "training": self._training,
            "guidance": list(self._chosen.tuned),
            "left_out": list(self._chosen.left_out),
            "plots": {setting: PLOTS[setting] for setting in self._options.settings},
            "clips": {
                "single": config.num_clips,
                "scenes": config.num_scenes,
                "tuning": self._options.tuning_clips,
                "seed": config.seed,
            },
            "settings": rivals_plan.record(self._options),
            "machine": self._machine,
            "load": self._load,
            "warnings": self._evaluator.warnings,
        }
        write_json(out / RESULT_FILE, results)
        write_atomically(out / TABLE_FILE, to_markdown(results).encode())
        for setting, plot in results["plots"].items():
            write_atomically(out / plot, rivals_png(results, setting, rivals_judging.CHOOSES.name))
        return results
