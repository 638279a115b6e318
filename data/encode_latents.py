"""Encodes an audio dataset to latent tokens, once, before training.

    python -m data.encode_latents --data runs/demo/data --out runs/demo/encoded --token_dim 64
    python -m data.encode_latents --data runs/mine/data --out runs/mine/encoded \\
        --codec runs/demo/encoded

Fits the spectrogram codec's statistics on the training split, then writes `out/records` (a TFDS
dataset of tokens, captions and labels) and `out/codec` (all that decoding needs). With --codec, an
existing codec encodes instead, so that the data of several stages speak the same tokens. Clips keep
their whole length; training cuts windows out of them. Run `python -m data.embed_text` on the same
folder next, unless the clips have no captions.
Dimensions: B clips, S samples, G tokens per column, V values of a patch, C channels.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data import builder
from fasttta_jax import cli
from fasttta_jax.codecs.base import Codec
from fasttta_jax.codecs.mel import MelConfig
from fasttta_jax.codecs.spectrogram import (
    CONFIG_FILE,
    SpectrogramCodec,
    SpectrogramConfig,
    StatisticsFitter,
)
from fasttta_jax.input_pipeline import CODEC_FOLDER, RECORDS_FOLDER, Records, find_records

BATCH_SIZE = 64
LENGTH_COLUMNS = 8
CODEC_FLAGS = (
    "token_dim",
    "patch_frames",
    "bands",
    "num_mels",
    "floor",
    "whitening",
    "griffin_lim_iterations",
)


def padded_batches(
    records: Iterable[dict], stride: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[list[dict], np.ndarray]]:
    """Groups clips of like length; yields records and their audio, float32 [B, S], zero-padded.

    S is a multiple of LENGTH_COLUMNS * stride, so that few programs are compiled; every batch has
    `batch_size` rows, the surplus rows of the last ones zero.
    """
    waiting: dict[int, list[dict]] = {}

    def batch(length: int) -> tuple[list[dict], np.ndarray]:
        group = waiting.pop(length)
        audio = np.zeros((batch_size, length), np.float32)
        for row, record in enumerate(group):
            samples = record["audio"].astype(np.float32) / builder.INT16_SCALE
            audio[row, : len(samples)] = samples
        return group, audio

    for record in records:
        unit = LENGTH_COLUMNS * stride
        length = math.ceil(len(record["audio"]) / unit) * unit
        waiting.setdefault(length, []).append(record)
        if len(waiting[length]) == batch_size:
            yield batch(length)
    for length in sorted(waiting):
        yield batch(length)


def _own_columns(record: dict, stride: int) -> int:
    return math.ceil(len(record["audio"]) / stride)


def _iterate(records: Records, description: str) -> Iterator[dict]:
    for index in tqdm.tqdm(range(len(records)), description, unit="clip", mininterval=1.0):
        yield records[index]


def _moments(config: SpectrogramConfig, records: Records, description: str) -> StatisticsFitter:
    """First and second moments of all patches; the silence behind short clips does not count."""
    fitter = StatisticsFitter(config)
    stride = config.patch_frames * config.mel.hop_length
    for group, audio in padded_batches(_iterate(records, description), stride):
        for columns in sorted({_own_columns(record, stride) for record in group}):
            rows = [i for i, record in enumerate(group) if _own_columns(record, stride) == columns]
            fitter.add(audio[rows, : columns * stride])
    return fitter


def fit(config: SpectrogramConfig, records: Records) -> tuple[SpectrogramCodec, float]:
    """The codec for a training split, and the share of variance that its tokens keep."""
    statistics, kept = _moments(config, records, "fitting the codec").finish()
    return SpectrogramCodec(config, statistics), kept


def variance_kept(codec: SpectrogramCodec, records: Records) -> float:
    """Share of a split's log-mel variance, about its own mean, that a codec's tokens keep.

    1 minus the squared error of the reconstruction over the variance; below 0 where the codec's own
    mean would be the better guess.

    Raises:
      ValueError: the data has no variance.
    """
    moments = _moments(codec.config, records, "measuring the codec")
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
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def encoded_records(records: Records, codec: Codec, split: str) -> Iterator[dict]:
    """Every clip of a split with its tokens, float16 [columns, G, C], in the order of batching."""
    stride = codec.samples_per_column
    for group, audio in padded_batches(_iterate(records, f"encoding {split}"), stride):
        tokens = np.asarray(codec.encode(jnp.asarray(audio)))
        tokens = tokens.reshape(len(audio), -1, codec.tokens_per_column, codec.token_dim)
        for row, record in enumerate(group):
            yield {
                "id": record["id"],
                "captions": record["captions"],
                "labels": json.dumps(record["labels"], ensure_ascii=False),
                "tokens": tokens[row, : _own_columns(record, stride)].astype(np.float16),
            }


def encode(
    data: str | pathlib.Path,
    out: str | pathlib.Path,
    codec: SpectrogramConfig | str | pathlib.Path,
) -> None:
    """Writes the encoded dataset; says so and stops where it is already there.

    Args:
      data: folder of the audio dataset.
      out: folder to write.
      codec: settings of a codec to fit on the training split, or the folder of an existing one.

    Raises:
      ValueError: the dataset has another sample rate, or `out` holds other data.
      FileNotFoundError: the existing codec is not there.
    """
    out, source = pathlib.Path(out), find_records(data)
    train = Records(source, "train")
    made_from = {"source": json.loads((source / "dataset_info.json").read_text())["splits"]}
    existing = None
    if isinstance(codec, SpectrogramConfig):
        config = codec
        made_from["codec"] = repr(config)
    else:
        existing = find_codec(codec)
        config = SpectrogramCodec.load(existing).config
        made_from["codec_sha256"] = hash_codec(existing)
    rate = train.metadata["sample_rate"]
    if rate != config.mel.sample_rate:
        raise ValueError(
            f"{source} has a sample rate of {rate} Hz; allowed: {config.mel.sample_rate} Hz"
        )
    if (out / RECORDS_FOLDER).is_dir() and any((out / RECORDS_FOLDER).iterdir()):
        _check_same(out, made_from)
        print(f"{out} is already encoded with these settings")
        return
    if existing is None:
        fitted, kept = fit(config, train)
        fitted.save(out / CODEC_FOLDER)
    else:
        fitted = SpectrogramCodec.load(existing)
        kept = variance_kept(fitted, train)
        if existing.resolve() != (out / CODEC_FOLDER).resolve():
            shutil.copytree(existing, out / CODEC_FOLDER, dirs_exist_ok=True)
    print(f"the tokens keep {kept:.1%} of the log-mel variance")
    splits = tfds.builder_from_directory(str(source)).info.splits
    builder.write_records(
        out / RECORDS_FOLDER,
        name="latents",
        description=f"Latent tokens of {source.parent.name}.",
        array={
            "tokens": tfds.features.Tensor(
                shape=(None, fitted.tokens_per_column, fitted.token_dim),
                dtype=np.float16,
                encoding="bytes",
            )
        },
        splits={
            split: lambda split=split: encoded_records(Records(source, split), fitted, split)
            for split in splits
        },
        metadata={
            "sample_rate": fitted.sample_rate,
            "variance_kept": kept,
            "made_from": made_from,
            "source_metadata": train.metadata,
        },
    )


def _check_same(out: pathlib.Path, made_from: dict) -> None:
    existing = Records(out / RECORDS_FOLDER, "train").metadata.get("made_from")
    if existing != made_from:
        raise ValueError(
            f"{out} holds data encoded from another dataset or with other settings; choose "
            f"another folder or remove it.\nfound:  {existing}\nwanted: {made_from}"
        )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    text, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    text("data", None, "Folder of the audio dataset.", required=True, flag_values=values)
    text(
        "out", None, "Folder to write; must not hold other data.", required=True, flag_values=values
    )
    text(
        "codec",
        None,
        "Existing codec to encode with, instead of fitting one: its folder, or a dataset or "
        "workdir that holds codec/. The flags that describe a codec are not allowed with it.",
        flag_values=values,
    )
    integer("token_dim", 64, "Channels per token (principal components).", flag_values=values)
    integer("patch_frames", 16, "Spectrogram frames per token.", flag_values=values)
    integer(
        "bands", 2, "Tokens per moment: the mel axis is cut into this many.", flag_values=values
    )
    integer("num_mels", 64, "Mel bands of the spectrogram.", flag_values=values)
    number("floor", 1e-2, "Mel magnitudes below this count as silence.", flag_values=values)
    number("whitening", 0.5, "0 keeps component variances, 1 equalises them.", flag_values=values)
    integer(
        "griffin_lim_iterations",
        32,
        "Phase reconstruction steps when tokens become audio again.",
        flag_values=values,
    )


def chosen_codec(values: flags.FlagValues) -> SpectrogramConfig | str:
    """What the flags ask for: a codec to fit, or the folder of an existing one.

    Raises:
      ValueError: both, or settings that no codec can have.
    """
    if values.codec is not None:
        given = [f"--{name}" for name in CODEC_FLAGS if values[name].present]
        if given:
            raise ValueError(
                f"--codec is {values.codec!r}, and {', '.join(given)} would describe another "
                "codec; allowed: --codec alone, or these flags without it"
            )
        return values.codec
    return SpectrogramConfig(
        mel=MelConfig(floor=values.floor, num_mels=values.num_mels),
        patch_frames=values.patch_frames,
        bands=values.bands,
        token_dim=values.token_dim,
        whitening=values.whitening,
        griffin_lim_iterations=values.griffin_lim_iterations,
    )


def main() -> None:
    """The command line."""
    tfds.disable_progress_bar()  # it knows no totals; the bars here do
    encode(flags.FLAGS.data, flags.FLAGS.out, chosen_codec(flags.FLAGS))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
