"""Encoded datasets on disk: records, codec and text.

Dimensions: N tokens, C channels, P token columns in time, G tokens per column.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import ModelConfig
from fasttta_jax.storage.content import file_sha256
from fasttta_jax.storage.files import (
    StorageError,
    as_path,
    damage,
    files_below,
    read_json,
    write_json,
)
from fasttta_jax.storage.sealed import read_sealed, sealed
from fasttta_jax.storage.staging import DEFAULT_CACHE, stage

CODEC_FOLDER = "codec"
TEXT_FOLDER = "text"
RECORDS_FOLDER = "records"
INFO_FILE = "dataset_info.json"
METADATA_FILE = "metadata.json"
DESCRIPTIONS = (INFO_FILE, "features.json", METADATA_FILE)
HASHES = "descriptions_sha256"
"""Of the first two, in the third."""
_UNFINISHED = re.compile(r"\.incomplete|incomplete\.")


class DatasetError(StorageError):
    """A dataset that is missing, incomplete or does not fit the model."""


def find_records(folder: str | pathlib.Path) -> pathlib.Path:
    """The one TFDS dataset at or below `folder` (dataset_info.json marks it), links followed.

    Raises:
      DatasetError: there is none, or more than one.
    """
    found = [
        path.parent
        for path in files_below(folder)
        if path.name == INFO_FILE and not _UNFINISHED.search(str(path.relative_to(folder)))
    ]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise DatasetError(
            f"{folder} must hold exactly one dataset, a folder with {INFO_FILE}; found: {listed}"
        )
    return found[0]


def description_hash(path: pathlib.Path) -> str:
    """SHA-256 over what the dataset in a folder says of itself, beside the sizes of its splits.

    Its metadata hold the hash of its contents where it is one of ours.
    """
    digest = hashlib.sha256()
    for name in DESCRIPTIONS[1:]:
        if (path / name).is_file():
            digest.update((path / name).read_bytes())
    return digest.hexdigest()


def seal_descriptions(path: pathlib.Path) -> None:
    """Puts into the metadata of a dataset the hashes of its descriptions, and of themselves."""
    hashes = {name: _sha256(path / name) for name in DESCRIPTIONS[:2]}
    metadata = read_json(path / METADATA_FILE)
    write_json(path / METADATA_FILE, sealed({**metadata, HASHES: hashes}))


def check_descriptions(path: pathlib.Path) -> None:
    """Whether the descriptions of a dataset are there, and what its metadata say that they are.

    Those of other makers, and of earlier versions, say nothing of it.

    Raises:
      StorageError: one is damaged; names it.
    """
    for name in DESCRIPTIONS[:2]:  # TFDS's own errors name no file
        read_json(path / name)
    if not (path / METADATA_FILE).is_file():
        return
    hashes = read_sealed(path / METADATA_FILE).get(HASHES, {})
    with damage(path / METADATA_FILE):
        hashes = dict(hashes)
    for name, expected in hashes.items():
        if _sha256(path / name) != expected:
            raise DatasetError(
                f"{path / name} is not what was written: it has another SHA-256 than "
                f"{METADATA_FILE} says. Copy the dataset again"
            )


def _sha256(path: pathlib.Path) -> str:
    with damage(path):
        return file_sha256(path)


class Records:
    """Random access to one split of a TFDS dataset, text decoded.

    Raises:
      DatasetError: there is no such dataset or split, or a shard is missing or not whole.
      StorageError: a description of the dataset is damaged; names the file.
    """

    def __init__(self, folder: str | pathlib.Path, split: str) -> None:
        # Here, because what only generates need not wait for it to be imported.
        import tensorflow_datasets as tfds

        path = find_records(folder)
        check_descriptions(path)
        with damage(path / INFO_FILE):
            builder = tfds.builder_from_directory(str(path))
            if split not in builder.info.splits:
                raise DatasetError(
                    f"{folder} has no split {split!r}; allowed: {sorted(builder.info.splits)}, or "
                    "data made with clips for it (a column of splits, or a share of the files)"
                )
            self._shards = _check_shards(builder.info.splits[split].file_instructions)
            self._source: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
            self.metadata: dict[str, Any] = dict(builder.info.metadata or {})
        self._opened = (str(folder), split)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files anew."""
        return Records, self._opened

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self._damage(index):
            record = dict(self._source[index])
            record["id"] = record["id"].decode()
            record["captions"] = [caption.decode() for caption in record["captions"]]
            record["labels"] = json.loads(record["labels"].decode())
        return record

    @contextlib.contextmanager
    def _damage(self, index: int) -> Iterator[None]:
        """Names the shard of a record that cannot be read."""
        try:
            yield
        except IndexError:
            raise
        except Exception as error:
            path = next((path for path, end in self._shards if index < end), self._opened[0])
            raise DatasetError(
                f"{path} is damaged: record {index} of the split cannot be read ({error}); copy "
                "the dataset again, or make it anew"
            ) from error


