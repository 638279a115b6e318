"""The shape of every audio dataset here: one TFDS schema, kept as ArrayRecord, without TensorFlow.

A record holds the waveform, the captions that describe it and a JSON object of labels. Whatever
makes clips (a synthesiser, a folder of recordings) hands `write_dataset` one iterable of `Clip` per
split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fasttta_jax.audio.files import INT16_SCALE

SPLITS = ("train", "validation", "test")
RECORDS_PER_SHARD = 2048
RECORDS_PER_WRITE = 64


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
      id: unique within the dataset.
      audio: mono waveform, float32 [S] in [-1, 1].
      captions: one or more descriptions of the clip.
      labels: anything JSON can hold; evaluation reads "events" (list of names) and "attributes"
        (event name to {axis: value}) where they are present.
    """

    id: str
    audio: np.ndarray
    captions: Sequence[str]
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_dataset(
    out: str | os.PathLike[str],
    *,
    name: str,
    description: str,
    sample_rate: int,
    splits: Mapping[str, Callable[[], Iterable[Clip]]],
    metadata: Mapping[str, Any] | None = None,
    finish: Callable[[pathlib.Path], Mapping[str, Any]] | None = None,
) -> pathlib.Path:
    """Writes `splits` under `out/name/1.0.0` as a TFDS dataset and returns that folder.

    A dataset that is already there is left as it is. Writing is atomic: a run that dies leaves no
    dataset behind.

    Args:
      out: parent folder.
      name: dataset name, in snake case.
      description: what the clips are and where they come from.
      sample_rate: samples per second of every clip.
      splits: for each split, a function that yields its clips.
      metadata: further JSON values to keep with the dataset.
      finish: called after the last clip with the folder that is about to become the dataset. It may
        add files there, returns metadata known only by then, and may raise to leave no dataset.
    """

    def records(clips: Callable[[], Iterable[Clip]]) -> Callable[[], Iterable[dict[str, Any]]]:
        return lambda: map(_record, clips())

    return write_records(
        out,
        name=name,
        description=description,
        array={"audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")},
        splits={split: records(clips) for split, clips in splits.items()},
        metadata={"sample_rate": sample_rate, **(metadata or {})},
        finish=finish,
    )


def _record(clip: Clip) -> dict[str, Any]:
    audio = np.clip(np.asarray(clip.audio, np.float32), -1.0, 1.0)
    return {
        "id": clip.id,
        "audio": np.round(audio * INT16_SCALE).astype(np.int16),
        "captions": list(clip.captions),
        "labels": json.dumps(clip.labels, ensure_ascii=False),
    }


def record_features(array: Mapping[str, tfds.features.Tensor]) -> tfds.features.FeaturesDict:
    """The schema of a record: id, captions, labels (JSON text) and the arrays named in `array`."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "labels": tfds.features.Text(),
            **array,
        }
    )


def write_records(
    out: str | os.PathLike[str],
    *,
    name: str,
    description: str,
    array: Mapping[str, tfds.features.Tensor],
    splits: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]],
    metadata: Mapping[str, Any],
    finish: Callable[[pathlib.Path], Mapping[str, Any]] | None = None,
) -> pathlib.Path:
    """Writes records of id, captions, labels (JSON text) and the arrays named in `array`.

    Arguments are those of `write_dataset`, with whole records in place of clips.
    """
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise ValueError(f"splits {sorted(unknown)} are not known; allowed: {SPLITS}")

    def info(self: tfds.core.GeneratorBasedBuilder) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=record_features(array),
            metadata=tfds.core.MetadataDict(**metadata),
        )

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(records) for split, records in splits.items()}

    def generate_examples(self: Any, records: Callable[[], Iterable[Mapping[str, Any]]]) -> Any:
        for record in records():
            yield record["id"], dict(record)

    def download_and_prepare(self: Any, dl_manager: Any, **kwargs: Any) -> None:
        del kwargs
        _write_in_order(self, self._split_generators(dl_manager))
        if finish is not None:
            self.info.metadata.update(finish(pathlib.Path(str(self.data_path))))

    builder_class = type(
        "".join(part.capitalize() for part in name.split("_")),
        (tfds.core.GeneratorBasedBuilder,),
        {
            "VERSION": tfds.core.Version("1.0.0"),
            "name": name,
            "__module__": __name__,
            "url_infos": {},  # nothing is downloaded; TFDS would look for a list next to this file
            "_info": info,
            "_split_generators": split_generators,
            "_generate_examples": generate_examples,
            "_download_and_prepare": download_and_prepare,
        },
        skip_registration=True,  # the registry allows a name once in a process
    )
    builder = builder_class(data_dir=os.fspath(out), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads; there are none
        builder.download_and_prepare()
    return pathlib.Path(str(builder.data_path))


def _write_in_order(builder: tfds.core.GeneratorBasedBuilder, splits: Mapping[str, Any]) -> None:
    # TFDS's own writer shuffles in memory up to 1 GB and needs TensorFlow beyond that. Training
    # shuffles anyway, so records are streamed to the shards as they come, at any size.
    info = builder._info()  # made here, it points to the unfinished folder
    writer = tfds.core.SequentialWriter(
        info, RECORDS_PER_SHARD, file_format=tfds.core.FileFormat.ARRAY_RECORD.value
    )
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        seen: set[str] = set()
        for batch in _batched(examples, RECORDS_PER_WRITE):
            for key, _ in batch:
                if key in seen:
                    raise ValueError(f"split {split!r} holds two records with the id {key!r}")
                seen.add(key)
            writer.add_examples({split: [record for _, record in batch]})
    writer.close_all()
    builder.info.set_splits(info.splits)


def _batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch
