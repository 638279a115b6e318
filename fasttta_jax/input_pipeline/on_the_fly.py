"""Audio encoded when it is read, in place of tokens encoded ahead.

Slower than `EncodedDataset`, and the same data: a clip is padded to the same length before the
codec sees it, so its tokens are those that `python -m data.encode_latents` keeps, before they are
rounded to float16.
Dimensions: S audio samples, P token columns in time, G tokens per column, C channels.
"""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from fasttta_jax.audio.files import INT16_SCALE
from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import DataConfig
from fasttta_jax.input_pipeline.records import (
    CODEC_FOLDER,
    TEXT_FOLDER,
    DatasetError,
    EncodedDataset,
    Records,
    find_records,
)
from fasttta_jax.storage.staging import DEFAULT_CACHE, stage

LENGTH_COLUMNS = 8
"""Waveforms are padded to multiples of so many token columns, so that few programs are compiled."""


def num_columns(num_samples: int, samples_per_column: int) -> int:
    """P, token columns that a waveform covers; the last may hold silence behind it."""
    return math.ceil(num_samples / samples_per_column)


def padded_length(num_samples: int, samples_per_column: int) -> int:
    """Samples of the zero-padded waveform that a codec is given."""
    unit = LENGTH_COLUMNS * samples_per_column
    return math.ceil(num_samples / unit) * unit


def to_columns(values: Any, codec: Codec) -> np.ndarray:
    """[B, N, C] as float32 [B, P, G, C]."""
    values = np.asarray(values, np.float32)
    return values.reshape(len(values), -1, codec.tokens_per_column, codec.token_dim)


def open_dataset(config: DataConfig) -> EncodedDataset:
    """The dataset that a run's config names, its tokens made ahead or as they are read.

    Folders of an object store are copied to `config.cache` first.

    Raises:
      DatasetError: the folder or a part of it is missing.
      StorageError: it is a URL that cannot be read, or the cache cannot hold it.
    """
    if config.audio:
        return AudioDataset(config.audio, config.path, config.cache)
    return EncodedDataset(config.path, config.cache)


class AudioRecords:
    """One split of an audio dataset, every clip with its tokens in place of its audio.

    A reading process has a codec of its own, on the CPU: tokens that an accelerator made may differ
    from its in their last bits.
    """

    def __init__(self, records: Records, codec: Codec, codec_folder: pathlib.Path) -> None:
        self.metadata = records.metadata
        self._records = records
        self._codec = codec
        self._codec_folder = codec_folder

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files anew, the codec's among them."""
        return _open_records, (self._records, self._codec_folder)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = dict(self._records[index])
        audio = record.pop("audio").astype(np.float32) / INT16_SCALE
        stride = self._codec.samples_per_column
        columns = num_columns(len(audio), stride)
        audio = np.pad(audio, (0, padded_length(len(audio), stride) - len(audio)))
        posterior = self._codec.encode_posterior(jnp.asarray(audio[None]))
        record["tokens"] = to_columns(posterior.mean, self._codec)[0, :columns]
        if posterior.log_variance is not None:
            log_variance = to_columns(posterior.log_variance, self._codec)
            record["log_variance"] = log_variance[0, :columns]
        return record


def _open_records(records: Records, codec_folder: pathlib.Path) -> AudioRecords:
    return AudioRecords(records, load_codec(codec_folder), codec_folder)


class AudioDataset(EncodedDataset):
    """What `EncodedDataset` is, with the tokens made of an audio dataset as they are asked for.

    Args:
      audio: folder of an audio dataset (`data.common.records`), or its URL in an object store.
      path: folder with the codec in codec/, and the text that belongs to the captions in text/.
      cache: folder of this host where the files of URLs are copied to, once.

    Raises:
      DatasetError: there is no dataset, or more than one.
      FileNotFoundError: there is no codec.
      StorageError: a URL cannot be read, or the cache cannot hold it.
    """

    def __init__(
        self,
        audio: str | os.PathLike[str],
        path: str | os.PathLike[str],
        cache: str = DEFAULT_CACHE,
    ) -> None:
        self.path = stage(path, cache, only=(CODEC_FOLDER, TEXT_FOLDER))
        self.records_folder = find_records(stage(audio, cache))
        self.codec = load_codec(self.path / CODEC_FOLDER)
        self.text_folder = self.path / TEXT_FOLDER

    def split(self, split: str) -> AudioRecords:
        """The records of a split.

        Raises:
          DatasetError: there is no such split, or its sample rate is not the codec's.
        """
        records = Records(self.records_folder, split)
        rate = records.metadata.get("sample_rate")
        if rate != self.codec.sample_rate:
            raise DatasetError(
                f"{self.records_folder} has a sample rate of {rate} Hz; allowed: the codec's "
                f"{self.codec.sample_rate} Hz"
            )
        return AudioRecords(records, self.codec, self.path / CODEC_FOLDER)
