"""Metrics count what is recognised or say why they cannot; gates bound the rows there are."""

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.evaluation import gates, tables
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedders import FeatureCache, Features
from fasttta_jax.evaluation.gates import GATES, Bound
from fasttta_jax.evaluation.metric import Needs, NotMeasured, check_metrics
from fasttta_jax.evaluation.rows import (
    ENERGY_SCORE,
    RowResult,
    energy_value,
    times_slower_quantity,
)
from fasttta_jax.evaluation.scoring import Scorer
from fasttta_jax.evaluation.tagger_metrics import EventCount, event_counts
from fasttta_jax.evaluation.timing import time_samplers
from fasttta_jax.metrics.energy_score import HeldOutEnergy
from fasttta_jax.metrics.intervals import Measured, proportion
from fasttta_jax.report.page import Row
from tests.evaluation.level_error import TAGGER_METRICS, LevelError

QUANTITIES = (
    *(metric.quantity for metric in TAGGER_METRICS),
    ENERGY_SCORE,
    times_slower_quantity("student"),
)


class StubTagger:
    """Finds the events whose indices the first two samples name, the first of them likelier."""

    name, sample_rate, hash = "tagger", 16_000, "stub"

    def __init__(self) -> None:
        self.calls = 0

    def embed(self, audio):
        self.calls += 1
        levels = np.rint(audio[:, :2] * 10).astype(int)
        one, other = (np.eye(3, dtype=np.float32)[levels[:, column]] for column in (0, 1))
        probabilities = {"event": one + 0.5 * other, "attribute/level": one[:, :2]}
        classes = {"event": ("a", "b", "c"), "attribute/level": ("quiet", "loud")}
        return Features(audio[:, 1:3], probabilities, classes)


def clips(rows: list[list[int]], labels: list[dict]) -> Clips:
    audio = np.asarray(rows, np.float32) / 10
    return Clips(audio, ("",) * len(rows), tuple(labels))


def scorer(
    tmp_path, test: Clips, reference: tuple[Clips, list[int]], metrics=TAGGER_METRICS
) -> Scorer:
    return Scorer(
        metrics,
        {"tagger": StubTagger},
        test,
        lambda: reference,
        16_000,
        FeatureCache(tmp_path),
    )


def test_scores_count_what_is_recognised_event_by_event(tmp_path):
    labels = [{"events": [name]} for name in ("a", "a", "a", "b")] + [{"events": ["a", "c"]}]
    test = clips([[0, 2, 5], [1, 0, 1], [1, 0, 2], [1, 0, 3], [2, 1, 0]], labels)
    single = test.take([0, 1, 2, 3])
    found = scorer(tmp_path, test, (single, [0, 1, 2, 3])).score(test)
    assert found.values["event_accuracy"] == proportion(2, 4)
    assert found.values["event_accuracy"].standard_error == 0.25
    assert found.values["recall_at_k"] == proportion(1, 2)
    assert found.values["frechet"].value == pytest.approx(0, abs=1e-6)
    assert found.values["frechet"].count == 4
    assert found.not_measured == {
        "attribute_accuracy": "no caption mentions an attribute that the tagger knows"
    }
    with_features = scorer(tmp_path, test, (single, [])).with_features(test, "tagger")
    assert event_counts(with_features) == (
        EventCount("a", 3, 1, (("b", 2),)),
        EventCount("b", 1, 1, ()),
    )


def test_attributes_that_a_caption_mentions_count(tmp_path):
    label = {
        "events": ["a"],
        "attributes": {"a": {"level": "quiet"}},
        "mentioned": [{"a": ["level"]}],
    }
    test = clips([[0, 0, 0], [1, 0, 0], [0, 0, 0]], [label, label, {**label, "mentioned": [{}]}])
    found = scorer(tmp_path, test, (test, [0, 1, 2])).score(test)
    assert found.values["attribute_accuracy"] == proportion(1, 2)
    assert found.not_measured == {"recall_at_k": "no clip has several events"}


