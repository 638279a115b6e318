"""AudioCaps, or what one has of it: its published lists, and a folder of audio.

    python -m data.audiocaps --list train.csv --list val.csv --list test.csv \\
        --audio_dir audio --out datasets
    python -m data.audiocaps --list "data/train-*.parquet" --list "data/validation-*.parquet" \\
        --list "data/test-*.parquet" --audio_dir data --out datasets

A list is a CSV with the columns audiocap_id, youtube_id, start_time and caption, of AudioCaps or of
AudioCaps 2.0, or parquet of the Hub with the same columns and the audio embedded (OpenSound's,
jp1924's). Its name begins with the split, or --list SPLIT=FILE says it. Rows of one clip, such as
the five captions of the validation and test clips, are gathered; a clip is called
"YOUTUBE-ID_START".

The audio is not distributed. Files may be called by the id of the video (as it is, with "Y" before
it, with start or start and end behind it) or by an audiocap_id, with any suffix, in any folder or
zip archive below --audio_dir; they hold the ten seconds, or with --recordings the whole video. What
is missing is counted, listed in skipped.jsonl, and does not count towards --max_skipped_fraction.

Source: C. D. Kim et al., "AudioCaps: Generating Captions for Audios in The Wild", NAACL 2019.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from data.common import tables, youtube
from data.common.arguments import split_files, split_of_name
from data.common.audio_files import AudioFiles
from data.common.making import (
    define_caption_flag,
    define_making_flags,
    make_dataset,
    making_options,
)
from data.common.provenance import Provenance
from data.common.recordings import Files, Settings
from fasttta_jax import cli

COLUMNS = tables.Columns(
    file=(("youtube_id",),),
    caption=(("caption",),),
    start="start_time",
    required=("audiocap_id", "start_time"),
    formats=(".csv", ".parquet"),
)
SECONDS = 10.0
ORIGIN = Provenance(
    source="AudioCaps (C. D. Kim et al., NAACL 2019), https://audiocaps.github.io",
    licence="captions for academic purposes; audio under the terms of its owners on YouTube",
)


def build(
    lists: Mapping[pathlib.Path, str | None],
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recordings: bool = False,
    name: str = "audiocaps",
    **options: Any,
) -> pathlib.Path:
    """Makes the dataset `out/name/1.0.0` of the clips that are there, and returns that folder.

    Args:
      lists: the lists, and the split of each; None where its name says it.
      audio_dir: folder of the audio, or of the parquet files that embed it.
      out: parent folder of the dataset.
      recordings: files are whole videos.
      name: of the dataset.
      options: further arguments of `data.common.making.make_dataset`.

    Raises:
      ValueError, OSError: as `make_dataset` says.
    """
    return make_dataset(
        lambda settings: list_files(lists, audio_dir, settings, recordings=recordings),
        out,
        name=name,
        description="AudioCaps (Kim et al. 2019): clips of AudioSet with captions.",
        origin=ORIGIN,
        is_published=True,
        **options,
    )


def list_files(
    lists: Mapping[pathlib.Path, str | None],
    audio_dir: str | os.PathLike[str],
    settings: Settings,
    *,
    recordings: bool = False,
) -> Files:
    """The clips of the lists, nothing decoded yet; arguments and errors are as in `build`."""
    audio = AudioFiles(audio_dir)
    entries, left_out = tables.read(
        {path: split or split_of_name(path) for path, split in lists.items()},
        audio.folder,
        with_captions=settings.with_captions,
        columns=COLUMNS,
    )
    names = {entry.id: youtube.clip_name(entry.file, entry.start) for entry in entries}
    left_out = [dataclasses.replace(item, file=names[item.file]) for item in left_out]
    for entry in entries:
        youtube_id, start = entry.file, entry.start
        ids = entry.columns["audiocap_id"]
        ids = [str(each) for each in (ids if isinstance(ids, list) else [ids])]
        embedded = entry.columns.get("audio")  # of each caption
        entry.name = youtube.clip_name(youtube_id, start)
        entry.columns = {"youtube_id": youtube_id, "start_time": start, "audiocap_id": ids}
        entry.start = 0.0
        if embedded is not None:
            entry.file = audio.relative(embedded[0] if isinstance(embedded, list) else embedded)
        else:
            end = start + SECONDS
            youtube.locate(entry, audio, youtube_id, start, end, also=ids, recordings=recordings)
    return Files.of(audio, entries, left_out, settings, table=next(iter(lists)))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_multi_string(
        "list",
        None,
        "FILE or SPLIT=FILE: a published list, or parquet files of the Hub by a pattern; give it "
        "once for each split.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "audio_dir",
        None,
        "Folder of the audio, or of the parquet files.",
        required=True,
        flag_values=values,
    )
    youtube.define_recordings_flag(values)
    define_caption_flag(values)
    define_making_flags(values, name="audiocaps")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    build(
        split_files("list", values.list),
        values.audio_dir,
        values.out,
        recordings=values.recordings,
        with_captions=not values.without_captions,
        **making_options(),
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
