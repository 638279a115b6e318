"""Where audio is read from when it is encoded: one interface to datasets and to folders of files.

    a dataset of `data.common.records`       clips as they are
    another dataset of TFDS           in ArrayRecord; its audio is resampled, levelled and cut
    a folder of WAV, FLAC, Ogg, MP3   with a table of captions or without, as `data.folder` takes it

Every item is read by its index when it is asked for, so hosts can share the work. An item gives a
clip, several where it is longer than a minute, or none with the reason why.
Dimensions: S audio samples.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from tensorflow_datasets.core import dataset_info, naming, splits

from data.common import recordings
from data.common import tables as metadata
from data.common.records import Clip
from data.common.tables import Skipped
from fasttta_jax.audio import files as audio_lib
from fasttta_jax.audio.files import FILE_SCALE, INT16_SCALE
from fasttta_jax.input_pipeline.records import (
    INFO_FILE,
    Records,
    check_descriptions,
    description_hash,
    find_records,
)
from fasttta_jax.storage.content import folder_hash
from fasttta_jax.storage.files import damage, files_below, read_json

WORKERS = 2
AUDIO_FEATURES = ("audio", "waveform")
CAPTION_FEATURES = ("caption", "captions", "text")
ID_FEATURES = ("id", "audio_id", "clip_id", "file_name", "filename", "file", "path", "key")
"""The first of these that a dataset has names its clips."""

Feature = dict[str, Any]
"""A feature as features.json describes it."""

_OWN_KINDS = {"id": "Text", "audio": "Tensor", "captions": "Sequence", "labels": "Text"}
_TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"
_32_BITS = 2147483648.0


class AudioSource(abc.ABC):
    """Audio with captions, by split and index.

    Attributes:
      name: what people call it.
      sample_rate: of every clip, in Hz.
      lengths: number of items of each split.
      made_from: what decides the content, as JSON values; equal for equal content.
      metadata: what else is known of the data, as JSON values.
      left_out: captions that were not taken.
    """

    name: str
    sample_rate: int
    lengths: Mapping[str, int]
    made_from: Mapping[str, Any]
    metadata: Mapping[str, Any]
    left_out: Sequence[Skipped]

    @abc.abstractmethod
    def read(self, split: str, index: int) -> list[Clip | Skipped]:
        """The clips of an item, with what is left out of it; safe to call from many threads."""


def open_audio_source(
    path: str | pathlib.Path,
    sample_rate: int,
    *,
    source_rate: int | None = None,
    with_captions: bool = True,
) -> AudioSource:
    """Opens a dataset, or a folder of audio files.

    Args:
      path: a folder with one TFDS dataset at or below it, or with audio files.
      sample_rate: samples per second of the clips to read.
      source_rate: that of a TFDS dataset which does not say it itself.
      with_captions: False keeps no captions; a folder needs no table then.

    Raises:
      ValueError: there are several datasets, one is not in ArrayRecord or of another sample rate,
        features are missing or ambiguous, or a table is malformed.
      OSError: there is no such folder, no table where captions are wanted, or no audio.
    """
    path = pathlib.Path(path)
    if not any(file.name == INFO_FILE for file in files_below(path)):
        if source_rate is not None:
            raise ValueError(
                f"--sample_rate is {source_rate}, but {path} is a folder of audio files, which "
                "say it themselves"
            )
        return _Folder(path, recordings.Settings(sample_rate, with_captions=with_captions))
    found = find_records(path)
    check_descriptions(found)
    features = _features(found)
    kinds = {name: _kind(feature) for name, feature in features.items()}
    if kinds == _OWN_KINDS and features["audio"]["tensor"]["dtype"] == "int16":
        return _OwnDataset(found, sample_rate, source_rate, with_captions)
    return _ForeignDataset(found, features, sample_rate, source_rate, with_captions)


class _OwnDataset(AudioSource):
    """A dataset of `data.common.records`: clips as they are."""

    def __init__(
        self, path: pathlib.Path, sample_rate: int, source_rate: int | None, with_captions: bool
    ) -> None:
        proto = _described(path)
        self._records = {split.name: Records(path, split.name) for split in proto.splits}
        self.name = proto.name
        self.sample_rate = sample_rate
        self.lengths = {split: len(records) for split, records in self._records.items()}
        self.metadata = next(iter(self._records.values())).metadata
        self.made_from = _made_from(path, with_captions)
        self.left_out = ()
        self._with_captions = with_captions
        rate = _source_rate(path, self.metadata.get("sample_rate"), source_rate)
        if rate != sample_rate:
            raise ValueError(f"{path} has a sample rate of {rate} Hz; allowed: {sample_rate} Hz")

    def read(self, split: str, index: int) -> list[Clip | Skipped]:
        record = self._records[split][index]
        if not record["audio"].size:
            return [Skipped(record["id"], "empty", "the record holds no samples")]
        audio = record["audio"].astype(np.float32) / INT16_SCALE
        captions = record["captions"] if self._with_captions else []
        return [Clip(record["id"], audio, captions, record["labels"])]


class _Folder(AudioSource):
    """Audio files with or without a table."""

    def __init__(self, path: pathlib.Path, settings: recordings.Settings) -> None:
        self._files = recordings.find_files(path, settings)
        self._settings = settings
        self.name = path.name
        self.sample_rate = settings.sample_rate
        self.lengths = {split: len(members) for split, members in self._files.members.items()}
        self.made_from = {"source": "files", **self._files.made_from}
        self.metadata = {}
        self.left_out = self._files.left_out

    def read(self, split: str, index: int) -> list[Clip | Skipped]:
        entry = self._files.members[split][index]
        return recordings.read_clips(entry, self._files.audio, self._settings)


class _ForeignDataset(AudioSource):
    """A dataset of TFDS with any features, one of which is audio.

    TFDS's own reader builds every feature, and its audio feature needs TensorFlow. Records are
    therefore read here with the few features that are wanted, audio as the array or the file that
    it is stored as.
    """

    def __init__(
        self,
        path: pathlib.Path,
        features: Mapping[str, Feature],
        sample_rate: int,
        source_rate: int | None,
        with_captions: bool,
    ) -> None:
        proto = _described(path)
        if proto.file_format != "array_record":
            raise ValueError(
                f"{path} is kept as {proto.file_format or 'tfrecord'}; allowed: array_record "
                "(`tfds convert_format` makes one of it)"
            )
        self._path = path
        self._audio = _audio_feature(path, features)
        self._caption = _caption_feature(path, features) if with_captions else None
        self._id = _id_feature(features)
        wanted = [name for name in (self._audio, self._caption, self._id) if name is not None]
        self._features = tfds.features.FeaturesDict(
            {name: _readable(features[name]) for name in wanted}
        )
        described = features[self._audio].get("audio", {})
        self._is_file = described.get("lazyDecode", False)
        metadata_file = path / "metadata.json"
        self.metadata = read_json(metadata_file) if metadata_file.is_file() else {}
        declared = int(described.get("sampleRate", 0)) or self.metadata.get("sample_rate")
        self._source_rate = None
        if not self._is_file:
            self._source_rate = _source_rate(path, declared, source_rate)
        self._settings = recordings.Settings(sample_rate, with_captions=with_captions)
        self.name = proto.name
        self.sample_rate = sample_rate
        self.left_out = ()
        self._open(proto)
        self.made_from = {
            **_made_from(path, with_captions),
            **dataclasses.asdict(self._settings),
            "contents_sha256": folder_hash(path, _shards(path)),
            "features": wanted,
            "source_rate": self._source_rate,
        }

    def _open(self, proto: Any) -> None:
        template = naming.ShardedFileTemplate(
            dataset_name=proto.name, data_dir=epath.Path(self._path), filetype_suffix="array_record"
        )
        self._records: dict[str, ArrayRecordDataSource] = {}
        for name, split in splits.SplitDict.from_proto(proto.splits, template).items():
            own = metadata.SPLIT_NAMES.get(name, name)
            if own in self._records:
                raise ValueError(f"{self._path} has two splits that mean {own!r}: {name!r} is one")
            files: Any = split.file_instructions
            self._records[own] = ArrayRecordDataSource(files)
        self.lengths = {split: len(records) for split, records in self._records.items()}

    def read(self, split: str, index: int) -> list[Clip | Skipped]:
        record: Any = self._features.deserialize_example_np(self._records[split][index])
        clip_id = f"{split}_{index:07d}" if self._id is None else _text(record[self._id])
        captions: list[str] = []
        if self._caption is not None:
            captions = _captions(record[self._caption])
            if not captions:
                return [Skipped(clip_id, "no caption", "all of its captions are blank")]
        try:
            audio = self._decode(record[self._audio], clip_id)
        except audio_lib.AudioError as error:
            return [Skipped(clip_id, error.reason, error.detail)]
        return recordings.cut_clips(Clip(clip_id, audio, captions), self._settings)

    def _decode(self, stored: Any, clip_id: str) -> np.ndarray:
        if self._is_file:
            return audio_lib.read_audio_bytes(bytes(stored), self.sample_rate, name=clip_id)
        assert self._source_rate is not None
        return audio_lib.resample_audio(
            _floating(np.asarray(stored)), self._source_rate, self.sample_rate, name=clip_id
        )


def _made_from(path: pathlib.Path, with_captions: bool) -> dict[str, Any]:
    """What tells one dataset of ours from another: a hash of its contents is in its metadata."""
    info = read_json(path / INFO_FILE)
    return {
        "source": info["splits"],
        "source_sha256": description_hash(path),
        "with_captions": with_captions,
    }


def _shards(path: pathlib.Path) -> list[str]:
    names = (file.relative_to(path).as_posix() for file in files_below(path))
    return [name for name in names if ".array_record" in name]


def _source_rate(path: pathlib.Path, declared: Any, given: int | None) -> int:
    if not declared and given is None:
        raise ValueError(f"{path} does not say its sample rate; give it with --sample_rate")
    with damage(path):
        declared = None if declared is None else int(declared)
    if declared and given is not None and int(declared) != given:
        raise ValueError(
            f"--sample_rate is {given}, but {path} says it has {int(declared)} Hz; leave it out"
        )
    return int(declared or given or 0)


def _described(path: pathlib.Path) -> Any:
    """What TFDS says of the dataset in a folder; its own errors name no file."""
    with damage(path / INFO_FILE):
        return dataset_info.read_proto_from_builder_dir(str(path))


def _features(path: pathlib.Path) -> dict[str, Feature]:
    """The top-level features of a dataset by name, none of them built."""
    described = read_json(path / "features.json")
    if "featuresDict" not in described:
        raise ValueError(
            f"{path}/features.json is not a description that TFDS 4.6 or later writes: it has "
            f"{', '.join(described)}; allowed: pythonClassName and featuresDict"
        )
    with damage(path / "features.json"):
        found = described["featuresDict"]["features"]
        _listed(found)  # of all kinds
        return found


def _kind(feature: Feature) -> str:
    return feature["pythonClassName"].rpartition(".")[-1]


def _listed(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in sorted(features.items()))


def _audio_feature(path: pathlib.Path, features: Mapping[str, Feature]) -> str:
    """The feature of type Audio, or else the array with a name of `AUDIO_FEATURES`."""
    found = [name for name, feature in features.items() if _kind(feature) == "Audio"]
    found = found or [
        name for name in AUDIO_FEATURES if name in features and _kind(features[name]) == "Tensor"
    ]
    if len(found) != 1:
        what = f"audio in {', '.join(sorted(found))}" if found else "no audio"
        raise ValueError(
            f"{path} has {what}; allowed: one feature of type Audio, or an array named "
            f"{' or '.join(AUDIO_FEATURES)}. Its features are {_listed(features)}"
        )
    return found[0]


def _caption_feature(path: pathlib.Path, features: Mapping[str, Feature]) -> str | None:
    """The text, or list of texts, with a name of `CAPTION_FEATURES`."""
    found = [name for name in CAPTION_FEATURES if name in features]
    if not found:
        return None
    feature = features[found[0]]
    inner = feature["sequence"]["feature"] if _kind(feature) == "Sequence" else feature
    if len(found) > 1 or _kind(inner) != "Text":
        raise ValueError(
            f"{path} has captions in {', '.join(found)}; allowed: one of "
            f"{', '.join(CAPTION_FEATURES)}, a Text or a Sequence of it, or --without_captions. "
            f"Its features are {_listed(features)}"
        )
    return found[0]


def _id_feature(features: Mapping[str, Feature]) -> str | None:
    for name in ID_FEATURES:
        if name in features and (
            _kind(features[name]) in ("Text", "Scalar")
            or (_kind(features[name]) == "Tensor" and not features[name]["tensor"]["shape"])
        ):
            return name
    return None


def _readable(feature: Feature) -> tfds.features.FeatureConnector:
    """The feature, audio as what it is on disk: a file's bytes, or an array."""
    if _kind(feature) == "Audio":
        audio = feature["audio"]
        if audio.get("lazyDecode"):
            return tfds.features.Text()
        tensor = {name: audio[name] for name in ("shape", "dtype")}
        tensor["encoding"] = audio.get("encoding", "none").lower()
        feature = {"pythonClassName": _TENSOR, "tensor": tensor}
    return tfds.features.FeatureConnector.from_json(feature)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _captions(value: Any) -> list[str]:
    texts = [value] if isinstance(value, bytes | str) else list(value)
    return list(dict.fromkeys(filter(None, (_text(text).strip() for text in texts))))


def _floating(samples: np.ndarray) -> np.ndarray:
    """Samples with full scale at 1.

    TFDS puts integers of 16 and of 32 bits alike into wider types: the narrower scale that holds
    them all is theirs.
    """
    if samples.dtype.kind == "f":
        return samples
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    largest = np.max(np.abs(samples.astype(np.float64)), initial=0.0)
    return (samples / (FILE_SCALE if largest <= FILE_SCALE else _32_BITS)).astype(np.float32)
