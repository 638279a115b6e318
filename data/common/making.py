"""Clips found below a folder made a dataset, and the flags of the commands that do so.

The work is cut into shards (`data.common.shards`): the same command, started again after a kill,
does what is missing. A dataset is refused where too many of its clips cannot be used.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from data.common import provenance, recordings
from data.common.arguments import define_shard_flags
from data.common.provenance import UNSTATED, Provenance
from data.common.records import Clip, audio_dataset, to_records
from data.common.shards import ITEMS_PER_SHARD, Item, Summary
from data.common.sources import WORKERS
from data.common.tables import Skipped, report
from fasttta_jax import cli

NEEDS = {"train": "train.py", "validation": "train.py", "test": "eval.py"}
MORE_CLIPS = (
    "add clips (three are enough for all splits), fill it in the table's column of splits, or give "
    "it a share where there is none"
)


def make_dataset(
    find: Callable[[recordings.Settings], recordings.Files],
    out: str | os.PathLike[str],
    *,
    name: str,
    description: str,
    origin: Provenance = UNSTATED,
    is_published: bool = False,
    sample_rate: int = 16_000,
    min_seconds: float = 0.1,
    max_seconds: float = 60.0,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
    workers: int = WORKERS,
    level: bool = True,
    with_captions: bool = True,
    max_skipped_fraction: float = 0.1,
    clips_per_shard: int = ITEMS_PER_SHARD,
    process_id: int = 0,
    num_processes: int = 1,
) -> pathlib.Path:
    """Makes the dataset `out/name/1.0.0` and returns that folder.

    What is already there of the dataset is kept if the settings, the table, and the names and
    contents of the audio files are those it was made from; shards that are missing are written.

    Args:
      find: lists the clips, with settings made of the arguments below.
      out: parent folder of the dataset.
      name: dataset name, in snake case.
      description: what the clips are and where they come from.
      origin: source and licence, kept in the metadata.
      is_published: the clips are a published list, of which some are often not to be had: those
        that are missing are counted and do not count towards `max_skipped_fraction`.
      sample_rate: samples per second to store.
      min_seconds: shorter clips are skipped.
      max_seconds: longer clips are cut into equal pieces of at most this length.
      validation_fraction: share of files for validation, where the table gives no splits.
      test_fraction: share of files for testing, likewise.
      seed: of the assignment to splits.
      workers: threads that decode; the result does not depend on it.
      level: remove the mean and scale the peak to 0.5; otherwise only peaks beyond full scale are
        brought down to it.
      with_captions: False keeps no captions.
      max_skipped_fraction: largest share of clips that may be skipped.
      clips_per_shard: listed clips of a shard: what a kill can cost, and the unit that processes
        share.
      process_id: which of the processes this is.
      num_processes: how many share the work; the dataset appears with the last one.

    Raises:
      ValueError: the settings or the table are wrong, too many clips cannot be used, a split is
        left without a clip, or another dataset is already there. Then no dataset appears.
      OSError: the table cannot be read or the dataset cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name is {name!r}; allowed: snake case, such as 'my_sounds'")
    if workers < 1:
        raise ValueError(f"workers is {workers}; allowed: at least 1")
    if not 0 <= max_skipped_fraction <= 1:
        raise ValueError(f"max_skipped_fraction is {max_skipped_fraction}; allowed: 0 to 1")
    settings = recordings.Settings(
        sample_rate=sample_rate,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        level=level,
        with_captions=with_captions,
    )
    files = find(settings)
    names = {entry.id for entries in files.members.values() for entry in entries}
    dataset = audio_dataset(
        out,
        name=name,
        description=description,
        lengths={split: len(entries) for split, entries in files.members.items()},
        settings=files.made_from,
        clips_per_shard=clips_per_shard,
        left_out=files.left_out,
    )

    def read(items: Iterable[Item]) -> Generator[list[Clip | Skipped], None, None]:
        entries = (files.members[split][index] for split, index in items)
        return recordings.ordered_map(
            lambda entry: recordings.read_clips(entry, files.audio, settings), entries, workers
        )

    def parted(skipped: Sequence[Skipped]) -> tuple[list[Skipped], list[Skipped]]:
        """Clips, and pieces and captions of clips that are there."""
        partial = [item.reason in recordings.PARTIAL or item.file not in names for item in skipped]
        whole = [item for item, is_part in zip(skipped, partial, strict=True) if not is_part]
        pieces = [item for item, is_part in zip(skipped, partial, strict=True) if is_part]
        return whole, [*files.left_out, *pieces]

    def describe(summary: Summary) -> Mapping[str, Any]:
        skipped, left_out = parted(summary.skipped)
        missing = sum(item.reason == "missing" for item in skipped) if is_published else 0
        there, broken = len(names) - missing, len(skipped) - missing
        if broken > max_skipped_fraction * there:
            raise ValueError(
                f"{broken} of {there} files cannot be used, but max_skipped_fraction "
                f"is {max_skipped_fraction:g}; raise the limit, or mend "
                f"{files.table or 'the files'} and remove {dataset.work.folder}\n"
                f"{report(skipped, left_out)}"
            )
        return {
            "sample_rate": sample_rate,
            "skipped_files": dict(collections.Counter(item.reason for item in skipped)),
            "left_out": dict(collections.Counter(item.reason for item in left_out)),
            **provenance.describe(origin, files.members, skipped),
        }

    summary = dataset.make(
        read,
        to_records,
        describe,
        process_id=process_id,
        num_processes=num_processes,
        unit="file",
    )
    if summary is not None:
        skipped, left_out = parted(summary.skipped)
        sizes = ", ".join(f"{count} {split}" for split, count in summary.num_records.items())
        made = len(names) - len(skipped)
        print(f"{dataset.path}: made from {made} of {len(names)} files ({sizes})")
        for split, needs_it in NEEDS.items():
            if split not in summary.num_records:
                print(f"the {split} split is empty, and {needs_it} needs one: {MORE_CLIPS}")
        if is_published:
            for split, said in provenance.describe(origin, files.members, skipped)[
                "listed"
            ].items():
                print("{}: {clips} listed, {found} found, {made} made".format(split, **said))
        print(report(skipped, left_out), end="")
    return dataset.path


