"""What an evaluation found and its files: metrics.json for programs, report.html for people."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from fasttta_jax.config import flatten, to_config_dict
from fasttta_jax.evaluation import exhibits, tables
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.comparison import Comparison
from fasttta_jax.evaluation.judging import JudgingConfig
from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.rows import RowResult
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationSetup
from fasttta_jax.evaluation.sound_sets import SoundSet
from fasttta_jax.objectives import losses_of
from fasttta_jax.report.page import Gate, Report, Table, write_report
from fasttta_jax.storage.files import as_path, write_json
from fasttta_jax.workdir.metrics_log import METRICS_FILE, read_metrics

FEATURES_FOLDER = "features"
RESULT_FILE = "metrics.json"
REPORT_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
      rows: real clips, codec, the runs, then folders of sounds.
      quantities: how the figures of the rows are called.
      gates: the bounds of each row, where they were asked for.
      table: the main table.
      warnings: what a reader of the figures must know.
      notes: what is worth saying of the rows.
    """

    rows: tuple[RowResult, ...]
    quantities: tuple[Quantity, ...]
    gates: Mapping[str, tuple[Gate, ...]]
    table: Table
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def all_gates(self) -> list[Gate]:
        """The gates of all rows."""
        return [gate for found in self.gates.values() for gate in found]

    def failures(self) -> list[str]:
        """The gates that failed, each with its row."""
        return [f"{gate.row}: {gate.condition}" for gate in self.all_gates() if not gate.passed]


def write_results(
    evaluation: Evaluation,
    config: EvaluationConfig,
    setup: EvaluationSetup,
    test: Clips,
    sounds: Mapping[str, Mapping[int, Float[np.ndarray, " S"]]],
    seconds: Mapping[str, float],
) -> None:
    """Writes metrics.json and report.html into the output folder.

    Args:
      evaluation: what was found.
      config: what was asked for.
      setup: the runs and data.
      test: the test clips.
      sounds: for each row that has some, its sounds by the row of `test`.
      seconds: how long each stage took.
    """
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "evaluation": dataclasses.asdict(config),
        "environment": environment(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "run": {name: _about(setup, name) for name in setup.trained},
    }
    _write_figures(out, evaluation, settings)
    runs = [row for row in evaluation.rows if row.sampling is not None]
    with_events = any(row.events for row in evaluation.rows)
    histories = {
        name: read_metrics(trained.workdir)
        for name, trained in setup.trained.items()
        if (as_path(trained.workdir) / METRICS_FILE).is_file()
    }
    losses: dict[str, str] = {}
    for trained in setup.trained.values():
        losses |= losses_of(trained.config, trained.model.objective)
    report = Report(
        title="Evaluation of " + ", ".join(sounds),
        lead="What was made for the captions of test clips, beside the real clips.",
        created=_now(),
        prompts=exhibits.prompt_rows(test, sounds, setup.sample_rate),
        results=evaluation.table,
        gates=evaluation.all_gates(),
        details=[
            *([tables.event_table(evaluation.rows)] if with_events else []),
            *([tables.sampling_table(runs, evaluation.quantities)] if runs else []),
            *(judged_tables(evaluation, config.judging) if config.judging else []),
        ],
        curves=[
            *exhibits.comparison_figure(
                [row for row in evaluation.rows if row.judged], evaluation.quantities
            ),
            *exhibits.curves(histories, losses),
        ],
        notes=evaluation.warnings,
        about=tables.about(evaluation.rows),
        settings=flatten(settings),
    )
    write_report(out / REPORT_FILE, report)


def write_judged(
    evaluation: Evaluation,
    out: str,
    config: Mapping[str, Any],
    seconds: Mapping[str, float],
    sets: Mapping[str, SoundSet],
    judging: JudgingConfig,
) -> None:
    """Writes metrics.json and report.html of sounds that were judged without runs.

    Args:
      evaluation: what was found.
      out: the folder.
      config: what was asked for.
      seconds: how long each stage took.
      sets: the sounds, of which some can be heard in the report.
      judging: networks and protocol.
    """
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "evaluation": config,
        "environment": environment(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    _write_figures(folder, evaluation, settings)
    report = Report(
        title="Evaluation of " + ", ".join(sets),
        lead="Sets of sounds, held against the same real ones by public networks.",
        created=_now(),
        prompts=exhibits.judged_prompts(sets),
        results=evaluation.table,
        details=judged_tables(evaluation, judging),
        curves=exhibits.comparison_figure(evaluation.rows, evaluation.quantities),
        notes=evaluation.warnings,
        about=tables.ABOUT_JUDGED,
        settings=flatten(settings),
    )
    write_report(folder / REPORT_FILE, report)


def write_comparison(comparison: Comparison, out: str) -> None:
    """Writes report.html of a comparison."""
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(
        title=f"{comparison.name} against {comparison.other}",
        lead="Two systems on the same captions, with the 95 % intervals of their differences.",
        created=_now(),
        results=comparison.table(),
    )
    write_report(folder / REPORT_FILE, report)


def judged_tables(evaluation: Evaluation, judging: JudgingConfig) -> list[Table]:
    """What the figures of a protocol were taken on, and published ones where they are asked for."""
    return [
        tables.protocol_table(evaluation.rows),
        *([tables.literature_table()] if judging.literature else []),
    ]


def _write_figures(out: pathlib.Path, evaluation: Evaluation, settings: Mapping[str, Any]) -> None:
    judged = {row.name: row.judged for row in evaluation.rows if row.judged is not None}
    write_json(
        out / RESULT_FILE,
        {
            "rows": {row.name: row.to_json(evaluation.quantities) for row in evaluation.rows},
            "gates": [
                {"row": gate.row, "condition": gate.condition, "passed": gate.passed}
                for gate in evaluation.all_gates()
            ],
            "settings": settings,
            "influences": {name: one.influences_json() for name, one in judged.items()},
        },
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def environment() -> dict[str, str]:
    """Versions and machine behind the figures."""
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _about(setup: EvaluationSetup, name: str) -> dict[str, Any]:
    trained = setup.trained[name]
    return {
        **trained.origin(),
        "decode": dataclasses.asdict(setup.decode[name]),
        "config": to_config_dict(trained.config).to_dict(),
    }