def test_without_labels_or_a_tagger_the_others_are_measured_and_reasons_given(tmp_path):
    def no_tagger():
        raise NotMeasured("no tagger can be trained")

    test = clips([[1, 0, 0], [2, 0, 0], [1, 1, 0]], [{}, {}, {}])
    metrics = (*TAGGER_METRICS, LevelError())
    without = Scorer(
        metrics,
        {"tagger": no_tagger},
        test,
        lambda: pytest.fail("nothing needs a reference"),
        16_000,
        FeatureCache(tmp_path),
    )
    without.prepare()
    found = without.score(test.with_audio(test.audio / 2))
    assert set(found.values) == {"level_error"}
    assert found.values["level_error"].value == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert found.not_measured["event_accuracy"] == 'no label names an event (labels with "events")'
    assert found.not_measured["frechet"] == "no tagger can be trained"
    # with a tagger, the distance needs no labels
    found = scorer(tmp_path, test, (test, [0, 1, 2])).score(test)
    assert set(found.values) == {"frechet"}


def test_some_rows_are_held_against_their_own_counterparts(tmp_path):
    labels = [{"events": [name]} for name in ("a", "b", "a", "b")]
    test = clips([[0, 1, 1], [1, 2, 2], [0, 1, 3], [1, 2, 4]], labels)
    # the second test clip has no training clip; the others come in the order of the split
    reference = test.take([3, 0, 2])
    one = scorer(tmp_path, test, (reference, [3, 0, 2]), (*TAGGER_METRICS, LevelError()))
    rows = [0, 1, 3]
    found = one.score(test.take(rows), rows)
    assert found.values["frechet"].count == 2
    assert found.values["frechet"].value == pytest.approx(0, abs=1e-6)
    assert found.values["level_error"] == Measured(0.0, 0.0, 3)
    assert found.values["event_accuracy"].count == 3


def test_one_set_is_embedded_once_for_all_metrics(tmp_path):
    test = clips([[0, 1, 1], [1, 2, 2]], [{"events": ["a"]}, {"events": ["b"]}])
    tagger = StubTagger()
    one = Scorer(
        TAGGER_METRICS, {"tagger": lambda: tagger}, test, lambda: (test, [0, 1]), 16_000,
        FeatureCache(tmp_path),
    )  # fmt: skip
    one.score(test.with_audio(np.add(test.audio, [0, 0, 1])))
    assert tagger.calls == 2, "the set, and its reference"
    one.score(test.with_audio(test.audio[::-1]))
    assert tagger.calls == 2, "the reference's clips, seen before"


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_metric_or_has_anothers_name_is_refused(tmp_path):
    test = clips([[0, 1, 1], [1, 2, 2]], [{}, {}])
    for wrong, message in ((object(), "is no metric"), (LevelError, "is no metric")):
        with pytest.raises(TypeError, match=message):
            check_metrics([wrong])
    with pytest.raises(ValueError, match="two metrics are called 'level_error'"):
        check_metrics([*TAGGER_METRICS, LevelError(), LevelError()])
    with pytest.raises(ValueError, match="reference is 'train'; allowed: 'test', 'training'"):
        Needs(reference="train")  # pyright: ignore[reportArgumentType]

    class Plain(LevelError):
        def score(self, clips, reference, sample_rate):
            return 1.0

    with pytest.raises(TypeError, match="level_error: score returned"):
        scorer(tmp_path, test, (test, [0, 1]), (Plain(),)).score(test)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_as_good():
    values: list[Any] = [np.float32(0.5), np.float64(0.25), np.int64(3), (np.float32(0), 1)]
    measured = Measured(*values)
    assert json.dumps(dataclasses.asdict(measured)) == (
        '{"value": 0.5, "standard_error": 0.25, "count": 3, "interval": [0.0, 1.0]}'
    )


def result(name: str, accuracy: float, times_slower: float | None = None) -> RowResult:
    share = proportion(round(100 * accuracy), 100)
    energy = HeldOutEnergy(6.5, math.nan, 1, 8, 4)
    values = {"event_accuracy": share, "attribute_accuracy": share, "frechet": Measured(3.0)}
    values |= {"energy_score": energy_value(energy)}
    if times_slower is not None:
        values["times_slower"] = Measured(times_slower)
    missing = {"recall_at_k": "no clip has several events"}
    return RowResult(name, "teacher", values, missing, {1: 100}, energy=energy)


