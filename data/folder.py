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
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from data.common import recordings
from data.common import records as builder
from data.common.tables import Skipped
from fasttta_jax.storage.files import differences

SHOWN_PER_REASON = 20


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
    workers: int = 2,
    level: bool = True,
    with_captions: bool = True,
    max_skipped_fraction: float = 0.1,
    description: str = "Audio files of a folder.",
) -> pathlib.Path:
    """Turns a folder into a dataset under `out/name/1.0.0` and returns that folder.

    A dataset that is already there is kept if the settings, the table, and the names and sizes of
    the audio files are those it was made from.

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
      description: what the clips are and where they come from.

    Raises:
      ValueError: the settings or the table are wrong, too many files cannot be used, a split is
        left without a clip, or another dataset is already there. No dataset is left behind.
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
    folder = pathlib.Path(out) / name / "1.0.0"
    if folder.exists():
        _check_same(folder, files.made_from)
        print(f"{folder} is already there, made from the same files and settings; nothing to do")
        return folder

    num_files = sum(map(len, files.members.values()))
    skipped: list[Skipped] = []
    left_out = list(files.left_out)

    def clips(split: str) -> Iterator[builder.Clip]:
        num_clips = 0
        entries = files.members[split]
        results = recordings.ordered_map(
            lambda entry: recordings.read_clips(entry, files.audio_dir, settings), entries, workers
        )
        with tqdm.tqdm(desc=split, total=len(entries), unit="file") as progress:
            for entry, result in zip(entries, results, strict=True):
                progress.update()
                for item in result:
                    if isinstance(item, builder.Clip):
                        num_clips += 1
                        yield item
                    else:
                        (skipped if item.file == entry.file else left_out).append(item)
                progress.set_postfix(skipped=len(skipped))
        if not num_clips:
            raise ValueError(
                f"split {split!r} is left without a clip: none of its {len(entries)} files "
                f"can be used\n{report(skipped, left_out)}"
            )

    def finish(folder: pathlib.Path) -> Mapping[str, Any]:
        if len(skipped) > max_skipped_fraction * num_files:
            raise ValueError(
                f"{len(skipped)} of {num_files} files cannot be used, but max_skipped_fraction "
                f"is {max_skipped_fraction:g}; mend {files.table or 'the files'}, or raise the "
                "limit\n"
                f"{report(skipped, left_out)}"
            )
        with open(folder / "skipped.jsonl", "w", encoding="utf-8") as file:
            for item in (*skipped, *left_out):
                file.write(json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n")
        return {
            "skipped_files": dict(collections.Counter(item.reason for item in skipped)),
            "left_out": dict(collections.Counter(item.reason for item in left_out)),
        }

    builder.write_dataset(
        out,
        name=name,
        description=description,
        sample_rate=sample_rate,
        splits={split: lambda split=split: clips(split) for split in files.members},
        metadata={"made_from": files.made_from},
        finish=finish,
    )
    print(f"{folder}: made from {num_files - len(skipped)} of {num_files} files")
    print(report(skipped, left_out), end="")
    return folder


def report(skipped: Sequence[Skipped], left_out: Sequence[Skipped]) -> str:
    """Reasons, counts and names as a table; an empty string if there is nothing to say."""
    lines = []
    for title, items in (
        ("skipped files", skipped),
        ("captions and pieces left out", left_out),
    ):
        by_reason: dict[str, list[Skipped]] = {}
        for item in items:
            by_reason.setdefault(item.reason, []).append(item)
        if items:
            lines.append(f"{title}: {len(items)}")
        for reason, group in sorted(by_reason.items()):
            lines.append(f"  {reason}: {len(group)}")
            lines += [f"    {item.file}: {item.detail}" for item in group[:SHOWN_PER_REASON]]
            if len(group) > SHOWN_PER_REASON:
                lines.append(f"    and {len(group) - SHOWN_PER_REASON} more")
    return "".join(line + "\n" for line in lines)


def _check_same(folder: pathlib.Path, made_from: Mapping[str, Any]) -> None:
    metadata = tfds.builder_from_directory(str(folder)).info.metadata or {}
    known = metadata.get("made_from", {})
    if different := differences(known, made_from):
        raise ValueError(
            f"{folder} is already there but differs: {'; '.join(different)}. "
            "Choose another name, or delete that folder"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m data.folder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--audio_dir", required=True, help="folder of the audio files")
    add("--metadata", help="the table (default: metadata.csv or metadata.jsonl in --audio_dir)")
    add("--out", required=True, help="parent folder; the dataset is made at OUT/NAME/1.0.0")
    add("--name", required=True, help="dataset name in snake case, such as my_sounds")
    add("--sample_rate", type=int, default=16_000, help="Hz, after resampling (%(default)s)")
    add("--min_seconds", type=float, default=0.1, help="skip shorter files (%(default)s)")
    add("--max_seconds", type=float, default=60.0, help="cut longer files (%(default)s)")
    add("--validation_fraction", type=float, default=0.05, help="without splits (%(default)s)")
    add("--test_fraction", type=float, default=0.05, help="without splits (%(default)s)")
    add("--seed", type=int, default=0, help="of the assignment to splits (%(default)s)")
    add("--workers", type=int, default=2, help="decoding threads; change no result (%(default)s)")
    add(
        "--level",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="remove the mean and scale the peak to 0.5; --no-level keeps the levels of the files",
    )
    add(
        "--without_captions",
        dest="with_captions",
        action="store_false",
        help="keep no captions; all audio below --audio_dir where there is no table",
    )
    add(
        "--max_skipped_fraction",
        type=float,
        default=0.1,
        help="make nothing if a larger share of the files cannot be used (%(default)s)",
    )
    tfds.disable_progress_bar()  # it knows no totals; the bars here do
    try:
        build(**vars(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