def define_making_flags(values: flags.FlagValues, *, name: str | None = None) -> None:
    """Flags of the arguments of `make_dataset`; `name` is the default of --name."""

    def number(name: str, default: float, help: str) -> None:
        flags.DEFINE_float(name, default, help, flag_values=values)

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    flags.DEFINE_string(
        "out",
        None,
        "Parent folder; the dataset is made at OUT/NAME/1.0.0.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "name",
        name,
        "Dataset name in snake case, such as my_sounds.",
        required=name is None,
        flag_values=values,
    )
    integer("sample_rate", 16_000, "Hz, after resampling.")
    number("min_seconds", 0.1, "Skip shorter files.")
    number("max_seconds", 60.0, "Cut longer files.")
    number("validation_fraction", 0.05, "Share of files, without a column of splits.")
    number("test_fraction", 0.05, "Share of files, without a column of splits.")
    integer("seed", 0, "Of the assignment to splits.")
    integer("workers", WORKERS, "Decoding threads; they change no result.")
    flags.DEFINE_bool(
        "level",
        True,
        "Remove the mean and scale the peak to 0.5; --nolevel keeps the levels of the files.",
        flag_values=values,
    )
    number(
        "max_skipped_fraction",
        0.1,
        "Make nothing if a larger share of the files cannot be used.",
    )
    define_shard_flags(values)


_OPTIONS = (
    "name",
    "sample_rate",
    "min_seconds",
    "max_seconds",
    "validation_fraction",
    "test_fraction",
    "seed",
    "workers",
    "level",
    "max_skipped_fraction",
    "clips_per_shard",
)


def making_options() -> dict[str, Any]:
    """What the flags say for the arguments of `make_dataset` from `name` on."""
    process_id, num_processes = cli.share()
    said = {name: flags.FLAGS[name].value for name in _OPTIONS}
    return {**said, "process_id": process_id, "num_processes": num_processes}


def define_caption_flag(values: flags.FlagValues) -> None:
    """--without_captions, of the commands whose clips have captions."""
    flags.DEFINE_bool(
        "without_captions",
        False,
        "Keep no captions, which need not be there then.",
        flag_values=values,
    )


def define_origin_flags(values: flags.FlagValues) -> None:
    """--source and --licence, of the commands that do not know them."""
    for name, help in (
        ("source", "Who published the sounds, and where; kept in the metadata."),
        ("licence", "Licence of the sounds and captions; kept in the metadata."),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
