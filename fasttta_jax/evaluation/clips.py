"""Real clips for an evaluation, read from an audio dataset whose labels name sound events.

A label is a JSON object. "events" lists the names of what is heard; it alone is needed. Where
"attributes" is {event: {axis: value}} and "mentioned" lists, for each caption, {event: [axis]},
attributes can be judged too; other forms are left aside. Recordings are cut or padded with silence
to the length that the models generate.

Dimensions: n clips, S samples.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int16
from tqdm import tqdm

from fasttta_jax.evaluation.tagger import TAGGER_MEL, TaggerSpec
from fasttta_jax.input_pipeline.records import DatasetError, Records

MAX_TRAINING_CLIPS = 10_000
"""The tagger hears this many at most, spread evenly over a larger training split."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """Some clips of one split.

    Attributes:
      audio: waveforms, int16 [n, S].
      prompts: the first caption of each; "" where a clip has none.
      labels: as in the dataset.
    """

    audio: Int16[np.ndarray, "n S"]
    prompts: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """Clips of the test split.

    Attributes:
      singles: with one event each.
      scenes: with two events each; there may be none.
    """

    singles: Clips
    scenes: Clips


def events_of(labels: Mapping[str, Any]) -> list[str]:
    """The distinct events of a clip, in order; empty where its labels name none."""
    return list(dict.fromkeys(labels.get("events", ())))


def cut_or_pad(audio: Int16[np.ndarray, " T"], num_samples: int) -> Int16[np.ndarray, " S"]:
    """The first `num_samples` samples, with silence behind a shorter recording."""
    audio = audio[:num_samples]
    return np.pad(audio, (0, num_samples - len(audio)))


def read_test_material(
    records: Records, *, num_clips: int, num_scenes: int, num_samples: int
) -> Material:
    """The first single-event clips and the first two-event clips that have a caption.

    Args:
      records: the test split.
      num_clips: single-event clips wanted; fewer are taken where there are fewer.
      num_scenes: two-event clips wanted, likewise.
      num_samples: S.

    Raises:
      DatasetError: no clip names an event, or none holds a single one.
    """
    wanted = {1: num_clips, 2: num_scenes}
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    names_events = False
    for index in tqdm(range(len(records)), "reading test clips", unit="clip", mininterval=1.0):
        if all(len(found[count]) == wanted[count] for count in wanted):
            break
        record = records[index]
        count = len(events_of(record["labels"]))
        names_events |= count > 0
        if count in wanted and len(found[count]) < wanted[count] and record["captions"]:
            found[count].append(record)
    if not found[1]:
        lack = "captioned single-event clips" if names_events else 'labels with "events"'
        raise DatasetError(
            f"the test split of the audio dataset has no {lack} among {len(records)} clips; the "
            "evaluation judges clips by the sound events that their labels name"
        )
    return Material(_clips(found[1], num_samples), _clips(found[2], num_samples))


def read_training_clips(records: Records, num_samples: int) -> Clips:
    """Training clips that name an event, at most MAX_TRAINING_CLIPS.

    Raises:
      DatasetError: there are none.
    """
    number = min(len(records), MAX_TRAINING_CLIPS)
    rows = np.linspace(0, len(records), number, endpoint=False).astype(int)
    progress = tqdm(rows, "reading training clips", unit="clip", mininterval=1.0)
    found = [record for record in (records[int(row)] for row in progress) if _has_events(record)]
    if not found:
        raise DatasetError(
            f'none of {number} training clips has labels with "events", so no tagger can be trained'
        )
    return _clips(found, num_samples)


def read_matched_clips(records: Records, clips: Clips, num_samples: int) -> tuple[Clips, list[int]]:
    """Single-event training clips, one for each of `clips` and with the same event.

    Args:
      records: the training split.
      clips: single-event clips.
      num_samples: S.

    Returns:
      The training clips, in the order of the split, and the rising rows of `clips` that found a
      match: all of them, unless the split holds too few clips of an event.
    """
    waiting: dict[str, list[int]] = defaultdict(list)
    for row, labels in enumerate(clips.labels):
        waiting[events_of(labels)[0]].append(row)
    found, rows = [], []
    for index in tqdm(range(len(records)), "reading reference clips", unit="clip", mininterval=1.0):
        if not any(waiting.values()):
            break
        record = records[index]
        events = events_of(record["labels"])
        if len(events) == 1 and waiting.get(events[0]):
            found.append(record)
            rows.append(waiting[events[0]].pop(0))
    return _clips(found, num_samples), sorted(rows)


def _has_events(record: Mapping[str, Any]) -> bool:
    return bool(events_of(record["labels"]))


def _clips(records: Sequence[Mapping[str, Any]], num_samples: int) -> Clips:
    audio = np.zeros((len(records), num_samples), np.int16)
    for row, record in enumerate(records):
        audio[row] = cut_or_pad(np.asarray(record["audio"]), num_samples)
    return Clips(
        audio,
        tuple(record["captions"][0] if record["captions"] else "" for record in records),
        tuple(record["labels"] for record in records),
    )


def spec_for(labels: Sequence[Mapping[str, Any]], num_samples: int, sample_rate: int) -> TaggerSpec:
    """What a tagger for these labels listens for: all events, and axes with two values or more."""
    events = sorted({event for one in labels for event in events_of(one)})
    values: dict[str, set[str]] = defaultdict(set)
    for one in labels:
        for chosen in _attributes(one).values():
            for axis, value in chosen.items():
                values[axis].add(value)
    axes = {axis: tuple(sorted(found)) for axis, found in sorted(values.items()) if len(found) > 1}
    f_max = min(TAGGER_MEL.f_max, sample_rate / 2)
    mel = dataclasses.replace(TAGGER_MEL, sample_rate=sample_rate, f_max=f_max)
    return TaggerSpec(tuple(events), axes, num_samples, mel)


def labels_for(labels: Sequence[Mapping[str, Any]], spec: TaggerSpec) -> list[str]:
    """Labels in the form that `tagger.labels_to_arrays` and `mentioned_mask` read.

    Axes that the spec does not listen to are dropped, and so are mentions of an attribute that the
    labels give no value for.
    """
    texts = []
    for one in labels:
        attributes = {
            event: {axis: value for axis, value in chosen.items() if axis in spec.axes}
            for event, chosen in _attributes(one).items()
        }
        cleaned: dict[str, Any] = {"events": events_of(one), "attributes": attributes}
        if isinstance(one.get("mentioned"), list):
            cleaned["mentioned"] = [
                {
                    event: [axis for axis in axes if axis in attributes.get(event, {})]
                    for event, axes in caption.items()
                }
                for caption in one["mentioned"]
            ]
        texts.append(json.dumps(cleaned))
    return texts


def _attributes(labels: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    attributes = labels.get("attributes")
    if not isinstance(attributes, Mapping):
        return {}
    return {event: chosen for event, chosen in attributes.items() if isinstance(chosen, Mapping)}
