"""Audio that any public manifest lists as a dataset: CSV, TSV, JSON Lines, JSON or parquet.

    python -m data.manifest --manifest train=train.json --manifest test=test.json \\
        --audio_dir audio --out datasets --name theirs
    python -m data.manifest --manifest "train=hub/train-*.parquet" --audio_dir hub \\
        --out datasets --name theirs

A row is a clip, or a caption of one. The columns may have the names that are common in the field:

    file       file, file_name, filename, path, audio, audio_path, location or wav; else id or name.
               A name without an audio suffix is looked up among the files. A column of parquet
               that embeds files, as on the Hub, is read where it lies
    caption    ori_cap; else caption, captions or text; else caption_1, caption_2, ...
    split      train, validation or test; --manifest SPLIT=FILE says it for all of a file
    start      optional: seconds into the file where the clip begins, with its duration

or others, which --path_column and the like name. So the manifests of AudioLDM-training ({"data":
[{wav, caption}]}), Tango (JSON Lines of location, captions), SoundCTM (file_name, caption),
AudioLCM (name, dataset, ori_cap, caption, audio_path) and MeanAudio (id, caption) can be taken as
they are. Rows that name the same clip add captions to it. Files may also lie in zip archives:
"archive.zip::folder/a.flac". Where the table's names begin with a folder of another machine, give
it as --path_prefix.

Splits, levels, pieces, skipped files and shards are as in `data.folder`. A clip that reaches past
the end of its file is cut there and counted.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from data.common import tables
from data.common.arguments import split_files
from data.common.audio_files import AudioFiles
from data.common.making import (
    define_caption_flag,
    define_making_flags,
    define_origin_flags,
    make_dataset,
    making_options,
)
from data.common.provenance import Provenance
from data.common.recordings import Files, Settings
from data.common.tables import MANIFEST, Columns, Entry
from fasttta_jax import cli
from fasttta_jax.audio.files import SUFFIXES


def build(
    manifests: Mapping[pathlib.Path, str | None],
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    columns: Columns = MANIFEST,
    path_prefix: str = "",
    description: str = "Audio files of a manifest.",
    **options: Any,
) -> pathlib.Path:
    """Makes the dataset `out/name/1.0.0` of what tables list, and returns that folder.

    Args:
      manifests: the tables, and the split of each; None where a column says it, or a hash is to.
      audio_dir: folder of the audio files.
      out: parent folder of the dataset.
      columns: what the columns are called.
      path_prefix: what file names begin with in the tables and not in the folder.
      description: what the clips are and where they come from.
      options: further arguments of `data.common.making.make_dataset`, `name` among them.

    Raises:
      ValueError, OSError: as `make_dataset` says.
    """
    return make_dataset(
        lambda settings: list_files(
            manifests, audio_dir, settings, columns=columns, path_prefix=path_prefix
        ),
        out,
        description=description,
        **options,
    )


def list_files(
    manifests: Mapping[pathlib.Path, str | None],
    audio_dir: str | os.PathLike[str],
    settings: Settings,
    *,
    columns: Columns = MANIFEST,
    path_prefix: str = "",
) -> Files:
    """The clips that tables list, nothing decoded yet; arguments and errors are as in `build`."""
    audio = AudioFiles(audio_dir)
    entries, left_out = tables.read(
        manifests,
        audio.folder,
        with_captions=settings.with_captions,
        columns=columns,
        path_prefix=path_prefix,
    )
    entries = [_with_suffix(entry, audio) for entry in entries]
    return Files.of(audio, entries, left_out, settings, table=next(iter(manifests)))


def _with_suffix(entry: Entry, audio: AudioFiles) -> Entry:
    """The entry with the file that is meant where its name has no suffix."""
    if entry.file.lower().endswith(SUFFIXES) or audio.size(entry.file) is not None:
        return entry
    stem = entry.file.rpartition("/")[2]
    return dataclasses.replace(entry, file=audio.find(stem) or entry.file, name=entry.id)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def text(name: str, default: str | None, help: str, required: bool = False) -> None:
        flags.DEFINE_string(name, default, help, required=required, flag_values=values)

    flags.DEFINE_multi_string(
        "manifest",
        None,
        "FILE or SPLIT=FILE: a table (.csv, .tsv, .jsonl, .json, .parquet) or a pattern of names; "
        "give it once for each.",
        required=True,
        flag_values=values,
    )
    text("audio_dir", None, "Folder that the names of the audio files begin in.", required=True)
    text("path_column", None, "Column of the audio file.")
    text("caption_column", None, "Column of a caption, or of a list of them.")
    text("split_column", "split", "Column of the split.")
    text("start_column", "start", "Column of the seconds into the file where a clip begins.")
    text("duration_column", "duration", "Column of the seconds that such a clip lasts.")
    text("path_prefix", "", "What names begin with in the table and not below --audio_dir.")
    define_caption_flag(values)
    define_origin_flags(values)
    define_making_flags(values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    columns = dataclasses.replace(
        MANIFEST,
        file=((values.path_column,),) if values.path_column else MANIFEST.file,
        caption=((values.caption_column,),) if values.caption_column else MANIFEST.caption,
        split=values.split_column,
        start=values.start_column,
        duration=values.duration_column,
    )
    build(
        split_files("manifest", values.manifest),
        values.audio_dir,
        values.out,
        columns=columns,
        path_prefix=values.path_prefix,
        with_captions=not values.without_captions,
        origin=Provenance(values.source, values.licence),
        **making_options(),
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