def test_gates_bound_the_rows_that_are_there():
    rows = [result("real", 0.99), result("teacher", 0.86, 2.0), result("baseline", 0.1)]
    figures = {row.name: row.values for row in rows}
    found = gates.check(GATES["demo"], figures, QUANTITIES)
    assert [gate.passed for gate in found["real"]] == [True]
    # accuracy, attributes, and a recall that was not measured; no student to be compared with
    assert [gate.passed for gate in found["teacher"]] == [True, True, False]
    assert "not measured" in found["teacher"][2].condition
    assert found["baseline"] == ()
    compared = gates.check(GATES["demo"], figures | {"student": figures["real"]}, QUANTITIES)
    assert [gate.passed for gate in compared["teacher"]] == [True, True, False, False]
    table = tables.results_table(rows, QUANTITIES)
    text = tables.as_text(table, found["teacher"])
    assert "FAIL  teacher: scene recall@k at least 0.6 (found: not measured)" in text
    assert "not measured: scene recall@k: no clip has several events" in text
    assert table.missing == ["scene recall@k: no clip has several events"]
    rows[0] = RowResult("real", "reference", {"recall_at_k": proportion(1, 2)})
    (line,) = tables.results_table(rows, QUANTITIES).missing
    assert line == "scene recall@k in teacher, baseline: no clip has several events"


def test_a_figure_next_to_its_bound_has_the_digits_that_tell_them_apart():
    bounds = [Bound("student", "x", 0.85), Bound("student", "x", 0.9)]
    found = gates.check(bounds, {"student": {"x": Measured(0.8497, 0.05)}}, [])["student"]
    assert [gate.found for gate in found] == ["0.8497", "0.85"]
    assert not any(gate.passed for gate in found)


def test_every_figure_has_its_error_and_count_in_json():
    row = result("teacher", 0.5).to_json(QUANTITIES)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["event_accuracy"], row["event_accuracy_count"]) == (0.5, 100)
    assert row["event_accuracy_standard_error"] == 0.05
    assert row["recall_at_k"] is None
    assert row["not_measured"] == {"recall_at_k": "no clip has several events"}
    assert (row["frechet"], row["energy_score"]) == (3.0, 6.5)
    assert "energy_score_standard_error" not in row, "one clip has no standard error"
    assert row["energy"]["standard_error"] is None
    assert (row["num_clips"], row["num_scenes"]) == (100, 0)


def test_another_metric_is_one_file(tmp_path):
    """It appears in the table and in JSON, and can be gated, with the names that it gives."""
    test = clips([[1, 0, 0], [2, 0, 0], [1, 1, 0]], [{}, {}, {}])
    quieter = test.with_audio(test.audio / 2)
    scores = scorer(tmp_path, test, (test, []), [LevelError()]).score(quieter)
    row = RowResult("student", "student", scores.values, scores.not_measured, {0: 3})
    quantities = [LevelError.quantity]
    bounds = (Bound("student", "level_error", 7.0, "at most"), Bound("student", "level_error", 7.0))
    found = gates.check(bounds, {"student": row.values}, quantities)
    assert [gate.passed for gate in found["student"]] == [True, False]
    assert found["student"][0].condition == "level error, dB at most 7 (found: 6.02)"
    table = tables.results_table([row], quantities)
    assert table.columns == ("figure", "student")
    assert table.words["level error, dB"].startswith("mean difference of loudness")
    level, count = table.rows
    assert level == Row("level error, dB", (row.values["level_error"],), "lower")
    assert level.heading == "level error, dB ↓"
    assert count == Row("clips", ("3",))
    assert row.to_json(quantities)["level_error_count"] == 3


class StubSampler:
    batch_size = 4

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.calls = 0

    def inputs(self, prompts, seeds):
        self.prompts = prompts
        return prompts, seeds

    def program(self, params, text, start):
        self.calls += 1
        return jax.numpy.zeros(())


@pytest.mark.usefixtures("unchecked")
def test_samplers_are_timed_warm_with_a_full_batch():
    samplers = {"a": (StubSampler(), {}), "b": (StubSampler(), {})}
    times = time_samplers(samplers, ["x", "y", "z"], clip_seconds=2.0, num_calls=3)
    for name, (sampler, _) in samplers.items():
        assert sampler.calls == 4  # the first, and three warm ones
        assert sampler.prompts == ["x", "y", "z", "x"]
        assert len(times[name].timing.calls) == 3
        assert times[name].real_time_factor == pytest.approx(times[name].median / 8)
    with pytest.raises(ValueError, match="3 or more"):
        time_samplers(samplers, ["x"], clip_seconds=2.0, num_calls=2)
