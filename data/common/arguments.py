"""Flags that several of the commands here have; not defined at import, as tests define them too."""

from __future__ import annotations

from absl import flags

from data.common.shards import ITEMS_PER_SHARD
from data.common.sources import WORKERS
from fasttta_jax import cli


def define_source_flags(values: flags.FlagValues) -> None:
    """Flags of the commands that read a source."""
    flags.DEFINE_string(
        "data",
        None,
        "A TFDS dataset of audio, or a folder of audio files.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers", WORKERS, "Reading threads; they change no result.", flag_values=values
    )
    flags.DEFINE_integer(
        "sample_rate", None, "Hz of a TFDS dataset that does not say it itself.", flag_values=values
    )
    flags.DEFINE_bool(
        "without_captions",
        False,
        "Keep no captions; a folder of audio files needs no table then.",
        flag_values=values,
    )


def define_shard_flags(values: flags.FlagValues) -> None:
    """Flags of the commands that write a sharded dataset; see `cli.share`."""
    flags.DEFINE_integer(
        "clips_per_shard",
        ITEMS_PER_SHARD,
        "Items of the source in a shard: what a kill can cost, and what processes share.",
        flag_values=values,
    )
    cli.define_share_flags(values)
