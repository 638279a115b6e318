"""Labels of several forms are understood, and become arrays in the order of a vocabulary."""

import json

import numpy as np
import pytest

from fasttta_jax.evaluation.labels import (
    Vocabulary,
    labels_for,
    labels_to_arrays,
    mentioned_mask,
    vocabulary_of,
)
from fasttta_jax.evaluation.tagger_cache import spec_for

VOCABULARY = Vocabulary(
    ("tone", "noise", "clicks"), {"pitch": ("low", "high"), "speed": ("slow", "fast")}
)


def test_labels_with_and_without_attributes_are_understood():
    rich = {
        "events": ["a"],
        "attributes": {"a": {"pitch": "low", "room": "hall"}},
        "mentioned": [{"a": ["pitch", "room", "speed"]}],
    }
    labels = [rich, {"events": ["b"], "attributes": {"b": {"pitch": "high", "room": "hall"}}}]
    spec = spec_for(labels, 4096, 8000)
    assert spec.events == ("a", "b")
    assert spec.axes == {"pitch": ("high", "low")}  # an axis with one value tells nothing
    assert (spec.mel.sample_rate, spec.mel.f_max) == (8000, 4000)
    assert json.loads(labels_for(labels, spec.axes)[0])["mentioned"] == [{"a": ["pitch"]}]
    plain = [{"events": ["a"], "attributes": {"a": ["low"]}}, {"events": ["b", "a"]}]
    assert vocabulary_of(plain).axes == {}


def test_labels_become_arrays_in_the_order_of_the_spec() -> None:
    texts = [
        json.dumps({"events": ["clicks"], "attributes": {"clicks": {"speed": "fast"}}}),
        json.dumps({"events": ["noise"], "attributes": {"noise": {"pitch": "low"}}}),
        json.dumps({"events": ["tone", "clicks"], "attributes": {"tone": {"pitch": "high"}}}),
        json.dumps({"events": ["tone"]}),
    ]
    events, attributes = labels_to_arrays(texts, VOCABULARY)
    np.testing.assert_array_equal(events, [[0, 0, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(attributes, [[-1, 1], [0, -1], [-1, -1], [-1, -1]])
    with pytest.raises(ValueError, match=r"clip 1: event is 'bark'; allowed: \('tone'"):
        labels_to_arrays([texts[0], json.dumps({"events": ["bark"]})], VOCABULARY)
    label = {"events": ["tone"], "attributes": {"tone": {"pitch": "middle"}}}
    with pytest.raises(ValueError, match="pitch is 'middle'"):
        labels_to_arrays([json.dumps(label)], VOCABULARY)


def test_mentioned_mask_follows_the_caption_that_was_used() -> None:
    mentioned = [{"tone": []}, {"tone": ["pitch"]}]
    one = json.dumps({"events": ["tone"], "mentioned": mentioned})
    two = json.dumps({"events": ["tone", "noise"], "mentioned": mentioned})
    mask = mentioned_mask([one, one, two], [0, 1, 1], list(VOCABULARY.axes))
    np.testing.assert_array_equal(mask, [[0, 0], [1, 0], [0, 0]])
