"""The frontier: rows as data, arithmetic of its ratios, and a killed run that loses nothing."""

from __future__ import annotations

import dataclasses
import json
import types

import pytest
from absl import flags

from benchmarks import frontier, frontier_grid, frontier_machine, frontier_run, frontier_sizes
from benchmarks import frontier_ratios as ratios
from benchmarks.frontier_grid import paper_run
from benchmarks.frontier_plot import frontier_png
from benchmarks.frontier_table import sentences, to_markdown
from benchmarks.frontier_times import Limits, Rate, time_cell, warm_calls
from benchmarks.rows import choose
from benchmarks.settings import SettingEvaluator
from fasttta_jax.evaluation.evaluator import Evaluator
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationError
from fasttta_jax.generation.pipeline import GenerateConfig, Pipeline
from fasttta_jax.generation.time_budget import read_quality
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.performance.flops import sampling_flops
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.restore import load_trained
from tests.support import helpers

PAPER = {"teacher": paper_run("diffusion"), "student": paper_run("energy")}
FRECHET = {"name": "frechet", "title": "Fréchet", "better": "lower"}
RECALL = {"name": "recall", "title": "recall", "better": "higher"}


class Killed(Exception):
    """What ends a run in the middle."""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ----------------------------------------------------------------------------------------- grid


def test_every_row_is_another_setting_and_dearer_than_the_one_before():
    rows = frontier_grid.plan(PAPER)
    for names in ({row.name for row in rows}, {row.setting.name for row in rows}):
        assert len(names) == len(rows)
    costs = [frontier_grid.cost(PAPER, row) for row in rows]
    assert [one["gflop"] for one in costs] == sorted(one["gflop"] for one in costs)
    for row, one in zip(rows, costs, strict=True):
        whole = 2 * row.setting.decode.num_iterations
        assert one["passes"] < whole if "late" in row.variant else one["passes"] == whole
        assert one["paper_tflop"] == pytest.approx(one["gflop"] / 1e3)


def test_rows_fit_the_tokens_and_are_chosen_by_name():
    few = {name: _with_tokens(run, 24) for name, run in PAPER.items()}
    rows = frontier_grid.plan(few)
    assert {row.setting.decode.num_iterations for row in rows} == {16, 8, 4}
    assert {row.name for row in choose(rows, "teacher_16")} == {
        f"teacher_16x{steps}" for steps in frontier_grid.STEPS
    }
    with pytest.raises(ValueError, match="--only='xyz' finds none of the rows: "):
        choose(rows, "xyz")
    with pytest.raises(ValueError, match=r"--only='\(' is no regular expression"):
        choose(rows, "(")


def _with_tokens(run, number):
    decode = dataclasses.replace(run.decode, num_iterations=number)
    return dataclasses.replace(
        run, model=dataclasses.replace(run.model, num_tokens=number), decode=decode
    )


def test_blocks_are_cut_in_proportion_at_the_papers_size():
    full = helpers.tiny_student_config("data", "teacher")
    backbone = dataclasses.replace(full.model.backbone, encoder_depth=6, decoder_depth=4)
    full = dataclasses.replace(full, model=dataclasses.replace(full.model, backbone=backbone))
    half = dataclasses.replace(backbone, encoder_depth=3, decoder_depth=1)
    run = dataclasses.replace(full, model=dataclasses.replace(full.model, backbone=half))
    found = frontier_grid.at_paper_size(run, full)
    assert found is not None
    assert (found.model.backbone.encoder_depth, found.model.backbone.decoder_depth) == (6, 3)
    assert found.model.num_tokens == 256
    assert found.decode.num_iterations == run.decode.num_iterations


def test_the_papers_rows_take_what_was_counted_by_hand():
    """In TFLOP, in eight segments, by the formulas typed anew outside of this repository."""
    expected = {
        "teacher, 64 x 100": 13.87,
        "teacher, 32 x 20": 6.14,
        "two passes, 64": 11.46,
        "two passes, 16, reconstruction": 2.55,
        "two passes, 16, guided in (0, .25]": 1.84,
        "two passes, 16, exponential, guided in (.1, .3]": 1.54,
        "one pass, 16": 1.41,
        "one pass, 16, exponential": 1.27,
        "one pass, 32, 6+6 blocks": 1.37,
        "one pass, 32, 12+3 blocks": 1.39,
        "one pass, 16, 6+6 blocks": 0.68,
    }
    runs = {row.name: row.run for row in frontier_sizes.paper_rows() if row.name in expected}
    found = {
        name: sampling_flops(
            dataclasses.replace(run, decode=run.decode.changed(max_segments=8))
        ).total
        for name, run in runs.items()
    }
    assert {name: round(flops / 1e12, 2) for name, flops in found.items()} == expected
    lines = frontier_sizes.to_markdown(found, {name: {} for name in found}, []).splitlines()
    cells = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[3].rstrip(" |") for line in lines[2:]
    }
    assert cells["one pass, 16"] == "below 1.63"
    assert cells["one pass, 16, 6+6 blocks"] == "below 0.72"
    assert cells["two passes, 64"] == "–"


