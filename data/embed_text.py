"""Captions of an encoded dataset made ready for training: a tokenizer, or embeddings of your own.

    python -m data.embed_text --data runs/demo/encoded --vocabulary_size 1000
    python -m data.embed_text --data runs/mine/encoded --embeddings t5_and_clap.npz

Without --embeddings, fits the tokenizer of the learned text encoder on the training captions and
writes `text/tokenizer.json`; the embeddings themselves train with the model. With it, takes what
frozen text encoders said of every caption and writes `text/embeddings/` for text.encoder =
"precomputed". The file is one of numpy.savez:

    captions        n different captions, unicode [n]
    NAME            embeddings of a stream, floating [n, L, E]; as many streams as you like
    NAME_lengths    positions of it that hold text, whole numbers [n]; without it, all of them do

Every caption of every split must be there; captions beyond them become prompts for generation.
Dimensions: n captions, L positions, E width of a stream.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from fasttta_jax import cli
from fasttta_jax.config import TextConfig
from fasttta_jax.input_pipeline import RECORDS_FOLDER, EncodedDataset, find_records
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.text.precomputed import FOLDER, EmbeddingError, write_table

CAPTIONS = "captions"
LENGTHS = "_lengths"

Streams = dict[str, tuple[np.ndarray, np.ndarray]]


def captions_of(dataset: EncodedDataset, split: str) -> Iterator[str]:
    """All captions of a split, clip by clip."""
    records = dataset.split(split)
    progress = tqdm.tqdm(
        range(len(records)), f"reading captions, {split}", unit="clip", mininterval=1.0
    )
    for index in progress:
        yield from records[index]["captions"]


def fit(data: str | pathlib.Path, vocabulary_size: int) -> pathlib.Path:
    """Fits and saves the tokenizer; returns its folder.

    Raises:
      ValueError: the training split has no captions.
    """
    dataset = EncodedDataset(data)
    captions = list(captions_of(dataset, "train"))
    if not captions:
        raise _no_captions(dataset)
    encoder = LearnedTextEncoder.fit(captions, vocabulary_size, TextConfig())
    encoder.save(dataset.text_folder)
    print(f"{dataset.text_folder}: {len(encoder.seen)} vocabulary entries in use")
    return dataset.text_folder


def bring(data: str | pathlib.Path, embeddings: str | pathlib.Path) -> pathlib.Path:
    """Checks embeddings against the captions of a dataset, writes the table, returns its folder.

    Raises:
      EmbeddingError: the file is malformed or lacks a caption; says which.
      ValueError: the dataset has no captions.
    """
    dataset = EncodedDataset(data)
    captions, streams = read_embeddings(embeddings)
    _check_covered(dataset, set(captions), embeddings)
    write_table(dataset.text_folder, captions, streams)
    table = dataset.text_folder / FOLDER
    written = {f"{name}{suffix}.npy" for name in streams for suffix in ("", LENGTHS)}
    for path in table.glob("*.npy"):
        if path.name not in written:
            path.unlink()  # a stream of the table before, whose rows are other captions
    shapes = tuple((name, *array.shape[1:]) for name, (array, _) in streams.items())
    print(f"{table}: {len(captions)} captions; in the run's config, under model.text:")
    print(f"  encoder='precomputed', token_dropout=0.0, streams={shapes}")
    return table


def read_embeddings(file: str | pathlib.Path) -> tuple[list[str], Streams]:
    """The captions of a .npz file, and by stream its embeddings [n, L, E] and lengths [n].

    Raises:
      EmbeddingError: an array is missing, superfluous or of the wrong type; names it.
      OSError: the file cannot be read.
    """
    try:
        opened = np.load(file)
        arrays = {CAPTIONS: opened} if isinstance(opened, np.ndarray) else dict(opened)
    except ValueError as error:
        raise EmbeddingError(
            f"{file} cannot be read: {error} Allowed: a file of numpy.savez without objects; "
            "captions as an array of unicode strings"
        ) from error
    captions = arrays.pop(CAPTIONS, None)
    if captions is None or captions.dtype.kind != "U" or captions.ndim != 1:
        found = "missing" if captions is None else f"{captions.dtype} of shape {captions.shape}"
        raise EmbeddingError(f"{CAPTIONS} in {file} is {found}; allowed: unicode strings [n]")
    names = [name for name in arrays if not name.endswith(LENGTHS)]
    if not names:
        raise EmbeddingError(f"{file} holds no stream beside {CAPTIONS}; allowed: one or more")
    for name in arrays:
        if name.endswith(LENGTHS) and name.removesuffix(LENGTHS) not in names:
            raise EmbeddingError(
                f"{name} in {file} belongs to no stream; the streams are: {', '.join(names)}"
            )
    return captions.tolist(), {name: _stream(name, arrays, file) for name in names}


def _stream(
    name: str, arrays: Mapping[str, np.ndarray], file: str | pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    embeddings = arrays[name]
    if embeddings.dtype.kind != "f" or embeddings.ndim != 3:
        raise EmbeddingError(
            f"{name} in {file} is {embeddings.dtype} of shape {embeddings.shape}; allowed: "
            "floating [captions, positions, width]"
        )
    largest = np.finfo(np.float16).max
    if np.abs(embeddings).max(initial=0.0) > largest:
        raise EmbeddingError(
            f"{name} in {file} has values beyond {largest:g}, the largest of float16, in which "
            "they are kept; scale them down"
        )
    full = np.full(len(embeddings), embeddings.shape[1], np.int32)
    lengths = arrays.get(name + LENGTHS, full)
    if lengths.dtype.kind not in "iu":
        raise EmbeddingError(
            f"{name}{LENGTHS} in {file} is {lengths.dtype}; allowed: whole numbers [captions]"
        )
    return embeddings, lengths


def _check_covered(
    dataset: EncodedDataset, known: set[str], embeddings: str | pathlib.Path
) -> None:
    records = find_records(dataset.path / RECORDS_FOLDER)
    missing: dict[str, str] = {}
    num_captions = 0
    for split in tfds.builder_from_directory(str(records)).info.splits:
        for caption in captions_of(dataset, split):
            num_captions += 1
            if caption and caption not in known:
                missing.setdefault(caption, split)
    if not num_captions:
        raise _no_captions(dataset)
    if missing:
        caption, split = next(iter(missing.items()))
        raise EmbeddingError(
            f"{embeddings} lacks {len(missing)} captions of {dataset.path}; the first of them is "
            f"{caption!r}, in the {split} split. Every caption of every split needs its embeddings"
        )


def _no_captions(dataset: EncodedDataset) -> ValueError:
    return ValueError(
        f"{dataset.path} has no captions; a run with text.encoder = 'none' trains on it as it is"
    )


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_string("data", None, "Folder made by data.encode_latents.", required=True)
    flags.DEFINE_integer(
        "vocabulary_size", 1000, "Most entries of the vocabulary; at least 257 for the bytes."
    )
    flags.DEFINE_string(
        "embeddings", None, "File of embeddings to take instead of fitting a tokenizer."
    )


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    if values.embeddings is None:
        fit(values.data, values.vocabulary_size)
    elif values["vocabulary_size"].present:
        raise ValueError(
            "--vocabulary_size belongs to the learned tokenizer; allowed: it or --embeddings"
        )
    else:
        bring(values.data, values.embeddings)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
