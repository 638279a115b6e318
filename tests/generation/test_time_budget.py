"""A wait becomes the best measured setting that fits, or an error that says what would."""

from __future__ import annotations

import dataclasses

import pytest

from fasttta_jax.config import DecodeConfig
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.generation.time_budget import (
    MeasuredSetting,
    TimeBudgetError,
    best_within,
    read_quality,
    write_quality,
)
from fasttta_jax.storage.files import write_json
from tests.support import helpers


def setting(iterations: int, seconds: dict[int, float], quality: float | None = None):
    return MeasuredSetting(DecodeConfig(num_iterations=iterations), None, seconds, quality)


MEASURED = [setting(4, {1: 0.1, 8: 0.4}), setting(16, {1: 0.3}), setting(64, {1: 1.0, 8: 6.0})]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def pipeline(runs) -> Pipeline:
    return Pipeline.open(runs["student"])


@pytest.mark.parametrize(
    ("max_seconds", "batch_size", "expected"),
    [(0.1, 1, 4), (0.29, 1, 4), (0.3, 1, 16), (9.0, 1, 64), (5.0, 8, 4), (6.0, 2, 64)],
)
def test_the_most_iterations_that_fit(max_seconds, batch_size, expected):
    """Where fewer clips were not measured, the next larger batch counts."""
    found = best_within(MEASURED, max_seconds, batch_size)
    assert found.decode.num_iterations == expected
    assert found.seconds_for(batch_size) <= max_seconds


def test_known_quality_comes_before_iterations():
    judged = [
        setting(4, {1: 0.1}, quality=-20.0),
        setting(16, {1: 0.3}, quality=-12.0),
        setting(64, {1: 1.0}, quality=-13.0),
    ]
    for max_seconds, expected in ((0.1, 4), (0.5, 16), (9.0, 16)):
        assert best_within(judged, max_seconds, 1).decode.num_iterations == expected
    judged.append(setting(32, {1: 0.2}))
    assert best_within(judged, 9.0, 1).decode.num_iterations == 16, "what nobody judged comes last"


def test_what_does_not_fit_says_what_would():
    with pytest.raises(TimeBudgetError, match=r"is 0.05; allowed: 0.1 or more.*1: 4 iterations"):
        best_within(MEASURED, 0.05, 1)
    with pytest.raises(TimeBudgetError, match=r"is 0.3; allowed: 0.4 or more.*batch of 8"):
        best_within(MEASURED, 0.3, 8)
    with pytest.raises(TimeBudgetError, match=r"batches of 1, 8 were measured.*--batch_sizes=9"):
        best_within(MEASURED, 9.0, 9)
    with pytest.raises(TimeBudgetError, match=r"nothing was measured.*--this_machine"):
        best_within([], 1.0, 1)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TimeBudgetError, match="allowed: above 0"):
            best_within(MEASURED, wrong, 1)


def test_what_was_measured_is_kept_for_this_model_and_machine(pipeline, monkeypatch):
    store = pipeline.measured_times
    assert store.read() == []
    store.write(MEASURED)
    assert store.read() == MEASURED
    write_quality(store.model, "frechet", {(MEASURED[1].decode, None): -3.0})
    assert [one.quality for one in store.read()] == [None, -3.0, None]
    assert read_quality("another model") == {}
    assert dataclasses.replace(store, model="another model").read() == []
    monkeypatch.setattr(
        "fasttta_jax.generation.time_budget.processor_folder", lambda: "another one"
    )
    assert store.read() == []


def test_a_damaged_file_is_named(pipeline):
    store = pipeline.measured_times
    for content in ({}, {"settings": [{"decode": {"tempo": 3}}]}):
        write_json(store.path, content)
        with pytest.raises(TimeBudgetError, match=f"{store.path} cannot be read"):
            store.read()


def test_a_pipeline_makes_clips_within_the_time(pipeline, caplog):
    run = pipeline.trained.config.decode
    with pytest.raises(TimeBudgetError, match="nothing was measured for this model"):
        pipeline.generate(["a loud tone"], max_seconds=1.0)
    store, size = pipeline.measured_times, pipeline.mesh.size
    slower = dataclasses.replace(run, num_iterations=helpers.NUM_TOKENS)
    store.write(
        [
            MeasuredSetting(run, None, {size: 0.2}),
            MeasuredSetting(slower, None, {size: 0.4}),
        ]
    )
    assert pipeline.within(9.0).trained.config.decode == slower
    with caplog.at_level("INFO", logger="fasttta_jax"):
        (found,) = pipeline.generate(["a loud tone"], max_seconds=0.3)
    assert f"within 0.3 s: {run.num_iterations} iterations" in caplog.text
    (expected,) = pipeline.generate(["a loud tone"])
    assert (found.audio == expected.audio).all()
    for other in ({"num_iterations": 2}, {"seconds": 0.5}, {"loop": True}):
        with pytest.raises(TimeBudgetError, match=f"max_seconds and {next(iter(other))} do not go"):
            pipeline.generate(["a loud tone"], max_seconds=0.3, **other)
