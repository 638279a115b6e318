"""Encoded datasets on disk: records, codec and text.

Dimensions: N tokens, C channels, P token columns in time, G tokens per column.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import ModelConfig
from fasttta_jax.storage.files import as_path, files_below
from fasttta_jax.storage.staging import DEFAULT_CACHE, stage

CODEC_FOLDER = "codec"
TEXT_FOLDER = "text"
RECORDS_FOLDER = "records"
INFO_FILE = "dataset_info.json"
_UNFINISHED = re.compile(r"\.incomplete|incomplete\.")


class DatasetError(ValueError):
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
        raise DatasetError(f"{folder} must hold exactly one dataset; found: {listed}")
    return found[0]


class Records:
    """Random access to one split of a TFDS dataset, text decoded."""

    def __init__(self, folder: str | pathlib.Path, split: str) -> None:
        # Here, because what only generates need not wait for it to be imported.
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(find_records(folder)))
        if split not in builder.info.splits:
            raise DatasetError(
                f"{folder} has no split {split!r}; allowed: {sorted(builder.info.splits)}"
            )
        self.metadata: dict[str, Any] = dict(builder.info.metadata or {})
        self._source: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
        self._opened = (str(folder), split)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files anew."""
        return Records, self._opened

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = dict(self._source[index])
        record["id"] = record["id"].decode()
        record["captions"] = [caption.decode() for caption in record["captions"]]
        record["labels"] = json.loads(record["labels"].decode())
        return record


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
        """The records of a split."""
        return Records(self.records_folder, split)

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
        files = [records / "dataset_info.json"]
        metadata = records / "metadata.json"
        if metadata.is_file():
            digest.update(json.loads(metadata.read_text()).get("sha256", "").encode())
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
