"""A TFDS dataset written shard by shard, by any number of processes, killed and started at will.

A shard's records appear whole, then the note that it is done (`fasttta_jax.storage.shards`). For
the dataset `latents` below `records`:

    records.incomplete/settings.json                     what the dataset is made from
    records.incomplete/latents/1.0.0/latents-SPLIT.array_record-00000
    records.incomplete/latents/1.0.0/shards/SPLIT-00000.json

When every shard has its note, whichever process sees that writes the description that TFDS reads,
and the folder becomes records/. No record depends on how the work was shared, nor does the content
hash in the metadata: it is taken over the values of the records, in the order of the source. An id
that comes twice in a split is refused: by the process that meets it twice, else by the one that
completes the dataset, from the ids that the notes keep.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from tensorflow_datasets.core import dataset_info, naming, splits

from data.common.tables import Skipped, report
from fasttta_jax.input_pipeline.records import DESCRIPTIONS, seal_descriptions
from fasttta_jax.storage.files import StorageError, read_json
from fasttta_jax.storage.record_writer import RecordWriter
from fasttta_jax.storage.shards import NOTES_FOLDER, Shard, ShardedWork, check_share
from fasttta_jax.storage.whole import remove_leftovers, scratch_folder, whole, write_errors

VERSION = "1.0.0"
INCOMPLETE = ".incomplete"
SKIPPED_FILE = "skipped.jsonl"
ITEMS_PER_SHARD = 256
UNSAID = ("clips_per_shard", "contents_sha256")
"""Settings that datasets of earlier versions do not tell."""

Record = Mapping[str, Any]
"""id, captions, labels (JSON text) and arrays."""
Item = tuple[str, int]
"""Split and index in a source."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the notes of all shards say.

    Attributes:
      num_records: of each split.
      notes: of the shards of each split.
      skipped: what was left out, in the order of the source.
      sha256: over the content of every record, split by split.
    """

    num_records: Mapping[str, int]
    notes: Mapping[str, Sequence[Mapping[str, Any]]]
    skipped: Sequence[Skipped]
    sha256: str


class _Ids:
    """Which shard every clip is in; an id may come once in a split."""

    def __init__(self) -> None:
        self._shards: dict[tuple[str, str], Shard] = {}

    def add(self, shard: Shard, ids: Iterable[str]) -> None:
        """Raises ValueError where a clip of the split has one of these ids, or two of them do."""
        new: dict[tuple[str, str], Shard] = {}
        for clip_id in ids:
            key = shard.split, clip_id
            other = shard if key in new else self._shards.get(key)
            if other is not None:
                places = dict.fromkeys(
                    f"items {each.start} to {each.stop - 1}" for each in (other, shard)
                )
                raise ValueError(
                    f"split {shard.split!r} has two clips with the id {clip_id!r}, in "
                    f"{' and in '.join(places)} of the source; allowed: each id once in a split"
                )
            new[key] = shard
        self._shards |= new


class ShardedDataset:
    """The dataset to be at `folder`.

    Args:
      folder: what will appear, complete.
      name: dataset name, in snake case.
      below: where in `folder` the dataset lies; NAME/VERSION when None.
      description: what the records are.
      arrays: features beside id, captions and labels.
      lengths: number of items of each split of the source.
      shard_size: items of the source in a shard.
      settings: what decides the content, as JSON values.
      left_out: what is listed behind the skipped items: what no shard knows of.
      measure: of a record, sums as JSON values (numbers and lists of them) by name; a shard's note
        holds the sums over its records.

    Raises:
      ValueError: the shards are too small, or there is no item.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        name: str,
        below: str | None = None,
        description: str,
        arrays: Mapping[str, tfds.features.Tensor],
        lengths: Mapping[str, int],
        shard_size: int,
        settings: Mapping[str, Any],
        left_out: Sequence[Skipped] = (),
        measure: Callable[[Record], Mapping[str, Any]] | None = None,
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"clips_per_shard is {shard_size}; allowed: 1 or more")
        below = f"{name}/{VERSION}" if below is None else below
        self.folder = pathlib.Path(folder)
        self.work = ShardedWork(
            self.folder.with_name(self.folder.name + INCOMPLETE),
            lengths=lengths,
            shard_size=shard_size,
            settings={**settings, "clips_per_shard": shard_size},
            notes=f"{below}/{NOTES_FOLDER}",
        )
        self.path = self.folder / below
        self._data = self.work.folder / below
        self._name = name
        self._description = description
        self._features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "labels": tfds.features.Text(),
                **arrays,
            }
        )
        self._arrays = tuple(sorted(arrays))
        self._left_out = left_out
        self._measure = measure
        self._ids = _Ids()

    @property
    def is_complete(self) -> bool:
        """Whether the dataset is there, made with these settings.

        Raises:
          ValueError: something else is there, or it was made with other settings.
        """
        if not (self.path / "dataset_info.json").is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ValueError(
                    f"{self.folder} holds other data than {self._name}/{VERSION}; choose another "
                    "folder or remove it"
                )
            return False
        metadata = read_json(self.path / "metadata.json")
        settings = self.work.settings
        # Older datasets say nothing of some settings, or keep one among the other metadata.
        said = {name: settings[name] for name in UNSAID if name in settings} | metadata
        said |= metadata.get("made_from", {})
        self.work.check({name: said.get(name) for name in settings}, self.path)
        return True

    def make(
        self,
        read: Callable[[Iterator[Item]], Generator[Sequence[Any], None, None]],
        to_records: Callable[[Iterator[Any]], Iterable[Record | Skipped]],
        describe: Callable[[Summary], Mapping[str, Any]],
        *,
        process_id: int = 0,
        num_processes: int = 1,
        unit: str = "clip",
    ) -> Summary | None:
        """Writes what a process has to write and is not there yet, and completes the dataset.

        Args:
          read: gives, for each item of the source in order, what is found there: any number of
            things, `Skipped` among them. It may run ahead, and is closed at the end.
          to_records: makes the things of a shard into its records.
          describe: metadata of the dataset, from what all shards hold. It may raise, and the shards
            stay.
          process_id: which of the processes this is.
          num_processes: how many share the work.
          unit: what an item is, for the progress bar.

        Returns:
          What the dataset holds, if this call completed it. Otherwise it was there before, or
          shards of other processes are missing; the message printed says which.

        Raises:
          ValueError: the folder holds something else, a split is left without a record or has two
            of one id, or a value is not finite.
        """
        check_share(process_id, num_processes)
        if self.is_complete:
            self._remove_scratch()
            print(f"{self.path} is already there, made with these settings; nothing to do")
            return None
        self.work.start()
        self._forget_lost()
        shards = self.work.missing(process_id, num_processes)
        own = sum(len(shard.indices) for shard in self.work.of_process(process_id, num_processes))
        todo = sum(len(shard.indices) for shard in shards)
        found = read((shard.split, index) for shard in shards for index in shard.indices)
        with (
            contextlib.closing(found),
            tqdm.tqdm(
                desc=self._name, total=own, initial=own - todo, unit=unit, mininterval=1.0
            ) as progress,
        ):

            def of_shard(shard: Shard) -> Iterator[Any]:
                for things in itertools.islice(found, len(shard.indices)):
                    progress.update()
                    yield from things

            try:
                for shard in shards:
                    self.write(shard, to_records(of_shard(shard)))
            except FileNotFoundError:
                if not self.is_complete:  # by another process, which did the same
                    raise
        summary = self.finish(describe)
        if not self.is_complete:
            print(
                f"{self.path}: process {process_id} of {num_processes} is done; "
                f"{len(self.work.missing())} shards of other processes are missing"
            )
        return summary

    def _forget_lost(self) -> None:
        """A shard whose file was removed is to be made again, whatever its note says."""
        for shard in self.work.shards:
            if not self._shard_file(shard).is_file():
                self.work.forget(shard)

    def write(self, shard: Shard, items: Iterable[Record | Skipped]) -> None:
        """Writes a shard: its records in the order of the source, and what was left out.

        Raises:
          ValueError: an array of a record is not finite, or an id came before, in this shard or in
            another that this object wrote.
          StorageError: there is no room, or no right to write.
        """
        digest = hashlib.sha256()
        sums: dict[str, np.ndarray] = {}
        skipped: list[Skipped] = []
        ids: list[str] = []
        num_bytes = 0
        with whole(self._shard_file(shard)) as file, RecordWriter(file) as writer:
            for item in items:
                if isinstance(item, Skipped):
                    skipped.append(item)
                    continue
                self._check_finite(shard, item)
                for name, value in (self._measure(item) if self._measure else {}).items():
                    sums[name] = sums.get(name, 0) + np.asarray(value)
                self._add_content(digest, item)
                serialized = self._features.serialize_example(dict(item))
                writer.write(serialized)
                ids.append(item["id"])
                num_bytes += len(serialized)
        self._ids.add(shard, ids)
        note = {
            "num_records": len(ids),
            "num_bytes": num_bytes,
            "ids": ids,
            "sha256": digest.hexdigest(),
            **{name: value.tolist() for name, value in sums.items()},
            "skipped": [dataclasses.asdict(item) for item in skipped],
        }
        self.work.done(shard, note)

    def finish(self, describe: Callable[[Summary], Mapping[str, Any]]) -> Summary | None:
        """Makes the dataset of all shards; None while some are missing.

        Several processes may do so at the same time: they write the same, and the first rename
        stands.

        Args:
          describe: metadata of the dataset, from what the shards hold.

        Raises:
          ValueError: a split is left without a record or has two of one id, or a shard was made
            with other settings.
        """
        try:
            self._forget_lost()
            notes = self.work.notes()
            if notes is None:
                return None
            summary = self._summarise(notes)
            self._describe(summary, describe(summary))
            remove_leftovers(self.work.folder)
            self._remove_scratch()
            os.rename(self.work.folder, self.folder)
        except (OSError, StorageError):
            if not self.is_complete:  # by another process, which was faster
                raise
            return None
        return summary

    def _remove_scratch(self) -> None:
        """What a process that was killed has left of `_describe`."""
        remove_leftovers(self.work.folder.parent, self.work.folder.name, deep=False)

    def _summarise(self, notes: Sequence[Mapping[str, Any]]) -> Summary:
        digest = hashlib.sha256()
        num_records: collections.Counter[str] = collections.Counter()
        of_split: dict[str, list[Mapping[str, Any]]] = {}
        skipped: list[Skipped] = []
        ids = _Ids()  # of all processes
        for shard, note in zip(self.work.shards, notes, strict=True):
            ids.add(shard, note.get("ids", ()))  # earlier versions noted none
            num_records[shard.split] += note["num_records"]
            of_split.setdefault(shard.split, []).append(note)
            digest.update(f"{shard.split}\n{note['sha256']}\n".encode())
            skipped += [Skipped(**item) for item in note["skipped"]]
        for split, count in num_records.items():
            if not count:
                raise ValueError(
                    f"split {split!r} is left without a record\n{report(skipped, self._left_out)}"
                )
        return Summary(dict(num_records), of_split, skipped, digest.hexdigest())

    def _describe(self, summary: Summary, metadata: Mapping[str, Any]) -> None:
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
            metadata=tfds.core.MetadataDict(
                **metadata, sha256=summary.sha256, made_from=self.work.settings
            ),
        )
        info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
        info.set_splits(
            splits.SplitDict(
                [
                    splits.SplitInfo(
                        name=split,
                        shard_lengths=[note["num_records"] for note in notes],
                        num_bytes=sum(note["num_bytes"] for note in notes),
                        filename_template=self._template(split),
                    )
                    for split, notes in summary.notes.items()
                ]
            )
        )
        lines = (
            json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n"
            for item in (*summary.skipped, *self._left_out)
        )
        with (
            scratch_folder(self.work.folder) as temporary,
            write_errors(self._data),
        ):
            info.write_to_directory(temporary)
            seal_descriptions(temporary)
            (temporary / SKIPPED_FILE).write_text("".join(lines), "utf-8")
            for file in temporary.iterdir():
                os.replace(file, self._data / file.name)
        for name in (*DESCRIPTIONS, SKIPPED_FILE):
            if not (self._data / name).is_file():
                raise StorageError(
                    f"{self._data / name} was removed while it was written; start the same command "
                    "again"
                )

    def _check_finite(self, shard: Shard, record: Record) -> None:
        for name in self._arrays:
            values = record[name]
            if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
                raise ValueError(
                    f"clip {record['id']!r} of {shard.split}: {name} are not finite in "
                    f"{values.dtype}"
                )

    def _add_content(self, digest: Any, record: Record) -> None:
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
