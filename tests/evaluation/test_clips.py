"""Clips are chosen by their events and cut to length; labels of several forms are understood."""

import json

import numpy as np
import pytest

from fasttta_jax.evaluation import clips as material
from fasttta_jax.input_pipeline.records import DatasetError


def record(events, length=4, captions=("x",), **labels) -> dict:
    return {
        "audio": np.arange(1, length + 1, dtype=np.int16),
        "captions": list(captions),
        "labels": {"events": events, **labels},
    }


def test_test_clips_are_the_first_of_their_kind_cut_or_padded():
    records = [
        record(["a"], 6),
        record(["a", "b"]),
        record([]),
        record(["b"], 2),
        record(["a"], captions=()),
        record(["b", "b"]),
        record(["a", "b", "c"]),
        record(["c"]),
    ]
    found = material.read_test_material(records, num_clips=3, num_scenes=5, num_samples=4)
    assert [labels["events"] for labels in found.singles.labels] == [["a"], ["b"], ["b", "b"]]
    np.testing.assert_array_equal(found.singles.audio[:2], [[1, 2, 3, 4], [1, 2, 0, 0]])
    assert len(found.scenes) == 1
    for unfit, words in (
        ([{**record([]), "labels": {}}], 'labels with "events"'),
        (records[1:2], "single-event"),
    ):
        with pytest.raises(DatasetError, match=words):
            material.read_test_material(unfit, num_clips=1, num_scenes=1, num_samples=4)


def test_reference_clips_have_the_same_events_as_the_clips_they_stand_against():
    asked = material.read_test_material(
        [record(["a"]), record(["b"]), record(["a"]), record(["c"])],
        num_clips=4,
        num_scenes=0,
        num_samples=4,
    ).singles
    train = [record(["b"]), record(["a"]), record(["b"]), record(["a", "c"]), record(["a"])]
    found, rows = material.read_matched_clips(train, asked, 4)
    assert [labels["events"] for labels in found.labels] == [["b"], ["a"], ["a"]]
    assert rows == [0, 1, 2]  # there is no lone "c" to stand against the last


def test_labels_with_and_without_attributes_are_understood():
    rich = {
        "events": ["a"],
        "attributes": {"a": {"pitch": "low", "room": "hall"}},
        "mentioned": [{"a": ["pitch", "room", "speed"]}],
    }
    labels = [rich, {"events": ["b"], "attributes": {"b": {"pitch": "high", "room": "hall"}}}]
    spec = material.spec_for(labels, 4096, 8000)
    assert spec.events == ("a", "b")
    assert spec.axes == {"pitch": ("high", "low")}  # an axis with one value tells nothing
    assert (spec.mel.sample_rate, spec.mel.f_max) == (8000, 4000)
    assert json.loads(material.labels_for(labels, spec)[0])["mentioned"] == [{"a": ["pitch"]}]
    plain = [{"events": ["a"], "attributes": {"a": ["low"]}}, {"events": ["b", "a"]}]
    assert material.spec_for(plain, 4096, 16_000).axes == {}
