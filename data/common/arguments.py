"""Flags that several of the commands here have; not defined at import, as tests define them too."""

from __future__ import annotations

import glob
import os
import pathlib
import re
from collections.abc import Sequence

from absl import flags

from data.common.shards import ITEMS_PER_SHARD
from data.common.sources import WORKERS
from data.common.tables import SPLIT_NAMES
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


def split_files(flag: str, given: Sequence[str]) -> dict[pathlib.Path, str | None]:
    """The files of "FILE" or "SPLIT=FILE", where FILE may be a pattern such as "train-*.parquet".

    Args:
      flag: its name, for errors.
      given: what it says.

    Raises:
      ValueError: no file has such a name, or one is given twice.
    """
    found: dict[pathlib.Path, str | None] = {}
    for text in given:
        name, equals, pattern = text.partition("=")
        split = SPLIT_NAMES.get(name) if equals else None
        pattern = pattern if split else text
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise ValueError(
                f"--{flag} is {text!r}, and there is no such file; allowed: FILE or SPLIT=FILE, "
                f"SPLIT one of {', '.join(SPLIT_NAMES)}"
            )
        for path in map(pathlib.Path, paths):
            if path in found:
                raise ValueError(f"--{flag} names {path} twice; allowed: each file once")
            found[path] = split
    return found


def split_of_name(path: pathlib.Path) -> str:
    """The split that the name of a published file begins with, such as "val.csv".

    Raises:
      ValueError: it begins with none.
    """
    word = re.match("[a-z]*", path.name.lower())
    assert word is not None
    if word.group() not in SPLIT_NAMES:
        raise ValueError(
            f"{path}: its name does not begin with a split; allowed: {', '.join(SPLIT_NAMES)}, or "
            f"SPLIT={path} where it is given"
        )
    return SPLIT_NAMES[word.group()]