def _check_shards(instructions: Sequence[Any]) -> list[tuple[str, int]]:
    """Paths of the shards of a split, with the number of the first record behind each.

    Raises:
      DatasetError: one is missing or holds another number of records than the dataset says.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    shards, end = [], 0
    for instruction in instructions:
        path, expected = os.fspath(instruction.filename), instruction.examples_in_shard
        try:
            reader = ArrayRecordReader(path)
            found = reader.num_records()
            reader.close()
        except (OSError, RuntimeError, ValueError) as error:
            raise DatasetError(f"{path} cannot be opened: {error}; copy it again") from error
        if found != expected:
            raise DatasetError(
                f"{path} is damaged: it holds {found} records and should hold {expected}; was it "
                "copied whole? Copy it again, or make the dataset anew"
            )
        end += expected
        shards.append((path, end))
    return shards


class EncodedDataset:
    """The folder that `python -m data.encode_latents` writes: records, codec and text.

    Args:
      path: the folder, or its URL in an object store.
      cache: folder of this host where a URL's files are copied to, once.

    Raises:
      DatasetError: the folder or a part of it is missing.
      StorageError: it is a URL that cannot be read, or the cache cannot hold it.
    """

    def __init__(self, path: str | os.PathLike[str], cache: str = DEFAULT_CACHE) -> None:
        if not str(path):
            raise DatasetError("data.path is empty; allowed: a folder of encoded data")
        if not (as_path(path) / RECORDS_FOLDER).is_dir():
            raise DatasetError(
                f"data.path is {str(path)!r}, which has no {RECORDS_FOLDER}/ folder; "
                "`python -m data.encode_latents` makes one"
            )
        self.path = stage(path, cache)
        self.records_folder = self.path / RECORDS_FOLDER
        self.codec: Codec = load_codec(self.path / CODEC_FOLDER)
        self.text_folder = self.path / TEXT_FOLDER

    @property
    def parts(self) -> tuple[EncodedDataset, ...]:
        """The datasets that training draws from: this one, or those of a mixture."""
        return (self,)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of each part in training, up to a factor."""
        return (1.0,)

    def split(self, split: str) -> Records:
        """The records of a split.

        Raises:
          DatasetError: there is no such split, a shard is not whole, or the codec is not the one
            that made the records.
          StorageError: a description of the dataset is damaged; names the file.
        """
        records = Records(self.records_folder, split)
        expected = records.metadata.get("codec_sha256")  # other projects' data do not say it
        if expected not in (None, self._codec_hash):
            raise DatasetError(
                f"{self.path / CODEC_FOLDER} is not the codec that made the records: its SHA-256 "
                f"is {self._codec_hash[:12]}, and was {str(expected)[:12]}. Copy the dataset again"
            )
        return records

    @functools.cached_property
    def _codec_hash(self) -> str:
        return self.codec_hash()

    def codec_hash(self) -> str:
        """Hash of the codec's files: equal where tokens mean the same."""
        digest = hashlib.sha256()
        folder = self.path / CODEC_FOLDER
        for file in files_below(folder):
            content = hashlib.sha256(file.read_bytes()).digest()
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + content)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Hash of the records, the codec's statistics and the tokenizer: equal for equal data."""
        digest = hashlib.sha256()
        records = find_records(self.records_folder)
        files = [records / INFO_FILE]
        metadata = records / METADATA_FILE
        if metadata.is_file():
            digest.update(read_json(metadata).get("sha256", "").encode())
        for folder in (self.path / CODEC_FOLDER, self.text_folder):
            files += sorted(path for path in folder.glob("*") if path.is_file())
        for file in files:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def check(self, model: ModelConfig) -> None:
        """Raises DatasetError where tokens do not have the model's shape."""
        if self.codec.token_dim != model.token_dim:
            raise DatasetError(
                f"model.token_dim is {model.token_dim}; the codec of {self.path} makes tokens of "
                f"{self.codec.token_dim}"
            )
        if model.num_tokens % self.codec.tokens_per_column:
            raise DatasetError(
                f"model.num_tokens is {model.num_tokens}; allowed: multiples of the codec's "
                f"{self.codec.tokens_per_column} tokens per column"
            )
