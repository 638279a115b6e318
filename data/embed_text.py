"""Fits the tokenizer of the learned text encoder on the training captions of an encoded dataset.

    python -m data.embed_text --data runs/demo/encoded --vocabulary_size 1000

Writes `text/tokenizer.json` into the folder. The embeddings themselves train with the model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import tqdm
from absl import app, flags, logging

from fasttta_jax.config import TextConfig
from fasttta_jax.input_pipeline import EncodedDataset
from fasttta_jax.text.learned import LearnedTextEncoder


def training_captions(dataset: EncodedDataset) -> Iterator[str]:
    """All captions of the training split."""
    records = dataset.split("train")
    for index in tqdm.tqdm(range(len(records)), "reading captions", unit="clip", mininterval=1.0):
        yield from records[index]["captions"]


def fit(data: str | pathlib.Path, vocabulary_size: int) -> pathlib.Path:
    """Fits and saves the tokenizer; returns its folder."""
    dataset = EncodedDataset(data)
    encoder = LearnedTextEncoder.fit(
        list(training_captions(dataset)), vocabulary_size, TextConfig()
    )
    encoder.save(dataset.text_folder)
    print(f"{dataset.text_folder}: {len(encoder.seen)} vocabulary entries in use")
    return dataset.text_folder


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_string("data", None, "Folder made by data.encode_latents.", required=True)
    flags.DEFINE_integer(
        "vocabulary_size", 1000, "Most entries of the vocabulary; at least 257 for the bytes."
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    fit(flags.FLAGS.data, flags.FLAGS.vocabulary_size)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