# --------------------------------------------------------------------------------------- ratios


def row(name, iterations, gflop, frechet, error=1.0, *, steps=None, seconds=None, recall=0.5):
    figures = {
        "frechet": frechet,
        "frechet_standard_error": error,
        "recall": recall,
        "recall_standard_error": 0.05,
    }
    return {
        "name": name,
        "series": name.split("_")[0],
        "iterations": iterations,
        "sampling_steps": steps,
        "gflop": gflop,
        "paper_tflop": gflop / 10,
        "figures": figures if frechet is not None else None,
        "times": {} if seconds is None else {"1": {"seconds": seconds}},
    }


ROWS = [
    row("guided_4", 4, 2.0, 13.2, seconds=0.2),
    row("guided_16", 16, 10.0, 11.9, seconds=0.5, recall=0.46),
    row("teacher_16x10", 16, 30.0, 12.5, steps=10, seconds=3.0),
    row("student_16", 16, 20.0, 12.0),
    row("student_64", 64, 80.0, 12.0, recall=0.5),
    row("teacher_64x100", 64, 100.0, 12.0, steps=100, seconds=10.0),
]


def test_ratios_are_to_the_papers_teacher_and_to_a_fair_one():
    paper, fair = ratios.paper_teacher(ROWS), ratios.fair_teacher(ROWS[1], ROWS, FRECHET)
    assert (paper["name"], fair["name"]) == ("teacher_64x100", "teacher_16x10")
    assert ratios.ratio(ROWS[1], paper) == ratios.Ratio("teacher_64x100", 10.0, {"1": 20.0})
    assert ratios.ratio(ROWS[1], fair) == ratios.Ratio("teacher_16x10", 3.0, {"1": 6.0})
    assert ratios.ratio(ROWS[3], paper).seconds == {}, "it was not timed"


def test_equal_is_within_one_standard_error_of_the_reference():
    reference = ROWS[4]
    for frechet, expected in ((13.0, True), (13.1, False), (2.0, True), (None, False)):
        assert ratios.as_good(row("x", 1, 1, frechet), reference, FRECHET) == expected
    for recall, expected in ((0.46, True), (0.44, False), (0.9, True)):
        assert ratios.as_good(row("x", 1, 1, 1, recall=recall), reference, RECALL) == expected
    for frechet, expected in ((13.2, True), (13.3, False)):
        assert ratios.nearly_as_good(row("x", 1, 1, frechet), reference, FRECHET) == expected
    for recall, expected in ((0.45, True), (0.44, False)):
        assert ratios.nearly_as_good(row("x", 1, 1, 1, recall=recall), reference, RECALL) == (
            expected
        )


def test_aims_are_held_against_the_full_student():
    assert ratios.full_student(ROWS)["name"] == "student_64"
    assert [one["name"] for one in ratios.aimed_at(ROWS, FRECHET)] == ["guided_16", "guided_4"]
    first = sentences(ROWS, [RECALL, FRECHET], "frechet")[0]
    for words in ("`guided_16` (11.9 ± 1.0)", "1.00 TFLOP", "10.0x", "3.0x", "6.0x at batch 1"):
        assert words in first
    few = [one for one in ROWS if one["name"] != "student_64"]
    assert "was not judged" in sentences(few, [FRECHET], "frechet")[0]


# --------------------------------------------------------------------------------------- timing


def test_a_long_call_is_not_repeated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(
        "benchmarks.frontier_times.time", types.SimpleNamespace(perf_counter=lambda: clock[0])
    )

    def call(seconds):
        clock[0] += seconds

    limits = Limits(repeats=10, seconds=5.0)
    assert [len(warm_calls(lambda s=s: call(s), limits).calls) for s in (6, 2, 1, 0.1)] == [
        1,
        3,
        5,
        10,
    ]


