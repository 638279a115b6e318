"""Encodes audio to latent tokens, once, before training: on one host or many, and after kills.

    python -m data.encode_latents --data runs/demo/data --out runs/demo/encoded --token_dim 64
    python -m data.encode_latents --data runs/mine/data --out runs/mine/encoded \\
        --codec runs/demo/encoded
    python -m data.encode_latents --data audiocaps --out shared/encoded --codec codecs/audioldm \\
        --posterior=moments --host_index=3 --num_hosts=8

--data is a dataset of `data.common.records`, another TFDS dataset kept as ArrayRecord, or a folder
of audio files with a table (`data.folder` describes it). Fits the spectrogram codec's statistics on
the training split, then writes

    out/records            a TFDS dataset of tokens, captions and labels; it appears when complete
    out/codec              all that decoding needs
    out/statistics.json    mean and deviation of the tokens, and the factor that makes the latter 1

With --codec, an existing codec encodes instead, so that the data of several stages speak the same
tokens. Clips keep their whole length; training cuts windows out of them. What cannot be used is
skipped, counted by reason, shown at the end and listed in skipped.jsonl beside the records.

The work is cut into shards (`data.common.shards`): start the same command again after a kill, and
only what is missing is done. Hosts that share a file system run it with their own --host_index
each; whichever ends last completes the dataset. Run `python -m data.embed_text` on the same folder
next, unless the clips have no captions.
Dimensions: P token columns in time, G tokens per column, C channels.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
import operator
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data.common import batches
from data.common import codec_fit as codecs
from data.common.moments import Moments
from data.common.records import Clip
from data.common.shards import ShardedDataset, Summary
from data.common.sources import Source, open_source
from data.common.tables import Skipped
from data.folder import report
from fasttta_jax import cli
from fasttta_jax.audio.mel import MelConfig
from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.codecs.spectrogram import SpectrogramCodec, SpectrogramConfig
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, RECORDS_FOLDER, find_records
from fasttta_jax.storage.files import write_json

Stored = Literal["mean", "moments"]

NAME = "latents"
STATISTICS_FILE = "statistics.json"
CLIPS_PER_SHARD = 256
CODEC_FLAGS = (
    "token_dim",
    "patch_frames",
    "bands",
    "num_mels",
    "floor",
    "whitening",
    "griffin_lim_iterations",
)


def encode(
    data: str | pathlib.Path,
    out: str | pathlib.Path,
    codec: SpectrogramConfig | str | pathlib.Path,
    *,
    posterior: Stored = "mean",
    batch_size: int = batches.BATCH_SIZE,
    clips_per_shard: int = CLIPS_PER_SHARD,
    host_index: int | None = None,
    num_hosts: int | None = None,
    workers: int = batches.WORKERS,
    source_rate: int | None = None,
    with_captions: bool = True,
) -> None:
    """Writes the encoded dataset, or this host's part; says so and stops where it is already there.

    Args:
      data: audio, as `data.common.sources.open_source` takes it.
      out: folder to write.
      codec: settings of a codec to fit on the training split, or the folder of an existing one.
      posterior: "mean" keeps the tokens; "moments" keeps the log-variance of the codec's posterior
        beside them, to draw tokens anew in training.
      batch_size: clips encoded at once; a multiple of the number of local devices.
      clips_per_shard: items of the source in a shard: what a kill can cost, and the unit that hosts
        share.
      host_index: which of the hosts this is; JAX's process index when None.
      num_hosts: how many share the work; JAX's process count when None.
      workers: reading threads; the result does not depend on it.
      source_rate: sample rate of a TFDS dataset that does not say it.
      with_captions: False keeps no captions.

    Raises:
      ValueError: an argument is out of range, the source is unusable or has another sample rate,
        `out` holds other data, or a codec is to be fitted by several hosts.
      OSError: the source or the codec is not there.
    """
    host_index = jax.process_index() if host_index is None else host_index
    num_hosts = jax.process_count() if num_hosts is None else num_hosts
    _check_arguments(posterior, batch_size, host_index, num_hosts, workers)
    out = pathlib.Path(out)
    if isinstance(codec, SpectrogramConfig):
        if num_hosts > 1:
            raise ValueError(
                f"num_hosts is {num_hosts}, but fitting a codec is the work of one host: fit it "
                "first, by encoding data on one, then give that folder to all with --codec"
            )
        chosen = loaded = codec
        settings = {"codec": repr(codec)}
        sample_rate, shape = codec.mel.sample_rate, (None, codec.bands, codec.token_dim)
    else:
        chosen = codecs.find_codec(codec)
        settings = {"codec_sha256": codecs.hash_codec(chosen)}
        loaded = load_codec(chosen)
        sample_rate, shape = loaded.sample_rate, (None, loaded.tokens_per_column, loaded.token_dim)
    source = open_source(data, sample_rate, source_rate=source_rate, with_captions=with_captions)
    array = tfds.features.Tensor(shape=shape, dtype=batches.DTYPE, encoding="bytes")
    dataset = ShardedDataset(
        out / RECORDS_FOLDER,
        name=NAME,
        description=f"Latent tokens of {source.name}.",
        arrays={"tokens": array} | ({"log_variance": array} if posterior == "moments" else {}),
        lengths=source.lengths,
        shard_size=clips_per_shard,
        settings={**source.made_from, **settings, "posterior": posterior},
    )
    if dataset.is_complete:
        _write_statistics(out)
        print(f"{out} is already encoded with these settings")
        return
    if posterior == "moments":
        codecs.check_variance(loaded, batch_size)
    kept = dataset.kept()
    if kept is None:
        kept = _prepare_codec(out / CODEC_FOLDER, source, chosen, num_hosts, workers)
    elif codecs.hash_codec(out / CODEC_FOLDER) != kept["codec_sha256"]:
        raise ValueError(
            f"{out / CODEC_FOLDER} is not the codec that the shards in {dataset.unfinished} were "
            "encoded with; put that back, or remove both"
        )
    ready = load_codec(out / CODEC_FOLDER)
    kept = dataset.start(kept)
    _encode_shards(
        dataset, source, ready, batch_size, host_index, num_hosts, workers, posterior == "moments"
    )
    summary = dataset.finish(
        lambda summary: _metadata(summary, source, ready.sample_rate, posterior, kept)
    )
    if not dataset.is_complete:
        others = len(dataset.missing())
        print(f"{out}: this host is done; {others} shards of other hosts are missing")
        return
    _write_statistics(out)
    if summary is not None:
        print(f"{out}: {sum(summary.num_records.values())} clips encoded")
        print(report(summary.skipped, source.left_out), end="")


def _check_arguments(
    posterior: str, batch_size: int, host_index: int, num_hosts: int, workers: int
) -> None:
    devices, stored = jax.local_device_count(), get_args(Stored)
    for name, value, valid, allowed in (
        ("posterior", posterior, posterior in stored, " or ".join(map(repr, stored))),
        ("num_hosts", num_hosts, num_hosts >= 1, "1 or more"),
        ("host_index", host_index, 0 <= host_index < num_hosts, f"0 to {num_hosts - 1}"),
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


def _prepare_codec(
    folder: pathlib.Path,
    source: Source,
    codec: SpectrogramConfig | pathlib.Path,
    num_hosts: int,
    workers: int,
) -> dict[str, Any]:
    """Puts the codec into `folder`, fitted or copied; returns what is worth keeping of that."""
    variance_kept = None
    if isinstance(codec, SpectrogramConfig):
        fitted, variance_kept = codecs.fit(codec, source, workers)
        fitted.save(folder)
    else:
        codecs.copy_codec(codec, folder)
        existing = load_codec(folder)
        if isinstance(existing, SpectrogramCodec) and num_hosts == 1:
            variance_kept = codecs.variance_kept(existing, source, workers)
    if variance_kept is None:
        return {"codec_sha256": codecs.hash_codec(folder)}
    print(f"the tokens keep {variance_kept:.1%} of the log-mel variance")
    return {"codec_sha256": codecs.hash_codec(folder), "variance_kept": variance_kept}


def _encode_shards(
    dataset: ShardedDataset,
    source: Source,
    codec: Codec,
    batch_size: int,
    host_index: int,
    num_hosts: int,
    workers: int,
    with_variance: bool,
) -> None:
    """Encodes and writes the shards of this host that are missing, reading ahead of them all."""
    shards = dataset.missing(host_index, num_hosts)
    indices = [range(shard.start, shard.stop) for shard in shards]
    items = ((s.split, index) for s, own in zip(shards, indices, strict=True) for index in own)
    results = batches.read_items(source, items, workers, ahead=batch_size)
    own = sum(shard.stop - shard.start for shard in dataset.shards[host_index::num_hosts])
    todo = sum(map(len, indices))
    skipped: list[Skipped] = []

    def clips(count: int) -> Iterator[Clip]:
        for result in itertools.islice(results, count):
            progress.update()
            for item in result:
                if isinstance(item, Clip):
                    yield item
                else:
                    skipped.append(item)

    with tqdm.tqdm(
        desc="encoding", total=own, initial=own - todo, unit="clip", mininterval=1.0
    ) as progress:
        for shard in shards:
            skipped.clear()
            records = batches.encode_clips(
                codec, clips(shard.stop - shard.start), batch_size, with_variance=with_variance
            )
            dataset.write(shard, records, skipped)


def _metadata(
    summary: Summary,
    source: Source,
    sample_rate: int,
    posterior: str,
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "sample_rate": sample_rate,
        "posterior": posterior,
        **kept,
        "num_records": dict(summary.num_records),
        "sha256": summary.sha256,
        "statistics": _statistics(summary.moments),
        "skipped": dict(collections.Counter(item.reason for item in summary.skipped)),
        "left_out": dict(collections.Counter(item.reason for item in source.left_out)),
        "source_metadata": source.metadata,
    }


def _statistics(moments: Mapping[str, Moments]) -> dict[str, Any]:
    """Of the training split, or of all splits without one."""
    names = ["train"] if "train" in moments else list(moments)
    seen = functools.reduce(operator.add, (moments[name] for name in names))
    return {"splits": names, **seen.statistics()}


def _write_statistics(out: pathlib.Path) -> None:
    """Puts the statistics of the complete dataset beside it."""
    folder = find_records(out / RECORDS_FOLDER)
    statistics = json.loads((folder / "metadata.json").read_text())["statistics"]
    write_json(out / STATISTICS_FILE, statistics)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def text(name: str, default: str | None, help: str, required: bool = False) -> None:
        flags.DEFINE_string(name, default, help, required=required, flag_values=values)

    def integer(name: str, default: int | None, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    def number(name: str, default: float, help: str) -> None:
        flags.DEFINE_float(name, default, help, flag_values=values)

    text("data", None, "A TFDS dataset of audio, or a folder of audio files.", required=True)
    text("out", None, "Folder to write; must not hold other data.", required=True)
    text(
        "codec",
        None,
        "Existing codec to encode with, instead of fitting one: its folder, or a dataset or "
        "workdir that holds codec/. The flags that describe a codec are not allowed with it.",
    )
    integer("token_dim", 64, "Channels per token (principal components).")
    integer("patch_frames", 16, "Spectrogram frames per token.")
    integer("bands", 2, "Tokens per moment: the mel axis is cut into this many.")
    integer("num_mels", 64, "Mel bands of the spectrogram.")
    number("floor", 1e-2, "Mel magnitudes below this count as silence.")
    number("whitening", 0.5, "0 keeps component variances, 1 equalises them.")
    integer(
        "griffin_lim_iterations", 32, "Phase reconstruction steps when tokens become audio again."
    )
    flags.DEFINE_enum(
        "posterior",
        "mean",
        get_args(Stored),
        "Keep the tokens, or with them the log-variance that data.sample_posterior draws from.",
        flag_values=values,
    )
    integer(
        "batch_size",
        batches.BATCH_SIZE,
        "Clips encoded at once; a multiple of the local devices. Clips of other length are in "
        "other batches, and incomplete batches are filled with silence.",
    )
    integer("clips_per_shard", CLIPS_PER_SHARD, "What a kill can cost, and the unit hosts share.")
    integer("host_index", None, "Which of the hosts this is, from 0 (default: as JAX knows).")
    integer("num_hosts", None, "How many hosts share the work (default: as JAX knows).")
    integer("workers", batches.WORKERS, "Reading threads; they change no result.")
    integer("sample_rate", None, "Hz of a TFDS dataset that does not say it itself.")
    flags.DEFINE_bool(
        "without_captions",
        False,
        "Keep no captions; a folder of audio files needs no table then.",
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
    values = flags.FLAGS
    tfds.disable_progress_bar()  # it knows no totals; the bars here do
    encode(
        values.data,
        values.out,
        chosen_codec(values),
        posterior=values.posterior,
        batch_size=values.batch_size,
        clips_per_shard=values.clips_per_shard,
        host_index=values.host_index,
        num_hosts=values.num_hosts,
        workers=values.workers,
        source_rate=values.sample_rate,
        with_captions=not values.without_captions,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
