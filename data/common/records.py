"""Datasets of audio: one TFDS schema, kept as ArrayRecord, without TensorFlow.

A record holds the waveform, the captions that describe it and a JSON object of labels. Whatever
makes clips (a synthesiser, a folder of recordings) hands `audio_dataset` the number of its items
and `ShardedDataset.make` a function that reads them.
Dimensions: S samples.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.common.shards import ITEMS_PER_SHARD, VERSION, Record, ShardedDataset
from data.common.tables import SPLITS, Skipped
from fasttta_jax.audio.files import INT16_SCALE


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
      id: unique within its split.
      audio: mono waveform, float32 [S] in [-1, 1].
      captions: one or more descriptions of the clip.
      labels: anything JSON can hold; evaluation reads "events" (list of names) and "attributes"
        (event name to {axis: value}) where they are present.
    """

    id: str
    audio: np.ndarray
    captions: Sequence[str]
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def audio_dataset(
    out: str | os.PathLike[str],
    *,
    name: str,
    description: str,
    lengths: Mapping[str, int],
    settings: Mapping[str, Any],
    clips_per_shard: int = ITEMS_PER_SHARD,
    left_out: Sequence[Skipped] = (),
) -> ShardedDataset:
    """The dataset to be at `out`/`name`/1.0.0, of `to_records`.

    Args:
      out: parent folder.
      name: dataset name, in snake case.
      description: what the clips are and where they come from.
      lengths: items of each split of the source.
      settings: what decides the clips, as JSON values.
      clips_per_shard: items of the source in a shard.
      left_out: what is listed behind the skipped items.

    Raises:
      ValueError: a split is not one of `SPLITS`, there is no item, or a shard is too small.
    """
    if unknown := set(lengths) - set(SPLITS):
        raise ValueError(f"splits {sorted(unknown)} are not known; allowed: {SPLITS}")
    return ShardedDataset(
        pathlib.Path(out) / name,
        name=name,
        below=VERSION,
        description=description,
        arrays={"audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")},
        lengths=lengths,
        shard_size=clips_per_shard,
        settings=settings,
        left_out=left_out,
    )


def to_records(clips: Iterable[Clip | Skipped]) -> Iterator[Record | Skipped]:
    """Records of clips, their audio as int16 [S]; what is skipped is handed on."""
    for clip in clips:
        if isinstance(clip, Skipped):
            yield clip
            continue
        audio = np.clip(np.asarray(clip.audio, np.float32), -1.0, 1.0)
        yield {
            "id": clip.id,
            "audio": np.round(audio * INT16_SCALE).astype(np.int16),
            "captions": list(clip.captions),
            "labels": json.dumps(clip.labels, ensure_ascii=False),
        }