def test_a_cell_is_timed_or_says_why_not(runs):
    pipeline = Pipeline.open(runs["student"])
    sampler, rate = pipeline.sampler(GenerateConfig()), Rate()
    wanted = {"prompts": ["a loud tone"], "rate": rate, "anew": True}
    params = pipeline.trained.params
    cell = time_cell(sampler, params, limits=Limits(3, 0.5), flops=1e6, **wanted)
    assert cell["compile_seconds"] > 0
    assert 0 < cell["low"] <= cell["seconds"] <= cell["high"]
    again = time_cell(sampler, params, limits=Limits(3, 0.5, 1.0), flops=1e15, **wanted)
    assert list(again) == ["left_out"]
    assert again["left_out"].startswith("about ")


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def make(runs, encoded_dataset, monkeypatch):
    """Makes a frontier whose judge and clock are stand-ins; `failing` names a row that kills it."""
    judged, failing = [], []

    def evaluate(self, setting):
        judged.append(setting.name)
        if setting.name in failing:
            raise Killed
        value = 10.0 + len(setting.name) / setting.decode.num_iterations
        return {"frechet": value, "frechet_standard_error": 0.5}

    monkeypatch.setattr(frontier_grid, "DECODES", {"": {}, "bisection": {"order": "bisection"}})
    monkeypatch.setattr(frontier_grid, "STEPS", (100, 10))
    monkeypatch.setattr(frontier_run, "frontier_png", lambda *_: b"a plot")
    monkeypatch.setattr(Evaluator, "scorer", None)
    monkeypatch.setattr(SettingEvaluator, "_evaluate", evaluate)
    monkeypatch.setattr(SettingEvaluator, "references", lambda _: {"codec": {"frechet": 9.0}})
    monkeypatch.setattr(
        frontier_run, "time_cell", lambda sampler, *_, flops, **__: {"seconds": flops / 1e9}
    )
    monkeypatch.setattr(frontier_run.os, "getloadavg", lambda: (0.0, 0.0, 0.0))

    def frontier_in(out, figure="frechet"):
        config = EvaluationConfig(
            {name: str(path) for name, path in runs.items()},
            str(encoded_dataset.parent / "audio"),
            str(encoded_dataset),
            str(out),
        )
        return frontier_run.Frontier(config, figure=figure, batch_sizes=[1, 8], limits=Limits())

    return frontier_in, judged, failing


def test_a_killed_run_goes_on_and_leaves_the_same_table(make, tmp_path, runs):
    frontier_in, judged, failing = make
    whole = frontier_in(tmp_path / "whole").run()
    names = [row["name"] for row in whole["rows"]]
    assert {"teacher_8x100", "teacher_4x10", "student_8", "student_4"} <= set(names)
    assert len(judged) == len(names)
    page = (tmp_path / "whole" / frontier_run.TABLE_FILE).read_text()
    assert page == to_markdown(whole)
    assert (tmp_path / "whole" / "frontier.png").read_bytes() == b"a plot"
    assert frontier_png(whole, whole["quantities"][3]).startswith(b"\x89PNG")

    failing.append(judged[3])
    judged.clear()
    with pytest.raises(Killed):
        frontier_in(tmp_path / "killed").run()
    left = json.loads((tmp_path / "killed" / frontier_run.RESULT_FILE).read_text())
    assert [row["name"] for row in left["rows"]] == [*names[:3], "teacher_8x100"]
    assert left["rows"][-1]["figures"] is None, "its operations are known"
    failing.clear()
    judged.clear()
    some = frontier_in(tmp_path / "killed").run("student")
    assert {row["name"] for row in some["rows"]} >= set(names[:3]), "rows that are known stay"
    assert frontier_in(tmp_path / "killed").run() == whole
    assert len(judged) == len(names) - 3, "no row is judged twice"
    assert (tmp_path / "killed" / frontier_run.TABLE_FILE).read_text() == page

    student = load_trained(runs["student"], local_mesh())
    quality = read_quality(tree_hash(student.params))
    assert sorted(quality.values()) == sorted(
        -row["figures"]["frechet"] for row in whole["rows"] if row["run"] == "student"
    ), "turned, so that higher is better"


@pytest.mark.usefixtures("unchecked")
def test_what_settings_take_here_is_kept_at_once(runs, monkeypatch):
    pipeline = Pipeline.open(runs["student"])
    size, made = pipeline.filled(1), []

    def make(sampled, batch_size):
        made.append(sampled.trained.config.decode.num_iterations)
        assert batch_size == size
        if made[-1] == 8 and made.count(8) == 3:
            raise Killed

    monkeypatch.setattr(frontier_machine, "_make", make)
    limits = Limits(repeats=3)
    with pytest.raises(Killed):
        frontier_machine.measure_here(pipeline, [1], limits)
    (kept,) = pipeline.measured_times.read()
    assert kept.decode.num_iterations == 4
    assert set(kept.seconds) == {size}
    both = frontier_machine.measure_here(pipeline, [1, size], limits)
    assert sorted(one.decode.num_iterations for one in both) == [4, 8]
    assert "8 iterations" in frontier_machine.to_text(both)
    assert pipeline.within(100.0).trained.config.decode.num_iterations == 8


# ---------------------------------------------------------------------------------- command line


def parse(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    frontier._define_flags(values)
    values(["frontier", *arguments])
    return values


def test_what_is_missing_or_doubled_is_named(runs):
    student = str(runs["student"])
    with pytest.raises(EvaluationError, match="--teacher is missing"):
        frontier.named_runs(None, student, None, [])
    with pytest.raises(EvaluationError, match="--shallow is given twice with 1\\+1 blocks"):
        frontier.named_runs("t", "s", None, [student, student])
    assert frontier.named_runs("t", "s", "g", [student]) == {
        "teacher": "t",
        "student": "s",
        "guided": "g",
        "shallow_1+1": student,
    }
    with pytest.raises(flags.IllegalFlagValueError, match="figure"):
        parse("--figure=beauty")
    with pytest.raises(EvaluationError, match="--out is missing: folder for rows"):
        frontier._needed(parse(), "out")
