"""Encoded datasets on disk to global batches on the mesh.

Order and randomness are functions of (seed, step) alone: batch `step` of a run is the same whatever
the number of hosts, reading threads or reading processes, and resuming means starting at a step.
Each host reads the rows that its devices hold, and no others.
Dimensions: B clips, N tokens, C channels, P token columns in time, G tokens per column, R rows of a
host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Int

from fasttta_jax.config import DataConfig
from fasttta_jax.input_pipeline.mixture import Draws, Mixed, part_seed
from fasttta_jax.input_pipeline.pairs import NOISE_SEED, NOISE_SEEDS
from fasttta_jax.input_pipeline.prefetch import Prefetch, start_reader
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset
from fasttta_jax.parallel.rows import host_rows, to_global
from fasttta_jax.text.base import TextEncoder

READ_AHEAD = 8
"""Batches that a host's reading threads keep in memory."""
WORKER_READ_AHEAD = 2
"""The same of each reading process."""


def crop_or_pad(
    columns: Float[np.ndarray, "P G C"],
    num_columns: int,
    silence: Float[np.ndarray, "G C"],
    rng: np.random.Generator | None,
) -> Float32[np.ndarray, "{num_columns} G C"]:
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
    has no variance. Window and caption are those of the same step without it. `with_noise` tells
    the seed of a pair's noise.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        text: TextEncoder,
        num_tokens: int,
        sample_posterior: bool,
        with_noise: bool = False,
    ) -> None:
        self._num_tokens = num_tokens
        self._num_columns = num_tokens // dataset.codec.tokens_per_column
        self._silence = dataset.codec.silence()
        self._text = text
        self._sample_posterior = sample_posterior
        self._with_noise = with_noise

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
        example = {
            "tokens": columns.reshape(self._num_tokens, -1),
            "weight": np.float32(1.0),
            "text": {name: values[0] for name, values in text.items()},
        }
        return example | ({NOISE_SEEDS: element[NOISE_SEED]} if self._with_noise else {})


class _HostRows(grain.MapDataset):
    """Of a dataset of clips, those in the given rows of each batch, one batch after the other."""

    def __init__(
        self, parent: grain.MapDataset, rows: Int[np.ndarray, " R"], batch_size: int
    ) -> None:
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
    rows: Int[np.ndarray, " R"],
    start: int = 0,
    with_noise: bool = False,
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
    parts = [
        _shuffled(part, config, part_seed(seed, number))
        for number, part in enumerate(dataset.parts)
    ]
    clips = parts[0]
    if len(parts) > 1:
        clips = Mixed(parts, Draws(dataset.weights, seed)).seed(seed)
    examples = clips.random_map(
        _Example(dataset, text, num_tokens, config.sample_posterior, with_noise)
    )
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


def _shuffled(dataset: EncodedDataset, config: DataConfig, seed: int) -> grain.MapDataset:
    """The training clips of a dataset without end, shuffled anew each epoch."""
    records = dataset.split("train")
    if not len(records):
        raise DatasetError(f"{dataset.path} has no training clips")
    if config.sample_posterior and "log_variance" not in records[0]:
        raise DatasetError(
            f"data.sample_posterior is True, but the records of {dataset.path} hold no "
            "log_variance; allowed: False, or data of `data.encode_latents --posterior=moments`"
        )
    return grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)


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
      with_noise: batches also hold `NOISE_SEEDS` of pairs, which `check_pairs` has passed.

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
        with_noise: bool = False,
    ) -> None:
        rows = host_rows(mesh, config.batch_size)
        local = read_batches(
            dataset,
            text,
            config,
            num_tokens=num_tokens,
            seed=seed,
            rows=rows,
            start=start,
            with_noise=with_noise,
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
    with_noise: bool = False,
) -> Iterator[Any]:
    """Every clip of a split once, in order, its first window and caption; the last batch is padded.

    Padding rows have weight 0. Every host yields equally many batches. `with_noise` is that of
    `TrainBatches`.

    Raises:
      ConfigError: the batch cannot be split over the mesh; says what could.
    """
    records = dataset.split(split)
    total = len(records) if max_clips is None else min(max_clips, len(records))
    rows = host_rows(mesh, batch_size)
    num_columns = num_tokens // dataset.codec.tokens_per_column
    silence = dataset.codec.silence()
    for start in range(0, total, batch_size):
        tokens, captions, weights, seeds = [], [], [], []
        for row in start + rows:
            record = records[int(min(row, total - 1))]
            columns = crop_or_pad(record["tokens"], num_columns, silence, None)
            tokens.append(columns.reshape(num_tokens, -1))
            captions.append(record["captions"][0] if record["captions"] else "")
            weights.append(float(row < total))
            if with_noise:
                seeds.append(record[NOISE_SEED])
        batch: dict[str, Any] = {
            "tokens": np.stack(tokens),
            "weight": np.asarray(weights, np.float32),
            "text": dict(text.tokenize(captions)),
        }
        if with_noise:
            batch[NOISE_SEEDS] = np.asarray(seeds, np.uint32)
        yield to_global(batch, mesh, rows, batch_size)
