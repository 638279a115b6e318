"""Encoded datasets on disk to global batches on the mesh.

Order and randomness are functions of (seed, step) alone: batch `step` of a run is the same whatever
the number of hosts or reading threads, and resuming means starting the iterator at a step.
Dimensions: B clips, N tokens, C channels, P token columns in time, G tokens per column.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from jax.sharding import Mesh

from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import DataConfig, ModelConfig
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.text.base import TextEncoder

CODEC_FOLDER = "codec"
TEXT_FOLDER = "text"
RECORDS_FOLDER = "records"


class DatasetError(ValueError):
    """A dataset that is missing, incomplete or does not fit the model."""


def find_records(folder: str | pathlib.Path) -> pathlib.Path:
    """The one TFDS dataset at or below `folder` (dataset_info.json marks it).

    Raises:
      DatasetError: there is none, or more than one.
    """
    found = sorted(path.parent for path in pathlib.Path(folder).glob("**/dataset_info.json"))
    found = [
        path for path in found if ".incomplete" not in str(path) and "incomplete." not in str(path)
    ]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise DatasetError(f"{folder} must hold exactly one dataset; found: {listed}")
    return found[0]


class Records:
    """Random access to one split of a TFDS dataset, text decoded."""

    def __init__(self, folder: str | pathlib.Path, split: str) -> None:
        builder = tfds.builder_from_directory(str(find_records(folder)))
        if split not in builder.info.splits:
            raise DatasetError(
                f"{folder} has no split {split!r}; allowed: {sorted(builder.info.splits)}"
            )
        self.metadata: dict[str, Any] = dict(builder.info.metadata or {})
        self._source: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]

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

    Raises:
      DatasetError: the folder or a part of it is missing.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        if not str(path):
            raise DatasetError("data.path is empty; allowed: a folder of encoded data")
        self.path = pathlib.Path(path)
        if not (self.path / RECORDS_FOLDER).is_dir():
            raise DatasetError(
                f"data.path is {str(path)!r}, which has no {RECORDS_FOLDER}/ folder; "
                "`python -m data.encode_latents` makes one"
            )
        self.records_folder = self.path / RECORDS_FOLDER
        self.codec: Codec = load_codec(self.path / CODEC_FOLDER)
        self.text_folder = self.path / TEXT_FOLDER

    def split(self, split: str) -> Records:
        """The records of a split."""
        return Records(self.records_folder, split)

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
                f"{self.codec.tokens_per_column} tokens per moment"
            )


def crop_or_pad(
    columns: np.ndarray, num_columns: int, silence: np.ndarray, rng: np.random.Generator | None
) -> np.ndarray:
    """`num_columns` consecutive columns: a random window, the first without rng, or silence behind.

    Args:
      columns: [P, G, C].
      num_columns: how many to return.
      silence: one silent column, [G, C].
      rng: draws the window.

    Returns:
      float32 [num_columns, G, C].
    """
    surplus = columns.shape[0] - num_columns
    if surplus > 0:
        start = 0 if rng is None else int(rng.integers(surplus + 1))
        columns = columns[start : start + num_columns]
    columns = columns.astype(np.float32)
    if surplus < 0:
        columns = np.concatenate([columns, np.repeat(silence[None], -surplus, axis=0)])
    return columns


class _Example(grain.transforms.RandomMap):
    """One record to model arrays: a window of its tokens and one of its captions.

    With `sample_posterior`, tokens are drawn from the posterior; the silence behind a short clip
    has no variance. Window and caption are those of the same step without it.
    """

    def __init__(
        self, dataset: EncodedDataset, text: TextEncoder, num_tokens: int, sample_posterior: bool
    ) -> None:
        self._num_tokens = num_tokens
        self._num_columns = num_tokens // dataset.codec.tokens_per_column
        self._silence = dataset.codec.silence()
        self._text = text
        self._sample_posterior = sample_posterior

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        columns, silence = element["tokens"], self._silence
        if self._sample_posterior:  # the deviations share the window of the means
            deviation = np.exp(element["log_variance"].astype(np.float32) / 2)
            columns = np.concatenate([columns.astype(np.float32), deviation], axis=-1)
            silence = np.concatenate([silence, np.zeros_like(silence)], axis=-1)
        columns = crop_or_pad(columns, self._num_columns, silence, rng)
        captions = element["captions"]
        caption = captions[int(rng.integers(len(captions)))] if captions else ""
        text = self._text.tokenize([caption])
        if self._sample_posterior:
            mean, deviation = np.split(columns, 2, axis=-1)
            columns = mean + deviation * rng.standard_normal(mean.shape, np.float32)
        return {
            "tokens": columns.reshape(self._num_tokens, -1),
            "weight": np.float32(1.0),
            "text": {name: values[0] for name, values in text.items()},
        }


def to_global(batch: Any, mesh: Mesh) -> Any:
    """This host's rows of a batch as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )


def train_batches(
    dataset: EncodedDataset,
    text: TextEncoder,
    config: DataConfig,
    *,
    num_tokens: int,
    seed: int,
    first_step: int,
    mesh: Mesh,
) -> Iterator[Any]:
    """Endless global batches from `first_step` on: shuffled anew each epoch, cropped at random.

    Raises:
      DatasetError: the training split is empty, or has no variance to draw tokens with.
    """
    records = dataset.split("train")
    if not len(records):
        raise DatasetError(f"{dataset.path} has no training clips")
    if config.sample_posterior and "log_variance" not in records[0]:
        raise DatasetError(
            f"data.sample_posterior is True, but the records of {dataset.path} hold no "
            "log_variance; allowed: False, or data of `data.encode_latents --posterior=moments`"
        )
    hosts, host = jax.process_count(), jax.process_index()
    examples = grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)
    examples = examples.random_map(_Example(dataset, text, num_tokens, config.sample_posterior))
    batches = examples.batch(config.batch_size // hosts, drop_remainder=True)[host::hosts]
    iterator = iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=8)
        )
    )
    iterator.set_state({"next_index": first_step})
    for batch in iterator:
        yield to_global(batch, mesh)


def evaluation_batches(
    dataset: EncodedDataset,
    text: TextEncoder,
    split: str,
    *,
    batch_size: int,
    num_tokens: int,
    mesh: Mesh,
    max_clips: int | None = None,
) -> Iterator[Any]:
    """Every clip of a split once, in order, its first window and caption; the last batch is padded.

    Padding rows have weight 0. Every host yields equally many batches.
    """
    records = dataset.split(split)
    total = len(records) if max_clips is None else min(max_clips, len(records))
    hosts, host = jax.process_count(), jax.process_index()
    local = batch_size // hosts
    num_columns = num_tokens // dataset.codec.tokens_per_column
    silence = dataset.codec.silence()
    for start in range(0, total, batch_size):
        rows = range(start + host * local, start + (host + 1) * local)
        tokens, captions, weights = [], [], []
        for row in rows:
            record = records[min(row, total - 1)]
            columns = crop_or_pad(record["tokens"], num_columns, silence, None)
            tokens.append(columns.reshape(num_tokens, -1))
            captions.append(record["captions"][0] if record["captions"] else "")
            weights.append(float(row < total))
        batch = {
            "tokens": np.stack(tokens),
            "weight": np.asarray(weights, np.float32),
            "text": dict(text.tokenize(captions)),
        }
        yield to_global(batch, mesh)
