"""The codec that a dataset is encoded with: fitted on its training split, or brought along.

Dimensions: B clips, S samples, V values of a patch.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np

from data.common import batches
from data.common.sources import Source
from fasttta_jax.codecs import Codec
from fasttta_jax.codecs.base import CONFIG_FILE
from fasttta_jax.codecs.spectrogram import SpectrogramCodec, SpectrogramConfig, StatisticsFitter
from fasttta_jax.input_pipeline.on_the_fly import num_columns, padded_length
from fasttta_jax.input_pipeline.records import CODEC_FOLDER
from fasttta_jax.parallel.local import local_rows
from fasttta_jax.storage.files import whole_folder
from fasttta_jax.storage.weights import copy_folder


def _moments(
    config: SpectrogramConfig, source: Source, description: str, workers: int
) -> StatisticsFitter:
    """First and second moments of all patches; the silence behind short clips does not count."""
    fitter = StatisticsFitter(config)
    stride = config.patch_frames * config.mel.hop_length
    clips = batches.read_split(source, "train", description, workers)
    for _, group, audio in batches.padded_batches(clips, stride):
        own = [num_columns(len(clip.audio), stride) for clip in group]
        for columns in sorted(set(own)):
            rows = [row for row, found in enumerate(own) if found == columns]
            fitter.add(audio[rows, : columns * stride])
    return fitter


def fit(
    config: SpectrogramConfig, source: Source, workers: int = batches.WORKERS
) -> tuple[SpectrogramCodec, float]:
    """The codec for a training split, and the share of variance that its tokens keep."""
    statistics, kept = _moments(config, source, "fitting the codec", workers).finish()
    return SpectrogramCodec(config, statistics), kept


def variance_kept(codec: SpectrogramCodec, source: Source, workers: int = batches.WORKERS) -> float:
    """Share of a training split's log-mel variance, about its own mean, that a codec's tokens keep.

    1 minus the squared error of the reconstruction over the variance; below 0 where the codec's own
    mean would be the better guess.

    Raises:
      ValueError: the data has no variance.
    """
    moments = _moments(codec.config, source, "measuring the codec", workers)
    error, total = 0.0, 0.0
    for band in range(codec.config.bands):
        mean = moments.total[band] / moments.count
        covariance = moments.products[band] / moments.count - np.outer(mean, mean)
        basis = codec.statistics.basis[band].astype(np.float64)
        shift = mean - codec.statistics.mean[band]
        total += np.trace(covariance)
        error += np.trace(covariance) - np.sum(basis * (covariance @ basis))
        error += np.sum((shift - basis @ (basis.T @ shift)) ** 2)
    if total <= 0:
        raise ValueError("the data has no variance: every patch is the same")
    return float(1.0 - error / total)


def find_codec(folder: str | pathlib.Path) -> pathlib.Path:
    """The codec's folder: `folder` itself, or codec/ in it.

    Raises:
      FileNotFoundError: neither holds a codec.
    """
    candidates = (pathlib.Path(folder), pathlib.Path(folder) / CODEC_FOLDER)
    for candidate in candidates:
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise FileNotFoundError(
        f"--codec is {str(folder)!r}, but neither it nor {CODEC_FOLDER}/ in it holds "
        f"{CONFIG_FILE}; allowed: a codec, or a dataset or workdir with one"
    )


def hash_codec(folder: pathlib.Path) -> str:
    """SHA-256 over names and contents of a codec's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def check_variance(codec: Codec | SpectrogramConfig, batch_size: int) -> None:
    """Raises ValueError where a codec, or one to be fitted, gives tokens without a variance."""
    if not isinstance(codec, SpectrogramConfig):
        shape = (batch_size, padded_length(1, codec.samples_per_column))
        silence: Any = local_rows(np.zeros(shape, np.float32))
        if codec.encode_posterior(silence).log_variance is not None:
            return
    raise ValueError(
        f"posterior is 'moments', but a {type(codec).__name__} gives no variance; allowed: 'mean'"
    )


def copy_codec(codec: pathlib.Path, target: pathlib.Path) -> None:
    """Makes `target` a copy of a codec's folder, whole or not at all."""
    if target.is_dir() and hash_codec(target) == hash_codec(codec):
        return
    with whole_folder(target) as folder:
        copy_folder(codec, folder)
