"""Captions of an encoded dataset made ready for training: a tokenizer, or embeddings.

    python -m data.embed_text --data runs/demo/encoded --vocabulary_size 1000
    python -m data.embed_text --data runs/mine/encoded \\
        --encoder clap=converted/clap --encoder t5=converted/flan-t5-large
    python -m data.embed_text --data runs/mine/encoded --embeddings t5_and_clap.npz

By default, fits the tokenizer of the learned text encoder on the training captions and writes
`text/tokenizer.json`; the embeddings themselves train with the model.

With --encoder NAME=FOLDER, once for each stream, runs frozen networks over every caption of every
split and writes `text/embeddings/` (a table) and `text/networks/` (for captions that come later)
for text.encoder = "frozen". FOLDER is what `python -m fasttta_jax.convert t5` or `clap` wrote.
Batches are spread over all devices of a host, and shards of captions over processes that share a
file system (--process_id, --num_processes). A run that was killed goes on where it was.

With --embeddings, takes what other text encoders said of every caption. The file is one of
numpy.savez:

    captions        n different captions, unicode [n]
    NAME            embeddings of a stream, floating [n, L, E]; as many streams as you like
    NAME_lengths    positions of it that hold text, whole numbers [n]; without it, all of them do

Every caption of every split must be there; captions beyond them become prompts for generation.
Dimensions: n captions, L positions, E width of a stream.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from fasttta_jax import cli
from fasttta_jax.config import TextConfig
from fasttta_jax.input_pipeline.records import RECORDS_FOLDER, EncodedDataset, find_records
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.text.networks import DTYPES, Networks, open_network, save_networks
from fasttta_jax.text.table import (
    FOLDER,
    LENGTHS,
    SUMMARY_FILE,
    EmbeddingError,
    Stream,
    TableWriter,
    write_table,
)

CAPTIONS = "captions"

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
    shapes = tuple((name, *array.shape[1:]) for name, (array, _) in streams.items())
    _describe(table, len(captions), shapes)
    return table


def _describe(table: pathlib.Path, num_captions: int, streams: Sequence[Stream]) -> None:
    print(f"{table}: {num_captions} captions; in the run's config, under model.text:")
    print(f"  encoder='frozen', token_dropout=0.0, streams={tuple(streams)}")


def all_captions(dataset: EncodedDataset) -> dict[str, str]:
    """Every caption of every split that is not empty, with the first split that holds it.

    Raises:
      ValueError: there are no captions.
    """
    records = find_records(dataset.path / RECORDS_FOLDER)
    found: dict[str, str] = {}
    for split in tfds.builder_from_directory(str(records)).info.splits:
        for caption in captions_of(dataset, split):
            if caption:
                found.setdefault(caption, split)
    if not found:
        raise _no_captions(dataset)
    return found


def embed(
    data: str | pathlib.Path,
    encoders: Mapping[str, str | pathlib.Path],
    *,
    positions: Mapping[str, int] | None = None,
    dtype: str = "float32",
    process_id: int = 0,
    num_processes: int = 1,
) -> pathlib.Path:
    """Runs frozen networks over all captions of a dataset; returns the table's folder.

    Args:
      data: folder of an encoded dataset.
      encoders: by stream, a folder of converted weights.
      positions: by stream, L where it is not the published one.
      dtype: of the networks' matrix products.
      process_id: which of the processes this is.
      num_processes: how many share the work.

    Raises:
      EmbeddingError: a folder holds no text encoder.
      ValueError: the dataset has no captions, or another table is there.
    """
    dataset = EncodedDataset(data)
    given = positions or {}
    networks = Networks(
        {name: open_network(path, given.get(name), dtype) for name, path in encoders.items()}, dtype
    )
    captions = sorted(all_captions(dataset), key=lambda caption: (len(caption), caption))
    folder = dataset.text_folder
    writer = TableWriter(folder, captions, networks.streams, networks.summary())
    if process_id == 0:
        save_networks(folder, encoders, networks)
    if not writer.is_complete:
        writer.start()
        shards = writer.work.missing(process_id, num_processes)
        total, todo = (
            sum(len(shard.indices) for shard in some)
            for some in (writer.work.of_process(process_id, num_processes), shards)
        )
        with tqdm.tqdm(
            desc="embedding", total=total, initial=total - todo, unit="caption"
        ) as progress:
            for shard in shards:
                writer.write(shard, networks.encode(writer.captions_of(shard)))
                progress.update(len(shard.indices))
        if not writer.finish():
            print(
                f"process {process_id} of {num_processes} is done; {folder / SUMMARY_FILE} appears "
                "with the last one"
            )
            return folder / FOLDER
    _describe(folder / FOLDER, len(captions), networks.streams)
    return folder / FOLDER


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
    missing = {name: split for name, split in all_captions(dataset).items() if name not in known}
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


def named(flag: str, given: Sequence[str]) -> dict[str, str]:
    """What NAME=VALUE flags say.

    Raises:
      ValueError: one is malformed, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals and value):
            raise ValueError(f"--{flag} is {text!r}; allowed: NAME=VALUE, NAME of letters and _")
        if name in found:
            raise ValueError(f"--{flag} names {name!r} twice; allowed: each stream once")
        found[name] = value
    return found


def _positions(given: Sequence[str], encoders: Mapping[str, str]) -> dict[str, int]:
    found = named("positions", given)
    for name, value in found.items():
        if name not in encoders:
            raise ValueError(f"--positions names {name!r}; allowed: {', '.join(encoders)}")
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"--positions={name}={value}; allowed: whole numbers from 1")
    return {name: int(value) for name, value in found.items()}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_string(
        "data", None, "Folder made by data.encode_latents.", required=True, flag_values=values
    )
    flags.DEFINE_integer(
        "vocabulary_size",
        1000,
        "Most entries of the vocabulary; at least 257 for the bytes.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "encoder",
        [],
        "NAME=FOLDER: a stream and the converted weights of its network; give it once for each "
        "stream, in the order of the prefix.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "positions",
        [],
        "NAME=L: positions of a stream; left out, 77 for T5 and 1 for CLAP.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype", "float32", DTYPES, "Type of the networks' matrix products.", flag_values=values
    )
    cli.define_share_flags(values)
    flags.DEFINE_string(
        "embeddings",
        None,
        "File of embeddings to take instead of fitting a tokenizer.",
        flag_values=values,
    )


MODES = {
    "encoder": ("positions", "dtype", "process_id", "num_processes"),
    "embeddings": (),
    "vocabulary_size": (),
}
"""Flags that choose what happens, and the flags that go with each."""


def _check_flags(values: flags.FlagValues) -> None:
    modes = [name for name in MODES if values[name].present]
    if len(modes) > 1:
        shown = " and ".join(f"--{name}" for name in modes)
        raise ValueError(f"{shown} are given; allowed: one of them")
    mode = modes[0] if modes else "vocabulary_size"
    for other, names in MODES.items():
        for name in names:
            if other != mode and values[name].present:
                raise ValueError(f"--{name} belongs to --{other}, which is not given")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    _check_flags(values)
    if values.encoder:
        encoders = named("encoder", values.encoder)
        process_id, num_processes = cli.share(jax.process_index, jax.process_count)
        embed(
            values.data,
            encoders,
            positions=_positions(values.positions, encoders),
            dtype=values.dtype,
            process_id=process_id,
            num_processes=num_processes,
        )
    elif values.embeddings is not None:
        bring(values.data, values.embeddings)
    else:
        fit(values.data, values.vocabulary_size)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
