"""Encodes an audio dataset to latent tokens, once, before training.

    python -m data.encode_latents --data runs/demo/data --out runs/demo/encoded --token_dim 64

Fits the spectrogram codec's statistics on the training split, then writes `out/records` (a TFDS
dataset of tokens, captions and labels) and `out/codec` (all that decoding needs). Clips keep their
whole length; training cuts windows out of them. Run `python -m data.embed_text` on the same folder
next.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags, logging

from data import builder
from fasttta_jax.codecs.base import Codec
from fasttta_jax.codecs.mel import MelConfig
from fasttta_jax.codecs.spectrogram import SpectrogramCodec, SpectrogramConfig, StatisticsFitter
from fasttta_jax.input_pipeline import CODEC_FOLDER, RECORDS_FOLDER, Records, find_records

BATCH_SIZE = 64
LENGTH_COLUMNS = 8


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


def fit(config: SpectrogramConfig, records: Records) -> tuple[SpectrogramCodec, float]:
    """The codec for a training split, and the share of variance that its tokens keep."""
    fitter = StatisticsFitter(config)
    stride = config.patch_frames * config.mel.hop_length
    for group, audio in padded_batches(_iterate(records, "fitting the codec"), stride):
        for columns in sorted({_own_columns(record, stride) for record in group}):
            rows = [i for i, record in enumerate(group) if _own_columns(record, stride) == columns]
            fitter.add(audio[rows, : columns * stride])
    statistics, kept = fitter.finish()
    return SpectrogramCodec(config, statistics), kept


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


def encode(data: str | pathlib.Path, out: str | pathlib.Path, config: SpectrogramConfig) -> None:
    """Fits the codec and writes the encoded dataset; says so and stops where it is already there.

    Raises:
      ValueError: the dataset has another sample rate, or `out` holds other data.
    """
    out = pathlib.Path(out)
    source = find_records(data)
    train = Records(source, "train")
    rate = train.metadata["sample_rate"]
    if rate != config.mel.sample_rate:
        raise ValueError(
            f"{source} has a sample rate of {rate} Hz; allowed: {config.mel.sample_rate} Hz"
        )
    made_from = {
        "source": json.loads((source / "dataset_info.json").read_text())["splits"],
        "codec": repr(config),
    }
    if (out / RECORDS_FOLDER).is_dir() and any((out / RECORDS_FOLDER).iterdir()):
        existing = Records(out / RECORDS_FOLDER, "train").metadata.get("made_from")
        if existing != made_from:
            raise ValueError(
                f"{out} holds data encoded from another dataset or with other settings; choose "
                f"another folder or remove it.\nfound:  {existing}\nwanted: {made_from}"
            )
        print(f"{out} is already encoded with these settings")
        return
    codec, kept = fit(config, train)
    print(f"the tokens keep {kept:.1%} of the log-mel variance")
    codec.save(out / CODEC_FOLDER)
    splits = tfds.builder_from_directory(str(source)).info.splits
    builder.write_records(
        out / RECORDS_FOLDER,
        name="latents",
        description=f"Latent tokens of {source.parent.name}.",
        array={
            "tokens": tfds.features.Tensor(
                shape=(None, codec.tokens_per_column, codec.token_dim),
                dtype=np.float16,
                encoding="bytes",
            )
        },
        splits={
            split: lambda split=split: encoded_records(Records(source, split), codec, split)
            for split in splits
        },
        metadata={
            "sample_rate": codec.sample_rate,
            "variance_kept": kept,
            "made_from": made_from,
            "source_metadata": train.metadata,
        },
    )


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_string("data", None, "Folder of the audio dataset.", required=True)
    flags.DEFINE_string("out", None, "Folder to write; must not hold other data.", required=True)
    flags.DEFINE_integer("token_dim", 64, "Channels per token (principal components).")
    flags.DEFINE_integer("patch_frames", 16, "Spectrogram frames per token.")
    flags.DEFINE_integer("bands", 2, "Tokens per moment: the mel axis is cut into this many.")
    flags.DEFINE_integer("num_mels", 64, "Mel bands of the spectrogram.")
    flags.DEFINE_float("floor", 1e-2, "Mel magnitudes below this count as silence.")
    flags.DEFINE_float("whitening", 0.5, "0 keeps component variances, 1 equalises them.")
    flags.DEFINE_integer(
        "griffin_lim_iterations", 32, "Phase reconstruction steps when tokens become audio again."
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    tfds.disable_progress_bar()  # it knows no totals; the bars here do
    logging.set_verbosity(logging.WARNING)
    values = flags.FLAGS
    encode(
        values.data,
        values.out,
        SpectrogramConfig(
            mel=MelConfig(floor=values.floor, num_mels=values.num_mels),
            patch_frames=values.patch_frames,
            bands=values.bands,
            token_dim=values.token_dim,
            whitening=values.whitening,
            griffin_lim_iterations=values.griffin_lim_iterations,
        ),
    )


if __name__ == "__main__":
    _define_flags()
    app.run(main)
