"""Clips that an evaluation works on: waveforms with their captions and labels.

Real ones are read from an audio dataset, and cut or padded with silence to the length that the
models generate. Generated ones have the captions and labels of the test clips they were made for.

Dimensions: n clips, S samples, d features.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int16, Num
from tqdm import tqdm

from fasttta_jax.evaluation.embedders import Features
from fasttta_jax.evaluation.labels import events_of
from fasttta_jax.input_pipeline.records import DatasetError, Records

MAX_TRAINING_CLIPS = 10_000
"""The tagger is trained on this many at most, spread evenly over a larger training split."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """Waveforms of one length and sample rate, real or generated.

    Attributes:
      audio: waveforms: int16, or floating in [-1, 1].
      prompts: the caption of each; "" where a clip has none.
      labels: as in the dataset.
      features: of the audio, where they were computed.
      caption_embeddings: of the captions, in the space of the features, likewise.
    """

    audio: Num[np.ndarray, "n S"]
    prompts: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    features: Features | None = None
    caption_embeddings: Float[np.ndarray, "n d"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_samples(self) -> int:
        """S."""
        return self.audio.shape[1]

    def take(self, rows: Sequence[int]) -> Clips:
        """Some of the clips, in the order of `rows`."""
        return Clips(
            self.audio[list(rows)],
            tuple(self.prompts[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            None if self.features is None else self.features.take(rows),
            None if self.caption_embeddings is None else self.caption_embeddings[list(rows)],
        )

    def with_audio(self, audio: Num[np.ndarray, "n S"]) -> Clips:
        """Other waveforms for the same captions and labels."""
        return dataclasses.replace(self, audio=audio, features=None)

    def rows_with(self, num_events: int) -> list[int]:
        """Rows of the clips whose labels name that many events."""
        return [row for row, one in enumerate(self.labels) if len(events_of(one)) == num_events]

    def scenes(self) -> list[int]:
        """Rows of the clips whose labels name several events."""
        return [row for row, one in enumerate(self.labels) if len(events_of(one)) > 1]


def cut_or_pad(audio: Num[np.ndarray, " T"], num_samples: int) -> Num[np.ndarray, " S"]:
    """The first `num_samples` samples, with silence behind a shorter recording."""
    audio = audio[:num_samples]
    return np.pad(audio, (0, num_samples - len(audio)))


def read_test_clips(
    records: Records, *, num_clips: int, num_scenes: int, num_samples: int | None
) -> Clips:
    """Clips of the test split that have a caption.

    Where labels name events: the first single-event clips, then the first with several. Where no
    clip of these kinds is there: the first clips, whatever their labels say.

    Args:
      records: the test split.
      num_clips: single-event clips, or clips of unlabelled data, wanted; fewer are taken where
        there are fewer.
      num_scenes: clips of several events wanted, likewise.
      num_samples: S; None for the length of the longest of the clips.

    Raises:
      DatasetError: no clip has a caption.
    """
    wanted = {"single": num_clips, "scene": num_scenes}
    found: dict[str, list[dict[str, Any]]] = {"single": [], "scene": []}
    first: list[dict[str, Any]] = []
    for index in tqdm(range(len(records)), "reading test clips", unit="clip", mininterval=1.0):
        if all(len(found[kind]) == wanted[kind] for kind in wanted):
            break
        record = records[index]
        if not record["captions"]:
            continue
        if len(first) < num_clips:
            first.append(record)
        if not (named := events_of(record["labels"])):
            continue
        kind = "single" if len(named) == 1 else "scene"
        if len(found[kind]) < wanted[kind]:
            found[kind].append(record)
    chosen = [*found["single"], *found["scene"]] or first
    if not chosen:
        raise DatasetError(
            f"no clip among {len(records)} of the test split has a caption; models are evaluated "
            "by what they generate for the captions of test clips"
        )
    longest = max(len(record["audio"]) for record in chosen)
    return _clips(chosen, longest if num_samples is None else num_samples)


def read_training_clips(records: Records, num_samples: int) -> Clips:
    """Training clips that name an event, at most MAX_TRAINING_CLIPS.

    Raises:
      DatasetError: there are none.
    """
    number = min(len(records), MAX_TRAINING_CLIPS)
    progress = tqdm(_spread(records, number), "reading training clips", unit="clip", mininterval=1)
    found = [record for record in map(records.__getitem__, progress) if _has_events(record)]
    if not found:
        raise DatasetError(
            f'none of {number} training clips has labels with "events", so no tagger can be trained'
        )
    return _clips(found, num_samples)


def read_reference_clips(records: Records, clips: Clips) -> tuple[Clips, list[int]]:
    """Real training clips to compare the distribution of `clips` with, one for each.

    Single-event clips are matched by their event, and the others are left out. Where no clip names
    a single event, training clips spread evenly over the split stand for all.

    Args:
      records: the training split.
      clips: test clips.

    Returns:
      The training clips, in the order of the split and as long as the test clips, and the row of
      `clips` that each of them stands for: fewer where the split has too few clips, of an event or
      in all.
    """
    single = clips.rows_with(1)
    if not single:
        number = min(len(records), len(clips))
        spread = [records[row] for row in _spread(records, number)]
        return _clips(spread, clips.num_samples), list(range(number))
    waiting: dict[str, list[int]] = defaultdict(list)
    for row in single:
        waiting[events_of(clips.labels[row])[0]].append(row)
    found, rows = [], []
    for index in tqdm(range(len(records)), "reading reference clips", unit="clip", mininterval=1.0):
        if not any(waiting.values()):
            break
        record = records[index]
        events = events_of(record["labels"])
        if len(events) == 1 and waiting.get(events[0]):
            found.append(record)
            rows.append(waiting[events[0]].pop(0))
    return _clips(found, clips.num_samples), rows


def _spread(records: Records, number: int) -> list[int]:
    """`number` rows, evenly over a split."""
    return np.linspace(0, len(records), number, endpoint=False).astype(int).tolist()


def _has_events(record: Mapping[str, Any]) -> bool:
    return bool(events_of(record["labels"]))


def _clips(records: Sequence[Mapping[str, Any]], num_samples: int) -> Clips:
    audio: Int16[np.ndarray, "n S"] = np.zeros((len(records), num_samples), np.int16)
    for row, record in enumerate(records):
        audio[row] = cut_or_pad(np.asarray(record["audio"]), num_samples)
    return Clips(
        audio,
        tuple(record["captions"][0] if record["captions"] else "" for record in records),
        tuple(record["labels"] for record in records),
    )
