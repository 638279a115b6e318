"""Clips on their way through a codec: read ahead, gathered to batches, encoded, in order again.

Clips of like length share a batch, whose rows are spread over the local devices. While these work
on one batch, threads read and decode the next.
Dimensions: B clips, S samples, P token columns in time, G tokens per column, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import tqdm

from data.common.recordings import ordered_map
from data.common.records import Clip
from data.common.sources import AudioSource
from data.common.tables import Skipped
from fasttta_jax.codecs import Codec
from fasttta_jax.codecs.base import Posterior
from fasttta_jax.codecs.columns import num_columns, padded_length, to_columns
from fasttta_jax.parallel.local import local_rows

BATCH_SIZE = 64
DTYPE = np.float16


def read_items(
    source: AudioSource, items: Iterable[tuple[str, int]], workers: int, ahead: int
) -> Generator[list[Clip | Skipped], None, None]:
    """What each item (split and index) gives, in order; at most `ahead` of them wait."""
    return ordered_map(lambda item: source.read(*item), items, workers, ahead)


def read_split(
    source: AudioSource, split: str, description: str, workers: int, batch_size: int = BATCH_SIZE
) -> Iterator[Clip]:
    """Every clip of a split, with a progress bar.

    Raises:
      ValueError: there is no such split.
    """
    if split not in source.lengths:
        raise ValueError(
            f"{source.name} has no {split!r} split; its splits are {', '.join(source.lengths)}"
        )
    items = ((split, index) for index in range(source.lengths[split]))
    results = read_items(source, items, workers, batch_size)
    total = source.lengths[split]
    for result in tqdm.tqdm(results, description, total=total, unit="clip", mininterval=1.0):
        yield from (clip for clip in result if isinstance(clip, Clip))


def padded_batches(
    clips: Iterable[Clip], samples_per_column: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[list[int], list[Clip], np.ndarray]]:
    """Groups clips of like length.

    Yields:
      The places of a batch's clips in `clips`, the clips, and their audio, float32 [batch_size, S],
      zero-padded to S = `padded_length`; the surplus rows of the last batches are zero.
    """
    waiting: dict[int, list[tuple[int, Clip]]] = {}

    def batch(length: int) -> tuple[list[int], list[Clip], np.ndarray]:
        group = waiting.pop(length)
        audio = np.zeros((batch_size, length), np.float32)
        for row, (_, clip) in enumerate(group):
            audio[row, : len(clip.audio)] = clip.audio
        return [place for place, _ in group], [clip for _, clip in group], audio

    for place, clip in enumerate(clips):
        length = padded_length(len(clip.audio), samples_per_column)
        waiting.setdefault(length, []).append((place, clip))
        if len(waiting[length]) == batch_size:
            yield batch(length)
    for length in sorted(waiting):
        yield batch(length)


def encode_clips(
    codec: Codec, clips: Iterable[Clip], batch_size: int, *, with_variance: bool
) -> list[dict[str, Any]]:
    """Records of all clips in their order, tokens and log-variances float16 [P, G, C].

    Args:
      codec: encodes.
      clips: read while the devices work.
      batch_size: rows of a batch, a multiple of the number of local devices.
      with_variance: keep the log-variance of the posterior, where the codec gives one.
    """
    records: dict[int, dict[str, Any]] = {}

    def collect(places: list[int], group: list[Clip], posterior: Posterior) -> None:
        arrays = {"tokens": to_columns(posterior.mean, codec)}
        if with_variance and posterior.log_variance is not None:
            arrays["log_variance"] = to_columns(posterior.log_variance, codec)
        for row, (place, clip) in enumerate(zip(places, group, strict=True)):
            columns = num_columns(len(clip.audio), codec.samples_per_column)
            records[place] = {
                "id": clip.id,
                "captions": list(clip.captions),
                "labels": json.dumps(clip.labels, ensure_ascii=False),
                **{name: array[row, :columns].astype(DTYPE) for name, array in arrays.items()},
            }

    running = None
    for places, group, audio in padded_batches(clips, codec.samples_per_column, batch_size):
        rows: Any = local_rows(audio)
        launched = places, group, codec.encode_posterior(rows)
        if running is not None:
            collect(*running)  # waits for the batch before, while this one is queued
        running = launched
    if running is not None:
        collect(*running)
    return [records[place] for place in range(len(records))]
