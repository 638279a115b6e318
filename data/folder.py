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
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data import builder
from data import metadata as metadata_lib
from data.metadata import Entry, Skipped
from fasttta_jax import audio as audio_lib

SHOWN_PER_REASON = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides, with the table and the files, what the dataset holds; see `build`."""

    sample_rate: int
    min_seconds: float
    max_seconds: float
    validation_fraction: float
    test_fraction: float
    seed: int
    level: bool
    with_captions: bool

    def __post_init__(self) -> None:
        evaluation = self.validation_fraction + self.test_fraction
        for field, valid, allowed in (
            ("sample_rate", self.sample_rate >= 1000, "at least 1000 Hz"),
            ("min_seconds", self.min_seconds > 0, "above 0"),
            ("max_seconds", self.max_seconds >= 2 * self.min_seconds, "at least 2 min_seconds"),
            ("validation_fraction", self.validation_fraction >= 0, "at least 0"),
            ("test_fraction", self.test_fraction >= 0, "at least 0"),
            ("test_fraction", evaluation < 1, "below 1 together with validation_fraction"),
        ):
            if not valid:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed: {allowed}")


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
      metadata: the table (`data.metadata`); looked for in `audio_dir` when None.
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
    settings = Settings(
        sample_rate=sample_rate,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        level=level,
        with_captions=with_captions,
    )
    audio_dir = pathlib.Path(audio_dir)
    table = _table(audio_dir, metadata, with_captions)
    if table is None:
        entries, left_out = metadata_lib.find_audio(audio_dir), []
    else:
        entries, left_out = metadata_lib.read(table, audio_dir, with_captions=with_captions)
    made_from = {
        **dataclasses.asdict(settings),
        "metadata_sha256": hashlib.sha256(table.read_bytes()).hexdigest() if table else None,
        "files_sha256": _sizes_sha256(entries, audio_dir),
    }
    folder = pathlib.Path(out) / name / "1.0.0"
    if folder.exists():
        _check_same(folder, made_from)
        print(f"{folder} is already there, made from the same files and settings; nothing to do")
        return folder

    members: dict[str, list[Entry]] = {split: [] for split in builder.SPLITS}
    for entry in entries:
        members[entry.split or assign_split(entry.file, settings)].append(entry)
    skipped: list[Skipped] = []

    def clips(split: str) -> Iterator[builder.Clip]:
        num_clips = 0
        results = _ordered_map(
            lambda entry: _pieces(entry, audio_dir, settings), members[split], workers
        )
        with tqdm.tqdm(desc=split, total=len(members[split]), unit="file") as progress:
            for entry, result in zip(members[split], results, strict=True):
                progress.update()
                if isinstance(result, Skipped):
                    skipped.append(result)
                    progress.set_postfix(skipped=len(skipped))
                    continue
                for clip in _clips(entry, result):
                    if audio_lib.is_silent(clip.audio):
                        left_out.append(Skipped(clip.id, "silent piece", "of a longer file"))
                    else:
                        num_clips += 1
                        yield clip
        if not num_clips:
            raise ValueError(
                f"split {split!r} is left without a clip: none of its {len(members[split])} files "
                f"can be used\n{report(skipped, left_out)}"
            )

    def finish(folder: pathlib.Path) -> Mapping[str, Any]:
        if len(skipped) > max_skipped_fraction * len(entries):
            raise ValueError(
                f"{len(skipped)} of {len(entries)} files cannot be used, but max_skipped_fraction "
                f"is {max_skipped_fraction:g}; mend {table or 'the files'}, or raise the limit\n"
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
        splits={split: lambda split=split: clips(split) for split in members if members[split]},
        metadata={"made_from": made_from},
        finish=finish,
    )
    print(f"{folder}: made from {len(entries) - len(skipped)} of {len(entries)} files")
    print(report(skipped, left_out), end="")
    return folder


def assign_split(file: str, settings: Settings) -> str:
    """The split of a file: a hash of seed and name, uniform in [0, 1), against the fractions."""
    digest = hashlib.sha256(f"{settings.seed}\n{file}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < settings.test_fraction:
        return "test"
    if position < settings.test_fraction + settings.validation_fraction:
        return "validation"
    return "train"


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


def _table(
    audio_dir: pathlib.Path, metadata: str | os.PathLike[str] | None, with_captions: bool
) -> pathlib.Path | None:
    """The table that is asked for or found; None where none is needed and none is there."""
    if metadata is not None:
        return pathlib.Path(metadata)
    if not with_captions and not any((audio_dir / name).is_file() for name in metadata_lib.NAMES):
        return None
    return metadata_lib.find(audio_dir)


def _pieces(
    entry: Entry, audio_dir: pathlib.Path, settings: Settings
) -> Sequence[np.ndarray] | Skipped:
    """The waveform of a file, decoded, levelled and cut, or why there is none."""
    if settings.with_captions and not entry.captions:
        return Skipped(
            entry.file, "no caption", f"all of its captions are blank, line {entry.line}"
        )
    try:
        audio = audio_lib.read_audio(audio_dir / entry.file, settings.sample_rate)
    except audio_lib.AudioError as error:
        return Skipped(entry.file, error.reason, error.detail)
    seconds = audio.size / settings.sample_rate
    if seconds < settings.min_seconds:
        detail = f"{seconds:g} s, and min_seconds is {settings.min_seconds:g}"
        return Skipped(entry.file, "too short", detail)
    if settings.level:
        audio = audio_lib.level(audio)
    else:
        audio = audio_lib.playback_level(audio, rms_dbfs=None, peak_dbfs=0.0)
    return np.array_split(audio, math.ceil(seconds / settings.max_seconds))


def _clips(entry: Entry, pieces: Sequence[np.ndarray]) -> Iterator[builder.Clip]:
    labels: dict[str, Any] = {"columns": entry.columns}
    if entry.events:
        labels["events"] = entry.events
    for index, piece in enumerate(pieces):
        clip_id = entry.file if len(pieces) == 1 else f"{entry.file}#{index}"
        yield builder.Clip(id=clip_id, audio=piece, captions=entry.captions, labels=labels)


def _ordered_map(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Results in the order of `items`; few are computed ahead, so that memory stays bounded."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _sizes_sha256(entries: Iterable[Entry], audio_dir: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        path = audio_dir / entry.file
        size = os.path.getsize(path) if os.path.isfile(path) else None
        digest.update(f"{entry.file}\n{size}\n".encode())
    return digest.hexdigest()


def _check_same(folder: pathlib.Path, made_from: Mapping[str, Any]) -> None:
    metadata = tfds.builder_from_directory(str(folder)).info.metadata or {}
    known = metadata.get("made_from", {})
    different = [
        f"{field} is {known.get(field)!r} there and {value!r} here"
        for field, value in made_from.items()
        if known.get(field) != value
    ]
    if different:
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
