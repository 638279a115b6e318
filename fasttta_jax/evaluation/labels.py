"""Labels of a dataset, which name sound events and their attributes, and their form as arrays.

A label is a JSON object. "events" lists the names of the sounds; it alone is needed. Where
"attributes" is {event: {axis: value}} and "mentioned" lists, for each caption, {event: [axis]},
attributes count too; other forms are left aside.

Dimensions: n clips, E events, A attribute axes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

UNKNOWN = -1
"""The attribute value of an axis that a clip does not have, or that is not known."""


class Vocabulary(NamedTuple):
    """The names that labels use, in the order of the columns of their arrays.

    Attributes:
      events: names of the sound events.
      axes: for each attribute axis, its values; empty where a dataset has no attributes.
    """

    events: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]


class LabelArrays(NamedTuple):
    """Labels of n clips, in the order of a vocabulary.

    Attributes:
      events: which events are present.
      attributes: for each axis, the index of its value; UNKNOWN where the clip has no value on the
        axis or holds more than one event.
    """

    events: Bool[np.ndarray, "n E"]
    attributes: Int[np.ndarray, "n A"]


def events_of(labels: Mapping[str, Any]) -> list[str]:
    """The distinct events of a clip, in order; empty where its labels name none."""
    return list(dict.fromkeys(labels.get("events", ())))


def vocabulary_of(labels: Sequence[Mapping[str, Any]]) -> Vocabulary:
    """All events of these labels, and the attribute axes that have two values or more."""
    events = sorted({event for one in labels for event in events_of(one)})
    values: dict[str, set[str]] = defaultdict(set)
    for one in labels:
        for chosen in _attributes(one).values():
            for axis, value in chosen.items():
                values[axis].add(value)
    axes = {axis: tuple(sorted(found)) for axis, found in sorted(values.items()) if len(found) > 1}
    return Vocabulary(tuple(events), axes)


def labels_for(labels: Sequence[Mapping[str, Any]], axes: Mapping[str, Any]) -> list[str]:
    """Labels in the form that `labels_to_arrays` and `mentioned_mask` read.

    Axes other than `axes` are dropped, and so are mentions of an attribute that the labels give no
    value for.
    """
    texts = []
    for one in labels:
        attributes = {
            event: {axis: value for axis, value in chosen.items() if axis in axes}
            for event, chosen in _attributes(one).items()
        }
        cleaned: dict[str, Any] = {"events": events_of(one), "attributes": attributes}
        if isinstance(one.get("mentioned"), list):
            cleaned["mentioned"] = [
                {
                    event: [axis for axis in named if axis in attributes.get(event, {})]
                    for event, named in caption.items()
                }
                for caption in one["mentioned"]
            ]
        texts.append(json.dumps(cleaned))
    return texts


def labels_to_arrays(labels: Sequence[str], vocabulary: Vocabulary) -> LabelArrays:
    """Turns the JSON labels of a dataset into arrays.

    Args:
      labels: for each clip a JSON object {"events": [name, ...], "attributes": {event: {axis:
        value}}}; "attributes" may be missing, and further keys are ignored.
      vocabulary: gives the order of events, axes and values.

    Raises:
      ValueError: a name that the vocabulary does not have.
    """
    axes = list(vocabulary.axes)
    events = np.zeros((len(labels), len(vocabulary.events)), bool)
    attributes = np.full((len(labels), len(axes)), UNKNOWN, np.int32)
    for row, text in enumerate(labels):
        label = json.loads(text)
        where = f"labels of clip {row}"
        for event in label["events"]:
            events[row, _index(vocabulary.events, event, f"{where}: event")] = True
        if events[row].sum() != 1:
            continue
        (event,) = set(label["events"])
        for axis, value in label.get("attributes", {}).get(event, {}).items():
            column = _index(axes, axis, f"{where}: axis")
            attributes[row, column] = _index(vocabulary.axes[axis], value, f"{where}: {axis}")
    return LabelArrays(events, attributes)


def mentioned_mask(
    labels: Sequence[str], captions: Sequence[int], axes: Sequence[str]
) -> Bool[np.ndarray, "n A"]:
    """Which axes a caption of each clip mentions: the mask that `attribute_accuracy` wants.

    Args:
      labels: as in `labels_to_arrays`, with "mentioned": for each caption {event: [axis, ...]}.
      captions: for each clip, the index of the caption that was used as the prompt.
      axes: gives the order of axes.

    Returns:
      True for the pairs that count; none do for a clip with more than one event.
    """
    mask = np.zeros((len(labels), len(axes)), bool)
    for row, (text, caption) in enumerate(zip(labels, captions, strict=True)):
        label = json.loads(text)
        if len(set(label["events"])) == 1 and "mentioned" in label:
            for axis in label["mentioned"][caption].get(label["events"][0], ()):
                mask[row, _index(axes, axis, f"labels of clip {row}: axis")] = True
    return mask


def _index(allowed: Sequence[str], name: str, where: str) -> int:
    if name not in allowed:
        raise ValueError(f"{where} is {name!r}; allowed: {tuple(allowed)}")
    return list(allowed).index(name)


def _attributes(labels: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    attributes = labels.get("attributes")
    if not isinstance(attributes, Mapping):
        return {}
    return {event: chosen for event, chosen in attributes.items() if isinstance(chosen, Mapping)}
