"""AudioSet, or what one has of it: its published segments, and a folder of audio. No captions.

    python -m data.audioset --segments unbalanced_train_segments.csv \\
        --segments balanced_train_segments.csv --segments eval_segments.csv \\
        --class_labels class_labels_indices.csv --audio_dir audio --out datasets

The segments of evaluation become the test split. Of the others a hash of the clip's name puts
--validation_fraction into validation, and the rest is for training; --segments SPLIT=FILE says
otherwise. A clip is called "YOUTUBE-ID_START". The names of its classes, or their machine ids
("/m/09x0r") without --class_labels, are its events.

Files are found as `data.audiocaps` finds them, and what is missing is counted in the same way.

Source: J. F. Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events",
ICASSP 2017.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from data.common import youtube
from data.common.arguments import split_files
from data.common.audio_files import AudioFiles
from data.common.making import define_making_flags, make_dataset, making_options
from data.common.provenance import Provenance
from data.common.recordings import Files, Settings, assign_split
from data.common.tables import Entry, Skipped
from fasttta_jax import cli
from fasttta_jax.storage.rows import read_rows, require

COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
LABEL_COLUMNS = ("index", "mid", "display_name")
ORIGIN = Provenance(
    source="AudioSet (J. F. Gemmeke et al., ICASSP 2017), https://research.google.com/audioset",
    licence="labels CC BY 4.0; audio under the terms of its owners on YouTube",
)


def build(
    segments: Mapping[pathlib.Path, str | None],
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    class_labels: str | os.PathLike[str] | None = None,
    recordings: bool = False,
    name: str = "audioset",
    **options: Any,
) -> pathlib.Path:
    """Makes the dataset `out/name/1.0.0` of the clips that are there, and returns that folder.

    Args:
      segments: the files of segments, and the split of each; None where its name decides.
      audio_dir: folder of the audio.
      out: parent folder of the dataset.
      class_labels: the file of the names of classes.
      recordings: files are whole videos.
      name: of the dataset.
      options: further arguments of `data.common.making.make_dataset`.

    Raises:
      ValueError, OSError: as `make_dataset` says.
    """
    return make_dataset(
        lambda settings: list_files(
            segments, audio_dir, settings, class_labels=class_labels, recordings=recordings
        ),
        out,
        name=name,
        description="AudioSet (Gemmeke et al. 2017): clips of videos with labels of events.",
        origin=ORIGIN,
        is_published=True,
        with_captions=False,
        **options,
    )


def list_files(
    segments: Mapping[pathlib.Path, str | None],
    audio_dir: str | os.PathLike[str],
    settings: Settings,
    *,
    class_labels: str | os.PathLike[str] | None = None,
    recordings: bool = False,
) -> Files:
    """The clips of the segments, nothing decoded yet; arguments and errors are as in `build`."""
    audio = AudioFiles(audio_dir)
    names = _class_names(pathlib.Path(class_labels)) if class_labels is not None else None
    of_training = dataclasses.replace(settings, test_fraction=0.0)
    entries: dict[str, Entry] = {}
    left_out: list[Skipped] = []
    for path, said in segments.items():
        is_evaluation = path.name.startswith("eval")
        for line, (youtube_id, start, end, labels) in _rows(path):
            name = youtube.clip_name(youtube_id, start)
            split = said or ("test" if is_evaluation else assign_split(name, of_training))
            known = entries.get(name)
            if known is not None:
                if known.split != split:
                    raise ValueError(
                        f"{path}:{line}: {name} is for {split}, but its line {known.line} in "
                        f"another file is for {known.split}"
                    )
                left_out.append(Skipped(name, "repeated segment", f"{path}:{line}"))
                continue
            if names is not None and (unknown := [mid for mid in labels if mid not in names]):
                raise ValueError(f"{path}:{line}: {unknown[0]!r} is not in {class_labels}")
            entry = Entry("", line, split, name=name)
            entry.events = [names[mid] for mid in labels] if names is not None else labels
            entry.columns = {"youtube_id": youtube_id, "start_seconds": start, "end_seconds": end}
            entry.columns["positive_labels"] = labels
            youtube.locate(entry, audio, youtube_id, start, end, recordings=recordings)
            entries[name] = entry
    return Files.of(audio, list(entries.values()), left_out, settings, table=next(iter(segments)))


def _rows(path: pathlib.Path) -> Iterator[tuple[int, tuple[str, float, float, list[str]]]]:
    """Line, and id, start, end and labels; comments begin with "#".

    Raises:
      ValueError: a line is malformed, or there is none.
    """
    is_empty = True
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            for row in reader:
                if not row or row[0].startswith("#") or row[0] == COLUMNS[0]:
                    continue
                yield reader.line_num, _segment(f"{path}:{reader.line_num}", row)
                is_empty = False
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: malformed CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not UTF-8 text: {error}") from error
    if is_empty:
        raise ValueError(f"{path}: has no segments")


def _segment(where: str, row: list[str]) -> tuple[str, float, float, list[str]]:
    try:
        youtube_id, first, last, labels = row
        start, end = float(first), float(last)
    except ValueError as error:
        raise ValueError(f"{where}: is {row}; allowed: {', '.join(COLUMNS)}") from error
    if not 0 <= start < end < math.inf:
        raise ValueError(f"{where}: is from {start:g} to {end:g} s; allowed: a start before an end")
    return youtube_id, start, end, labels.split(",")


def _class_names(path: pathlib.Path) -> dict[str, str]:
    """Names of classes by machine id."""
    rows = read_rows(path, require(LABEL_COLUMNS), formats=[".csv"])
    return {row["mid"]: row["display_name"] for _, row in rows}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_multi_string(
        "segments",
        None,
        "FILE or SPLIT=FILE: published segments; give it once for each file.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "audio_dir", None, "Folder of the audio.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "class_labels", None, "class_labels_indices.csv: the names of classes.", flag_values=values
    )
    youtube.define_recordings_flag(values)
    define_making_flags(values, name="audioset")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    build(
        split_files("segments", values.segments),
        values.audio_dir,
        values.out,
        class_labels=values.class_labels,
        recordings=values.recordings,
        **making_options(),
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
