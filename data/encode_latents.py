"""Encodes audio to latent tokens, once, before training: on one host or many, and after kills.

    python -m data.spectrogram_codec --data runs/demo/data --out runs/demo/codec
    python -m data.encode_latents --data runs/demo/data --out runs/demo/encoded \\
        --codec runs/demo/codec
    python -m data.encode_latents --data audiocaps --out shared/encoded --codec codecs/audioldm \\
        --posterior=moments --process_id=3 --num_processes=8

--data is a dataset of `data.common.records`, another TFDS dataset kept as ArrayRecord, or a folder
of audio files with a table (`data.folder` describes it). --codec is what `data.spectrogram_codec`
or `data.vae_codec` made, or a dataset or workdir that holds one, so that the data of several runs
speak the same tokens. Writes

    out/records            a TFDS dataset of tokens, captions and labels; it appears when complete
    out/codec              all that decoding needs
    out/statistics.json    mean and deviation of the tokens, and the factor that makes the latter 1

Clips keep their whole length; training cuts windows out of them. What cannot be used is skipped,
counted by reason, shown at the end and listed in skipped.jsonl beside the records.

The work is cut into shards (`data.common.shards`): start the same command again after a kill, and
only what is missing is done. Processes that share a file system run it with their own --process_id
each; whichever ends last completes the dataset. Run `python -m data.embed_text` on the same folder
next, unless the clips have no captions.
Dimensions: P token columns in time, G tokens per column, C channels.
"""

from __future__ import annotations

import collections
import functools
import operator
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import tensorflow_datasets as tfds
from absl import flags

from data.common import batches
from data.common.arguments import define_shard_flags, define_source_flags
from data.common.codecs import check_variance, copy_part, find_codec, hash_part
from data.common.moments import Moments
from data.common.records import Clip
from data.common.shards import ITEMS_PER_SHARD, Record, ShardedDataset, Summary
from data.common.sources import WORKERS, AudioSource, open_audio_source
from data.common.tables import Skipped, report
from fasttta_jax import cli
from fasttta_jax.codecs import load_codec
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, RECORDS_FOLDER, find_records
from fasttta_jax.storage.files import read_json, write_json
from fasttta_jax.storage.shards import check_share
from fasttta_jax.storage.whole import remove_leftovers

Stored = Literal["mean", "moments"]

NAME = "latents"
STATISTICS_FILE = "statistics.json"


def encode(
    data: str | pathlib.Path,
    out: str | pathlib.Path,
    codec: str | pathlib.Path,
    *,
    posterior: Stored = "mean",
    batch_size: int = batches.BATCH_SIZE,
    clips_per_shard: int = ITEMS_PER_SHARD,
    process_id: int = 0,
    num_processes: int = 1,
    workers: int = WORKERS,
    source_rate: int | None = None,
    with_captions: bool = True,
) -> None:
    """Encodes every split of the dataset or folder in `data`, or what of it is missing, into `out`.

    Args:
      data: a folder with one TFDS dataset at or below it, or with audio files.
      out: folder to write; must not hold other data.
      codec: a folder that `find_codec` finds a codec in.
      posterior: "mean" keeps the tokens; "moments" keeps the log-variance of the codec's posterior
        beside them, to draw tokens anew in training.
      batch_size: clips encoded at once; a multiple of the number of local devices.
      clips_per_shard: items of the source in a shard: what a kill can cost, and the unit that
        processes share.
      process_id: which of the processes this is.
      num_processes: how many share the work.
      workers: reading threads; the result does not depend on it.
      source_rate: sample rate of a TFDS dataset that does not say it.
      with_captions: False keeps no captions.

    Raises:
      ValueError: an argument is out of range, the source is unusable or has another sample rate, or
        `out` holds other data.
      OSError: the source or the codec is not there.
    """
    _check_arguments(posterior, batch_size, workers)
    check_share(process_id, num_processes)
    out = pathlib.Path(out)
    given = find_codec(codec)
    loaded = load_codec(given)
    codec_sha256 = hash_part(given)
    sample_rate = loaded.sample_rate
    source = open_audio_source(
        data, sample_rate, source_rate=source_rate, with_captions=with_captions
    )
    array = tfds.features.Tensor(
        shape=(None, loaded.tokens_per_column, loaded.token_dim),
        dtype=batches.DTYPE,
        encoding="bytes",
    )
    with_variance = posterior == "moments"
    dataset = ShardedDataset(
        out / RECORDS_FOLDER,
        name=NAME,
        description=f"Latent tokens of {source.name}.",
        arrays={"tokens": array} | ({"log_variance": array} if with_variance else {}),
        lengths=source.lengths,
        shard_size=clips_per_shard,
        settings={**source.made_from, "codec_sha256": codec_sha256, "posterior": posterior},
        measure=lambda record: Moments.of(record["tokens"]).sums(),
    )
    if not dataset.is_complete:
        if with_variance:
            check_variance(loaded, batch_size)
        dataset.work.start()
        copy_part(given, out / CODEC_FOLDER)

    def to_records(items: Iterable[Clip | Skipped]) -> list[Record | Skipped]:
        skipped: list[Skipped] = []

        def clips() -> Iterator[Clip]:
            for item in items:
                if isinstance(item, Clip):
                    yield item
                else:
                    skipped.append(item)

        records = batches.encode_clips(loaded, clips(), batch_size, with_variance=with_variance)
        return [*records, *skipped]

    summary = dataset.make(
        lambda items: batches.read_items(source, items, workers, ahead=batch_size),
        to_records,
        lambda summary: _metadata(summary, source, sample_rate, posterior, codec_sha256),
        process_id=process_id,
        num_processes=num_processes,
    )
    if dataset.is_complete:
        remove_leftovers(out, deep=False)
        _write_statistics(out)
    if summary is not None:
        print(f"{out}: {sum(summary.num_records.values())} clips encoded")
        print(report(summary.skipped, source.left_out), end="")


