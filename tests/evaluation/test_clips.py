"""Test clips are chosen by events or captions and cut to length; references match them."""

import numpy as np
import pytest

from fasttta_jax.evaluation.clips import read_reference_clips, read_test_clips
from fasttta_jax.input_pipeline.records import DatasetError

pytestmark = pytest.mark.usefixtures("unchecked")  # lists stand for records


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
    found = read_test_clips(records, num_clips=3, num_scenes=5, num_samples=4)
    names = [one["events"] for one in found.labels]
    assert names == [["a"], ["b"], ["b", "b"], ["a", "b"], ["a", "b", "c"]]
    np.testing.assert_array_equal(found.audio[:2], [[1, 2, 3, 4], [1, 2, 0, 0]])
    assert (found.rows_with(1), found.scenes()) == ([0, 1, 2], [3, 4])


def test_without_labels_the_first_captioned_clips_are_taken():
    unlabelled = [
        {**record([], 5), "labels": {}},
        {**record([], captions=()), "labels": {}},
        {**record([], 7), "labels": {}},
        record([]),
    ]
    found = read_test_clips(unlabelled, num_clips=2, num_scenes=1, num_samples=None)
    assert found.audio.shape == (2, 7), "as long as the longest"
    assert found.labels == ({}, {})
    with pytest.raises(DatasetError, match="no clip among 1 of the test split has a caption"):
        read_test_clips(unlabelled[1:2], num_clips=1, num_scenes=1, num_samples=4)


def test_reference_clips_have_the_same_events_as_the_clips_they_stand_for():
    asked = read_test_clips(
        [record(["a"]), record(["b"]), record(["a"]), record(["c"]), record(["a", "b"])],
        num_clips=4,
        num_scenes=1,
        num_samples=4,
    )
    train = [record(["b"]), record(["a"]), record(["b"]), record(["a", "c"]), record(["a"])]
    found, rows = read_reference_clips(train, asked)
    assert [labels["events"] for labels in found.labels] == [["b"], ["a"], ["a"]]
    assert rows == [1, 0, 2]  # there is no lone "c" to stand for the last


def test_references_of_unlabelled_clips_are_spread_over_the_split():
    asked = read_test_clips(
        [{**record([]), "labels": {}}] * 2, num_clips=2, num_scenes=0, num_samples=4
    )
    train = [{**record([], length), "labels": {}} for length in (1, 2, 3, 4)]
    found, rows = read_reference_clips(train, asked)
    assert rows == [0, 1]
    np.testing.assert_array_equal(found.audio, [[1, 0, 0, 0], [1, 2, 3, 0]])
    assert read_reference_clips(train[:1], asked)[1] == [0]
