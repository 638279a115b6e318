"""A TFDS dataset written shard by shard, by any number of hosts, killed and started again at will.

Every split of a source is cut into shards: ranges of its indices, of one size. Shard i belongs to
host i % num_hosts. A shard's records appear whole, then the note that it is done:

    records.incomplete/settings.json                     what the dataset is made from
    records.incomplete/NAME/1.0.0/NAME-SPLIT.array_record-00000
    records.incomplete/NAME/1.0.0/shards/SPLIT-00000.json

When every shard has its note, whichever host sees that writes the description that TFDS reads, and
the folder becomes records/. No record depends on how the work was shared, nor does the content hash
in the metadata: it is taken over the values of the records, in the order of the source.
Dimensions: P token columns in time, G tokens per column, C channels.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import dataset_info, naming, splits

from data.common import records as builder
from data.common.moments import Moments
from data.common.tables import Skipped
from fasttta_jax.storage.files import TEMPORARY, differences, whole, write_json

VERSION = "1.0.0"
INCOMPLETE = ".incomplete"
SETTINGS_FILE = "settings.json"
SKIPPED_FILE = "skipped.jsonl"
NOTES_FOLDER = "shards"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A range of the indices of a split, and its number among the shards of the split."""

    split: str
    index: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the notes of all shards say.

    Attributes:
      num_records: of each split.
      moments: of the tokens of each split.
      skipped: what was left out, in the order of the source.
      sha256: over the content of every record, split by split.
    """

    num_records: Mapping[str, int]
    moments: Mapping[str, Moments]
    skipped: Sequence[Skipped]
    sha256: str


class ShardedDataset:
    """The dataset to be at `folder`.

    Args:
      folder: where it will appear, complete.
      name: dataset name, in snake case.
      description: what the records are.
      arrays: features beside id, captions and labels; "tokens" [P, G, C] is among them.
      lengths: number of items of each split of the source.
      shard_size: items of the source in a shard.
      settings: what decides the content, as JSON values.

    Raises:
      ValueError: the folder holds something made with other settings; names the differences.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        name: str,
        description: str,
        arrays: Mapping[str, tfds.features.Tensor],
        lengths: Mapping[str, int],
        shard_size: int,
        settings: Mapping[str, Any],
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"clips_per_shard is {shard_size}; allowed: 1 or more")
        self.folder = pathlib.Path(folder)
        self.unfinished = self.folder.with_name(self.folder.name + INCOMPLETE)
        self._name = name
        self._description = description
        self._features = builder.record_features(arrays)
        self._arrays = tuple(sorted(arrays))
        self._settings = json.loads(json.dumps({**settings, "clips_per_shard": shard_size}))
        self._data = self.unfinished / name / VERSION
        self.shards: list[Shard] = []
        for split, length in lengths.items():
            for index, start in enumerate(range(0, length, shard_size)):
                stop = min(start + shard_size, length)
                self.shards.append(Shard(split, index, start, stop))
        if not self.shards:
            raise ValueError(f"nothing to write to {self.folder}: the source has no items")

    @property
    def is_complete(self) -> bool:
        """Whether the dataset is there, made with these settings.

        Raises:
          ValueError: it is there, made with other settings.
        """
        data = self.folder / self._name / VERSION
        if not (data / "dataset_info.json").is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ValueError(
                    f"{self.folder} holds other data than {self._name}/{VERSION}; choose another "
                    "folder or remove it"
                )
            return False
        metadata = json.loads((data / "metadata.json").read_text())
        _check_same(self.folder, metadata.get("made_from", {}), self._settings)
        return True

    def kept(self) -> dict[str, Any] | None:
        """What `start` was given when the work began; None if it has not begun.

        Raises:
          ValueError: it began with other settings.
        """
        file = self.unfinished / SETTINGS_FILE
        if not file.is_file():
            return None
        found = json.loads(file.read_text())
        _check_same(self.unfinished, found["made_from"], self._settings)
        return found["kept"]

    def start(self, keep: Mapping[str, Any]) -> dict[str, Any]:
        """Begins, or goes on; `keep` are JSON values that are to be known after a restart.

        Returns:
          What is kept: `keep`, or that of the start before.

        Raises:
          ValueError: the work began with other settings.
        """
        (self._data / NOTES_FOLDER).mkdir(parents=True, exist_ok=True)
        kept = self.kept()
        if kept is not None:
            return kept
        described = {"made_from": self._settings, "kept": keep}
        write_json(self.unfinished / SETTINGS_FILE, described)
        return dict(keep)

    def missing(self, host_index: int = 0, num_hosts: int = 1) -> list[Shard]:
        """The shards of a host that are not done."""
        return [
            shard
            for shard in self.shards[host_index::num_hosts]
            if not self._note_file(shard).is_file()
        ]

    def write(
        self, shard: Shard, records: Iterable[Mapping[str, Any]], skipped: Sequence[Skipped]
    ) -> None:
        """Writes a shard: records in the order of the source, and what was left out.

        Raises:
          ValueError: a record's tokens are not finite.
        """
        digest = hashlib.sha256()
        moments: Moments | None = None
        num_records = num_bytes = 0
        with whole(self._shard_file(shard)) as file, contextlib.ExitStack() as stack:
            writer = ArrayRecordWriter(str(file), "group_size:1")
            stack.callback(writer.close)
            for record in records:
                if not np.all(np.isfinite(record["tokens"])):
                    raise ValueError(
                        f"clip {record['id']!r} of {shard.split}: tokens are not finite in "
                        f"{record['tokens'].dtype}"
                    )
                added = Moments.of(record["tokens"])
                moments = added if moments is None else moments + added
                self._add_content(digest, record)
                serialized = self._features.serialize_example(dict(record))
                writer.write(serialized)
                num_records += 1
                num_bytes += len(serialized)
        note = {
            "start": shard.start,
            "stop": shard.stop,
            "num_records": num_records,
            "num_bytes": num_bytes,
            "sha256": digest.hexdigest(),
            "made_from_sha256": self._settings_sha256,
            "num_tokens": moments.count if moments else 0,
            "token_sum": moments.total.tolist() if moments else None,
            "token_square_sum": moments.squares.tolist() if moments else None,
            "skipped": [dataclasses.asdict(item) for item in skipped],
        }
        write_json(self._note_file(shard), note)

    def finish(self, describe: Callable[[Summary], Mapping[str, Any]]) -> Summary | None:
        """Makes the dataset of all shards; None while some are missing.

        Hosts may do so at the same time: they write the same, and the first rename stands.

        Args:
          describe: metadata of the dataset, from what the shards hold.

        Raises:
          ValueError: a split is left without a record, or a shard was made with other settings.
        """
        try:
            if self.missing():
                return None
            notes = [json.loads(self._note_file(shard).read_text()) for shard in self.shards]
            summary = self._summarise(notes)
            self._describe(notes, summary, describe(summary))
            for leftover in self.unfinished.rglob(f"*{TEMPORARY}"):  # of a host that was killed
                leftover.unlink()
            os.rename(self.unfinished, self.folder)
        except OSError:
            if not self.is_complete:  # another host was faster
                raise
            return None
        return summary

    def _summarise(self, notes: Sequence[Mapping[str, Any]]) -> Summary:
        digest = hashlib.sha256()
        num_records: collections.Counter[str] = collections.Counter()
        moments: dict[str, Moments] = {}
        skipped: list[Skipped] = []
        for shard, note in zip(self.shards, notes, strict=True):
            if note["made_from_sha256"] != self._settings_sha256:
                raise ValueError(
                    f"{self._note_file(shard)} was made with other settings; remove it and encode "
                    "again"
                )
            num_records[shard.split] += note["num_records"]
            digest.update(f"{shard.split}\n{note['sha256']}\n".encode())
            skipped += [Skipped(**item) for item in note["skipped"]]
            if note["num_records"]:
                added = Moments(
                    note["num_tokens"],
                    np.asarray(note["token_sum"]),
                    np.asarray(note["token_square_sum"]),
                )
                known = moments.get(shard.split)
                moments[shard.split] = added if known is None else known + added
        for split, count in num_records.items():
            if not count:
                reasons = dict(collections.Counter(item.reason for item in skipped))
                raise ValueError(
                    f"split {split!r} is left without a record; skipped in all splits: {reasons}"
                )
        return Summary(dict(num_records), moments, skipped, digest.hexdigest())

    def _describe(
        self, notes: Sequence[Mapping[str, Any]], summary: Summary, metadata: Mapping[str, Any]
    ) -> None:
        """Writes what TFDS reads, file by file, each of them whole."""
        identity = dataset_info.DatasetIdentity(
            name=self._name,
            version=tfds.core.Version(VERSION),
            data_dir=str(self._data),
            module_name="",
        )
        info = dataset_info.DatasetInfo(
            builder=identity,
            description=self._description,
            features=self._features,
            metadata=tfds.core.MetadataDict(**metadata, made_from=self._settings),
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        of_split: dict[str, list[Mapping[str, Any]]] = {}
        for shard, note in zip(self.shards, notes, strict=True):
            of_split.setdefault(shard.split, []).append(note)
        info.set_splits(
            splits.SplitDict(
                [
                    splits.SplitInfo(
                        name=split,
                        shard_lengths=[note["num_records"] for note in members],
                        num_bytes=sum(note["num_bytes"] for note in members),
                        filename_template=self._template(split),
                    )
                    for split, members in of_split.items()
                ]
            )
        )
        lines = (
            json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n"
            for item in summary.skipped
        )
        with tempfile.TemporaryDirectory(
            prefix="incomplete.", dir=self.unfinished.parent, ignore_cleanup_errors=True
        ) as temporary:
            info.write_to_directory(temporary)
            (pathlib.Path(temporary) / SKIPPED_FILE).write_text("".join(lines), "utf-8")
            for file in pathlib.Path(temporary).iterdir():
                os.replace(file, self._data / file.name)

    @functools.cached_property
    def _settings_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()

    def _add_content(self, digest: Any, record: Mapping[str, Any]) -> None:
        texts = [record["id"], list(record["captions"]), record["labels"]]
        parts = [json.dumps(texts).encode()]
        for name in self._arrays:
            array = np.asarray(record[name])
            parts += [f"{name} {array.dtype.str} {array.shape}".encode(), array.tobytes()]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)

    def _template(self, split: str) -> naming.ShardedFileTemplate:
        return naming.ShardedFileTemplate(
            data_dir=epath.Path(self._data),
            dataset_name=self._name,
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        )

    def _shard_file(self, shard: Shard) -> pathlib.Path:
        template = self._template(shard.split)
        return pathlib.Path(template.sharded_filepath(shard_index=shard.index, num_shards=None))

    def _note_file(self, shard: Shard) -> pathlib.Path:
        return self._data / NOTES_FOLDER / f"{shard.split}-{shard.index:05d}.json"


def _check_same(folder: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if different := differences(found, wanted):
        raise ValueError(
            f"{folder} holds data encoded from another dataset or with other settings: "
            f"{'; '.join(different)}. Choose another folder, or remove it"
        )