def _check_arguments(posterior: str, batch_size: int, workers: int) -> None:
    devices, stored = jax.local_device_count(), get_args(Stored)
    for name, value, valid, allowed in (
        ("posterior", posterior, posterior in stored, " or ".join(map(repr, stored))),
        ("workers", workers, workers >= 1, "1 or more"),
        (
            "batch_size",
            batch_size,
            batch_size >= 1 and batch_size % devices == 0,
            f"multiples of the {devices} local devices",
        ),
    ):
        if not valid:
            raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def _metadata(
    summary: Summary, source: AudioSource, sample_rate: int, posterior: str, codec_sha256: str
) -> dict[str, Any]:
    return {
        "sample_rate": sample_rate,
        "posterior": posterior,
        "codec_sha256": codec_sha256,
        "num_records": dict(summary.num_records),
        "statistics": _statistics(summary),
        "skipped": dict(collections.Counter(item.reason for item in summary.skipped)),
        "left_out": dict(collections.Counter(item.reason for item in source.left_out)),
        "source_metadata": source.metadata,
    }


def _statistics(summary: Summary) -> dict[str, Any]:
    """Of the training split, or of all splits without one."""
    names = ["train"] if "train" in summary.notes else list(summary.notes)
    notes = (note for name in names for note in summary.notes[name] if note["num_records"])
    seen = functools.reduce(operator.add, map(Moments.from_note, notes))
    return {"splits": names, **seen.statistics()}


def _write_statistics(out: pathlib.Path) -> None:
    """Puts the statistics of the complete dataset beside it."""
    folder = find_records(out / RECORDS_FOLDER)
    statistics = read_json(folder / "metadata.json")["statistics"]
    write_json(out / STATISTICS_FILE, statistics)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    define_source_flags(values)
    flags.DEFINE_string(
        "out", None, "Folder to write; must not hold other data.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "codec",
        None,
        "Codec to encode with: its folder, or a dataset or workdir that holds codec/.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "posterior",
        "mean",
        get_args(Stored),
        "Keep the tokens, or with them the log-variance that data.sample_posterior draws from.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        batches.BATCH_SIZE,
        "Clips encoded at once; a multiple of the local devices. Clips of other length are in "
        "other batches, and incomplete batches are filled with silence.",
        flag_values=values,
    )
    define_shard_flags(values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    process_id, num_processes = cli.share(jax.process_index, jax.process_count)
    encode(
        values.data,
        values.out,
        values.codec,
        posterior=values.posterior,
        batch_size=values.batch_size,
        clips_per_shard=values.clips_per_shard,
        process_id=process_id,
        num_processes=num_processes,
        workers=values.workers,
        source_rate=values.sample_rate,
        with_captions=not values.without_captions,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
