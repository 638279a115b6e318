"""Any folder of audio as a dataset: a table of captions next to WAV, FLAC, Ogg or MP3 files.

    python -m data.folder --audio_dir recordings --out datasets --name my_sounds

The table, metadata.csv or metadata.jsonl, has a column `file` (relative to --audio_dir) and a
column `caption`; several rows may share a file. Optional: `split` (train, validation or test) and
`events` (names of the sounds, separated by ";"). Further columns are kept in the labels. For
example:

    file,caption,events
    yard/dog.mp3,a dog barks twice,dog
    yard/dog.mp3,"barking, then silence",dog
    rain.flac,heavy rain on a tin roof,rain

--without_captions makes data for unconditional pre-training: captions are left out and need not be
there; without a table every audio file below --audio_dir is taken.

Without a split column, a hash of --seed and the file name decides, so rows added later move no
other file. A file is decoded to mono at one sample rate, levelled as in AudioLDM, and cut into
equal consecutive pieces ("rain.flac#0", "rain.flac#1", ...) if it is longer than --max_seconds.
Files that cannot be used are skipped, counted by reason, shown at the end and listed in
skipped.jsonl in the dataset; if they are too many, nothing is made.

The work is cut into shards (`data.common.shards`): start the same command again after a kill, and
only what is missing is done. Processes that share a file system run it with --num_processes and
their own --process_id; whichever ends last completes the dataset.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from data.common import recordings
from data.common.arguments import define_shard_flags
from data.common.records import Clip, audio_dataset, to_records
from data.common.shards import ITEMS_PER_SHARD, Item, Summary
from data.common.sources import WORKERS
from data.common.tables import Skipped, report
from fasttta_jax import cli


def build(
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str,
    metadata: str | os.PathLike[str] | None = None,
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
    description: str = "Audio files of a folder.",
) -> pathlib.Path:
    """Turns a folder into a dataset under `out/name/1.0.0` and returns that folder.

    What is already there of the dataset is kept if the settings, the table, and the names and sizes
    of the audio files are those it was made from; shards that are missing are written.

    Args:
      audio_dir: folder of the audio files.
      out: parent folder of the dataset.
      name: dataset name, in snake case.
      metadata: the table (`data.common.tables`); looked for in `audio_dir` when None.
      sample_rate: samples per second to store.
      min_seconds: shorter files are skipped.
      max_seconds: longer files are cut into equal pieces of at most this length.
      validation_fraction: share of files for validation, where the table gives no splits.
      test_fraction: share of files for testing, likewise.
      seed: of the assignment to splits.
      workers: threads that decode; the result does not depend on it.
      level: remove the mean and scale the peak to 0.5; otherwise only peaks beyond full scale are
        brought down to it.
      with_captions: False keeps no captions, and takes all audio below `audio_dir` where there is
        no table.
      max_skipped_fraction: largest share of files that may be skipped.
      clips_per_shard: files of a shard: what a kill can cost, and the unit that processes share.
      process_id: which of the processes this is.
      num_processes: how many share the work; the dataset appears with the last one.
      description: what the clips are and where they come from.

    Raises:
      ValueError: the settings or the table are wrong, too many files cannot be used, a split is
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
    files = recordings.find_files(audio_dir, settings, metadata=metadata)
    names = {entry.file for entries in files.members.values() for entry in entries}
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
            lambda entry: recordings.read_clips(entry, files.audio_dir, settings), entries, workers
        )

    def parted(skipped: Sequence[Skipped]) -> tuple[list[Skipped], list[Skipped]]:
        """Files, and pieces and captions of files that are there."""
        whole = [item for item in skipped if item.file in names]
        pieces = [item for item in skipped if item.file not in names]
        return whole, [*files.left_out, *pieces]

    def describe(summary: Summary) -> Mapping[str, Any]:
        skipped, left_out = parted(summary.skipped)
        if len(skipped) > max_skipped_fraction * len(names):
            raise ValueError(
                f"{len(skipped)} of {len(names)} files cannot be used, but max_skipped_fraction "
                f"is {max_skipped_fraction:g}; raise the limit, or mend "
                f"{files.table or 'the files'} and remove {dataset.work.folder}\n"
                f"{report(skipped, left_out)}"
            )
        return {
            "sample_rate": sample_rate,
            "skipped_files": dict(collections.Counter(item.reason for item in skipped)),
            "left_out": dict(collections.Counter(item.reason for item in left_out)),
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
        print(f"{dataset.path}: made from {len(names) - len(skipped)} of {len(names)} files")
        print(report(skipped, left_out), end="")
    return dataset.path


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def text(name: str, help: str, required: bool = True) -> None:
        flags.DEFINE_string(name, None, help, required=required, flag_values=values)

    def number(name: str, default: float, help: str) -> None:
        flags.DEFINE_float(name, default, help, flag_values=values)

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    def boolean(name: str, default: bool, help: str) -> None:
        flags.DEFINE_bool(name, default, help, flag_values=values)

    text("audio_dir", "Folder of the audio files.")
    text("metadata", "The table (default: metadata.csv or .jsonl in --audio_dir).", required=False)
    text("out", "Parent folder; the dataset is made at OUT/NAME/1.0.0.")
    text("name", "Dataset name in snake case, such as my_sounds.")
    integer("sample_rate", 16_000, "Hz, after resampling.")
    number("min_seconds", 0.1, "Skip shorter files.")
    number("max_seconds", 60.0, "Cut longer files.")
    number("validation_fraction", 0.05, "Share of files, without a column of splits.")
    number("test_fraction", 0.05, "Share of files, without a column of splits.")
    integer("seed", 0, "Of the assignment to splits.")
    integer("workers", WORKERS, "Decoding threads; they change no result.")
    boolean(
        "level",
        True,
        "Remove the mean and scale the peak to 0.5; --nolevel keeps the levels of the files.",
    )
    boolean(
        "without_captions",
        False,
        "Keep no captions; all audio below --audio_dir where there is no table.",
    )
    number(
        "max_skipped_fraction",
        0.1,
        "Make nothing if a larger share of the files cannot be used.",
    )
    define_shard_flags(values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    process_id, num_processes = cli.share()
    build(
        values.audio_dir,
        values.out,
        name=values.name,
        metadata=values.metadata,
        sample_rate=values.sample_rate,
        min_seconds=values.min_seconds,
        max_seconds=values.max_seconds,
        validation_fraction=values.validation_fraction,
        test_fraction=values.test_fraction,
        seed=values.seed,
        workers=values.workers,
        level=values.level,
        with_captions=not values.without_captions,
        max_skipped_fraction=values.max_skipped_fraction,
        clips_per_shard=values.clips_per_shard,
        process_id=process_id,
        num_processes=num_processes,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
