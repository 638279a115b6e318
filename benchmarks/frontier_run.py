"""Judges and times the rows of a frontier, and writes what is known of all after each."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from benchmarks import frontier_grid, measure
from benchmarks.frontier_grid import Row
from benchmarks.frontier_plot import frontier_png
from benchmarks.frontier_table import PLOT_FILE, to_markdown
from benchmarks.frontier_times import Cell, Limits, Rate, time_cell
from benchmarks.rows import choose
from benchmarks.settings import SettingEvaluator, read
from fasttta_jax.config import DecodeConfig
from fasttta_jax.evaluation.evaluator import METRICS
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationError
from fasttta_jax.evaluation.tagger_distances import TAGGER_KERNEL, TAGGER_TWO_SAMPLE
from fasttta_jax.generation.pipeline import GenerateConfig
from fasttta_jax.generation.time_budget import write_quality
from fasttta_jax.performance.flops import sampling_flops
from fasttta_jax.storage.files import write_atomically, write_json
from fasttta_jax.workdir.folder import Workdir

logger = logging.getLogger("fasttta_jax.frontier")

JUDGES = (*METRICS, TAGGER_KERNEL, TAGGER_TWO_SAMPLE)
FIGURES = tuple(metric.quantity.name for metric in JUDGES)
TIMES_FOLDER = "times"
RESULT_FILE = "frontier.json"
TABLE_FILE = "frontier.md"
BUSY = 0.5
"""Load of the machine, over one minute, from which a warning says that times are not to be had."""


class Frontier:
    """Judges and times rows, and writes what is known of all after each.

    Args:
      config: the runs by name, data, clips, seed and output folder.
      figure: what the ratios and the plot take for quality.
      batch_sizes: that are timed.
      limits: of the timing.

    Raises:
      EvaluationError: `figure` is none of those that are computed, or the runs do not fit the data.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        *,
        figure: str,
        batch_sizes: Sequence[int],
        limits: Limits,
    ) -> None:
        if figure not in FIGURES:
            raise EvaluationError(f"--figure is {figure!r}; allowed: {', '.join(FIGURES)}")
        self.runs = {name: Workdir(path).config() for name, path in config.runs.items()}
        self.rows = frontier_grid.plan(self.runs)
        self.load = os.getloadavg()[0]
        if batch_sizes and self.load > BUSY:
            logger.warning("something else runs (load %.1f): times will be too long", self.load)
        self.out = pathlib.Path(config.out)
        (self.out / TIMES_FOLDER).mkdir(parents=True, exist_ok=True)
        self.batch_sizes, self.limits, self.figure = sorted(batch_sizes), limits, figure
        self.evaluator = SettingEvaluator(
            config, [row.setting for row in self.rows], JUDGES, with_energy=False
        )
        self.machine = measure.machine()
        self.rate = Rate()

    def run(self, only: str = "") -> dict[str, Any]:
        """Does what is missing of the rows that a regular expression finds.

        Returns:
          What frontier.json holds: every row of which something is known, and the paper's teacher,
          whose operations are.

        Raises:
          ValueError: no row is found, or `only` is no regular expression.
        """
        chosen = choose(self.rows, only)
        results = self.write()
        with tqdm.tqdm(chosen, "rows", unit="row") as progress:
            for row in progress:
                progress.set_postfix_str(row.name)
                self._time(row)
                self.evaluator.row(row.setting)
                results = self.write()
        return results

    def _times_file(self, row: Row) -> pathlib.Path:
        return self.out / TIMES_FOLDER / f"{row.setting.name}.json"

    def _known_times(self, row: Row) -> dict[str, Cell]:
        """Those of this machine and these parameters, by batch size."""
        found = read(self._times_file(row))
        return found["cells"] if found.get("made_from") == self._made_from(row) else {}

    def _made_from(self, row: Row) -> dict[str, Any]:
        sha256 = self.evaluator.hashes[row.setting.run]
        return {"machine": self.machine, "parameters_sha256": sha256}

    def _time(self, row: Row) -> None:
        """Times the cells that are missing, and those that were left out."""
        evaluator = self.evaluator.evaluator
        name, cells = row.setting.name, self._known_times(row)
        trained = evaluator.setup.trained[name]
        flops = sampling_flops(trained.config).total
        for size in self.batch_sizes:
            if "seconds" not in cells.get(str(size), {}):
                sampler = evaluator.runs.pipeline(name).sampler(GenerateConfig(batch_size=size))
                cells[str(size)] = time_cell(
                    sampler,
                    trained.params,
                    evaluator.test.prompts,
                    limits=self.limits,
                    flops=size * flops,
                    rate=self.rate,
                    anew=size == self.batch_sizes[0],
                )
                found = {"made_from": self._made_from(row), "cells": cells}
                write_json(self._times_file(row), found)

    def write(self) -> dict[str, Any]:
        """Writes what is known, as JSON, Markdown and plot."""
        evaluator = self.evaluator
        rows, paper = [], frontier_grid.paper_teacher(self.rows)
        for row in self.rows:
            figures, times = evaluator.known(row.setting), self._known_times(row)
            if figures or times or row == paper:
                rows.append(self._row(row, figures, times))
        config = evaluator.evaluator.config
        quantities = [dataclasses.asdict(metric.quantity) for metric in evaluator.evaluator.metrics]
        results = {
            "rows": rows,
            "references": evaluator.references(),
            "quantities": quantities,
            "figure": self.figure,
            "batch_sizes": [str(size) for size in self.batch_sizes],
            "clips": {
                "single": config.num_clips,
                "scenes": config.num_scenes,
                "seed": config.seed,
            },
            "machine": self.machine,
            "load": self.load,
            "warnings": evaluator.warnings,
        }
        write_json(self.out / RESULT_FILE, results)
        write_atomically(self.out / TABLE_FILE, to_markdown(results).encode())
        quantity = next(one for one in quantities if one["name"] == self.figure)
        write_atomically(self.out / PLOT_FILE, frontier_png(results, quantity))
        self._keep_quality(quantity)
        return results

    def _row(
        self, row: Row, figures: Mapping[str, Any] | None, times: Mapping[str, Cell]
    ) -> dict[str, Any]:
        setting = row.setting
        return {
            "name": row.name,
            "series": row.series,
            "run": setting.run,
            "iterations": setting.decode.num_iterations,
            "sampling_steps": setting.sampling_steps,
            "decode": dataclasses.asdict(setting.decode),
            **frontier_grid.cost(self.runs, row),
            "figures": figures,
            "times": dict(times),
        }

    def _keep_quality(self, quantity: Mapping[str, str]) -> None:
        """Keeps the order of a run's rows for `generate.py --max_seconds`."""
        name, sign = quantity["name"], 1 if quantity["better"] == "higher" else -1
        by_model: dict[str, dict[tuple[DecodeConfig, int | None], float]] = {}
        for row in self.rows:
            figures = self.evaluator.known(row.setting) or {}
            if figures.get(name) is not None:
                found = by_model.setdefault(self.evaluator.hashes[row.setting.run], {})
                found[row.setting.decode, row.setting.sampling_steps] = sign * figures[name]
        for model, settings in by_model.items():
            write_quality(model, name, settings)
