"""Encoded datasets on disk to global batches on the mesh.

Order and randomness are functions of (seed, step) alone: batch `step` of a run is the same whatever
the number of hosts, reading threads or reading processes, and resuming means starting at a step.
Each host reads the rows that its devices hold, and no others.
Dimensions: B clips, N tokens, C channels, P token columns in time, G tokens per column, R rows of a
host.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Generator, Iterator
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from jax.sharding import Mesh

from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import DataConfig, ModelConfig
from fasttta_jax.files import as_path
from fasttta_jax.parallel.rows import host_rows, to_global
from fasttta_jax.prefetch import Prefetch, start_reader
from fasttta_jax.staging import DEFAULT_CACHE, stage
from fasttta_jax.text.base import TextEncoder

CODEC_FOLDER = "codec"
TEXT_FOLDER = "text"
RECORDS_FOLDER = "records"
READ_AHEAD = 8
"""Batches that a host's reading threads keep in memory."""
WORKER_READ_AHEAD = 2
"""The same of each reading process."""


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

    def __getstate__(self) -> dict[str, Any]:
        """Without what the text encoder has loaded so far: another process loads its own."""
        state = dict(self.__dict__)
        if dataclasses.is_dataclass(self._text) and not isinstance(self._text, type):
            state["_text"] = dataclasses.replace(self._text)
        return state

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


class _HostRows(grain.MapDataset):
    """Of a dataset of clips, those in the given rows of each batch, one batch after the other."""

    def __init__(self, parent: grain.MapDataset, rows: np.ndarray, batch_size: int) -> None:
        super().__init__(parent)
        self._rows, self._batch_size = rows.tolist(), batch_size

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        step, place = divmod(index, len(self._rows))
        return self._parent[step * self._batch_size + self._rows[place]]


def read_batches(
    dataset: EncodedDataset,
    text: TextEncoder,
    config: DataConfig,
    *,
    num_tokens: int,
    seed: int,
    rows: np.ndarray,
    start: int = 0,
) -> grain.DatasetIterator[Any]:
    """One host's part of the endless batches from number `start` on, as host arrays [R, ...].

    To be closed: threads and processes read for it. Other arguments are those of `TrainBatches`.

    Args:
      rows: which rows of each batch, rising, [R].

    Raises:
      DatasetError: the training split is empty, or has no variance to draw tokens with.
      RuntimeError: reading processes are asked for, and absl's flags are not parsed.
    """
    if config.num_workers and not flags.FLAGS.is_parsed():
        raise RuntimeError(
            f"data.num_workers is {config.num_workers}; allowed: 0, or absl's flags parsed first, "
            "which grain reads: absl.app.run does so, or absl.flags.FLAGS.mark_as_parsed()"
        )
    records = dataset.split("train")
    if not len(records):
        raise DatasetError(f"{dataset.path} has no training clips")
    if config.sample_posterior and "log_variance" not in records[0]:
        raise DatasetError(
            f"data.sample_posterior is True, but the records of {dataset.path} hold no "
            "log_variance; allowed: False, or data of `data.encode_latents --posterior=moments`"
        )
    examples = grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)
    examples = examples.random_map(_Example(dataset, text, num_tokens, config.sample_posterior))
    part = _HostRows(examples, rows, config.batch_size).batch(len(rows), drop_remainder=True)
    batches = part[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=READ_AHEAD)
    )
    if config.num_workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(config.num_workers, WORKER_READ_AHEAD),
            worker_init_fn=start_reader,
        )
    return iter(batches)


class TrainBatches(Iterator[Any]):
    """Endless global batches on the mesh, read and placed ahead of the steps that take them.

    Clips are shuffled anew each epoch and cropped at random. It is a context manager, and closes at
    the end.

    Args:
      dataset: whose training split is read.
      text: makes captions into arrays.
      config: batch size, threads, processes, batches that wait on the devices.
      num_tokens: N.
      seed: of order and crops.
      mesh: where the batches go.
      start: number of the first batch: the steps done so far.

    Raises:
      ConfigError: the batch cannot be split over the mesh; says what could.
      DatasetError: the training split is empty, or has no variance to draw tokens with.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        text: TextEncoder,
        config: DataConfig,
        *,
        num_tokens: int,
        seed: int,
        mesh: Mesh,
        start: int = 0,
    ) -> None:
        rows = host_rows(mesh, config.batch_size)
        local = read_batches(
            dataset, text, config, num_tokens=num_tokens, seed=seed, rows=rows, start=start
        )

        def place() -> Generator[Any, None, None]:
            try:
                for batch in local:
                    yield to_global(batch, mesh, rows, config.batch_size)
            finally:
                local.close()

        self._next_batch = start
        self._batches = Prefetch(place, config.prefetch)

    def __next__(self) -> Any:
        """The next batch; what went wrong in reading it is raised here."""
        batch = next(self._batches)
        self._next_batch += 1
        return batch

    @property
    def waited(self) -> float:
        """Seconds that `next` has been waiting for data, in all."""
        return self._batches.waited

    def state(self) -> dict[str, int]:
        """The position, good for any number of hosts: the number of the next batch."""
        return {"next_batch": self._next_batch}

    def close(self) -> None:
        """Ends the thread and the processes that read; closing twice is allowed."""
        self._batches.close()

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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

    Raises:
      ConfigError: the batch cannot be split over the mesh; says what could.
    """
    records = dataset.split(split)
    total = len(records) if max_clips is None else min(max_clips, len(records))
    rows = host_rows(mesh, batch_size)
    num_columns = num_tokens // dataset.codec.tokens_per_column
    silence = dataset.codec.silence()
    for start in range(0, total, batch_size):
        tokens, captions, weights = [], [], []
        for row in start + rows:
            record = records[int(min(row, total - 1))]
            columns = crop_or_pad(record["tokens"], num_columns, silence, None)
            tokens.append(columns.reshape(num_tokens, -1))
            captions.append(record["captions"][0] if record["captions"] else "")
            weights.append(float(row < total))
        batch = {
            "tokens": np.stack(tokens),
            "weight": np.asarray(weights, np.float32),
            "text": dict(text.tokenize(captions)),
        }
        yield to_global(batch, mesh, rows, batch_size)
