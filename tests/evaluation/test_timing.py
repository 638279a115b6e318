"""Sampling times are held against the run that needs the fewest operations, whatever trained it."""

from __future__ import annotations

import dataclasses

from fasttta_jax.config import RunConfig
from fasttta_jax.evaluation import tables
from fasttta_jax.evaluation.rows import RowResult, sampling_quantity, times_slower_quantity
from fasttta_jax.evaluation.timing import SamplingTime, quickest
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.performance.timing import Timing
from fasttta_jax.report.page import Row
from tests.support import helpers
from tests.support.regression import regression  # noqa: F401

TEACHER = helpers.tiny_teacher_config("unused")
STUDENT = helpers.tiny_student_config("unused", "unused")


def with_iterations(config: RunConfig, number: int) -> RunConfig:
    return dataclasses.replace(
        config, decode=dataclasses.replace(config.decode, num_iterations=number)
    )


def test_the_quickest_run_is_the_one_with_the_fewest_operations():
    assert quickest({"teacher": TEACHER, "student": STUDENT}) == "student"
    assert quickest({"b": STUDENT, "a": STUDENT, "c": TEACHER}) == "b"
    runs = {"eight": with_iterations(TEACHER, 8), "one": with_iterations(TEACHER, 1)}
    assert quickest(runs) == "one"


def test_runs_that_cost_the_same_are_not_compared():
    assert quickest({}) is None
    assert quickest({"student": STUDENT}) is None
    assert quickest({"one": STUDENT, "other": STUDENT}) is None


def test_a_third_objective_is_compared_by_its_own_operations(regression: str):  # noqa: F811
    third = dataclasses.replace(TEACHER, objective=regression)
    assert quickest({"teacher": TEACHER, "mean": third}) == "mean"


def test_the_heading_names_the_run_that_times_are_held_against():
    time = SamplingTime(8, 1.0, Timing(0.5, (0.1, 0.2, 0.3)))
    row = RowResult("teacher", "diffusion", {"times_slower": Measured(3.0)}, sampling=time)
    quantities = [sampling_quantity(8), times_slower_quantity("mean")]
    table = tables.sampling_table([row], quantities)
    assert table.columns == ("time", "teacher")
    assert table.rows[-1] == Row("times slower than mean", [Measured(3.0)])
    alone = tables.sampling_table([row], quantities[:1])
    assert alone.rows == table.rows[:-1]
