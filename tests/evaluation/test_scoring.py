"""Scores count what is heard, gates judge the rows that are there, samplers are timed warm."""

import math

import jax
import numpy as np
import pytest

from fasttta_jax.evaluation import clips as material
from fasttta_jax.evaluation import gates
from fasttta_jax.evaluation.clips import Clips, Material
from fasttta_jax.evaluation.scoring import (
    EventCount,
    Scorer,
    Scores,
    Share,
)
from fasttta_jax.evaluation.tables import (
    RowResult,
    as_text,
    main_table,
)
from fasttta_jax.evaluation.tagger import TaggerOutput
from fasttta_jax.evaluation.timing import time_samplers
from fasttta_jax.metrics.energy_score import HeldOutEnergy


class StubTagger:
    """Hears the event whose index the first sample names."""

    def __init__(self, spec) -> None:
        self.spec = spec

    def predict(self, audio):
        heard = np.eye(len(self.spec.events), dtype=np.float32)[audio[:, 0].astype(int)]
        embeddings = np.stack([audio[:, 0], audio[:, 1]], axis=1)
        return TaggerOutput(heard, {}, embeddings)


def test_scores_count_what_is_heard_event_by_event():
    labels = [{"events": [name]} for name in ("a", "a", "a", "b")]
    spec = material.spec_for([*labels, {"events": ["c"]}], 4096, 16_000)
    audio = np.asarray([[0, 5], [1, 1], [1, 2], [1, 3]], np.int16)
    singles = Clips(audio, ("",) * 4, tuple(labels))
    none = Clips(audio[:0], (), ())
    scorer = Scorer(StubTagger(spec), Material(singles, none), singles, [0, 1, 2, 3])
    scores = scorer.score(audio, none.audio)
    assert scores.event_accuracy == Share(0.5, 4)
    assert scores.event_accuracy.standard_error == 0.25
    assert scores.attribute_accuracy is None
    assert scores.recall_at_2 is None
    assert scores.frechet == pytest.approx(0, abs=1e-6)
    assert scores.events == (EventCount("a", 3, 1, (("b", 2),)), EventCount("b", 1, 1, ()))


def result(name: str, accuracy: float, times_slower: float | None = None) -> RowResult:
    share = Share(accuracy, 100)
    scores = Scores(share, share, None, 3.0, 100, 0, 100, ())
    energy = HeldOutEnergy(6.5, math.nan, 1, 8, 4)
    return RowResult(name, "teacher", scores, energy, None, times_slower)


def test_gates_judge_the_rows_that_are_there():
    rows = [result("real", 0.99), result("teacher", 0.86, 2.0), result("baseline", 0.1)]
    figures = {row.name: row.figures() for row in rows}
    found = gates.judge("demo", figures)
    assert [gate.passed for gate in found["real"]] == [True]
    # accuracy, attributes, and a recall that was not measured; no student to be compared with
    assert [gate.passed for gate in found["teacher"]] == [True, True, False]
    assert "not measured" in found["teacher"][2].condition
    assert found["baseline"] == ()
    compared = gates.judge("demo", figures | {"student": figures["real"]})
    assert [gate.passed for gate in compared["teacher"]] == [True, True, False, False]
    text = as_text(main_table(rows, found))
    assert "FAIL  teacher: two-event recall@2 at least 0.6 (found: not measured)" in text
    assert rows[0].to_json()["energy"]["standard_error"] is None


class StubSampler:
    batch_size = 4

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.calls = 0

    def inputs(self, prompts, seeds):
        self.prompts = prompts
        return prompts, seeds

    def sample(self, params, text, keys):
        self.calls += 1
        return jax.numpy.zeros(())


def test_samplers_are_timed_warm_with_a_full_batch():
    samplers = {"a": (StubSampler(), {}), "b": (StubSampler(), {})}
    times = time_samplers(samplers, ["x", "y", "z"], clip_seconds=2.0, num_calls=3)
    for name, (sampler, _) in samplers.items():
        assert sampler.calls == 5
        assert sampler.prompts == ["x", "y", "z", "x"]
        assert len(times[name].calls) == 3
        assert times[name].real_time_factor == pytest.approx(times[name].median / 8)
    with pytest.raises(ValueError, match="3 or more"):
        time_samplers(samplers, ["x"], clip_seconds=2.0, num_calls=2)
