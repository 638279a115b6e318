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

`data.manifest` takes tables of other formats and columns, and parts of files.

The work is cut into shards (`data.common.shards`): start the same command again after a kill, and
only what is missing is done. Processes that share a file system run it with --num_processes and
their own --process_id; whichever ends last completes the dataset.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from absl import flags

from data.common.making import (
    define_caption_flag,
    define_making_flags,
    define_origin_flags,
    make_dataset,
    making_options,
)
from data.common.provenance import Provenance
from data.common.recordings import find_files
from fasttta_jax import cli


def build(
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    metadata: str | os.PathLike[str] | None = None,
    description: str = "Audio files of a folder.",
    **options: Any,
) -> pathlib.Path:
    """Turns a folder into a dataset under `out/name/1.0.0` and returns that folder.

    Args:
      audio_dir: folder of the audio files.
      out: parent folder of the dataset.
      metadata: the table (`data.common.tables`); looked for in `audio_dir` when None. Without
        captions none need be there, and all audio below `audio_dir` is taken.
      description: what the clips are and where they come from.
      options: further arguments of `data.common.making.make_dataset`, `name` among them.

    Raises:
      ValueError, OSError: as `make_dataset` says.
    """
    return make_dataset(
        lambda settings: find_files(audio_dir, settings, metadata=metadata),
        out,
        description=description,
        **options,
    )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_string(
        "audio_dir", None, "Folder of the audio files.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "metadata",
        None,
        "The table (default: metadata.csv or .jsonl in --audio_dir, or none for "
        "--without_captions).",
        flag_values=values,
    )
    define_caption_flag(values)
    define_origin_flags(values)
    define_making_flags(values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    build(
        values.audio_dir,
        values.out,
        metadata=values.metadata,
        with_captions=not values.without_captions,
        origin=Provenance(values.source, values.licence),
        **making_options(),
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
