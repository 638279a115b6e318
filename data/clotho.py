"""Clotho v2.1: recordings of 15 to 30 seconds with five captions each.

    python -m data.clotho --clotho_dir clotho --out datasets

--clotho_dir holds what the record on Zenodo has, unpacked: clotho_captions_SPLIT.csv (file_name,
caption_1 to caption_5) and the audio in a folder named for the split, for the splits development,
validation and evaluation, which are for training, validation and test. Where
clotho_metadata_SPLIT.csv is there, its columns are kept: keywords, the sound on Freesound and its
licence, which the dataset's metadata counts. A clip is called by its file.

Source: K. Drossos, S. Lipping, T. Virtanen, "Clotho: an Audio Captioning Dataset", ICASSP 2020;
zenodo.org/records/4783391.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import flags

from data.common import tables
from data.common.audio_files import AudioFiles, stem
from data.common.making import define_making_flags, make_dataset, making_options
from data.common.provenance import Provenance
from data.common.recordings import Files, Settings
from fasttta_jax import cli
from fasttta_jax.storage.files import files_below
from fasttta_jax.storage.rows import Check, Found, csv_rows

SPLITS = {"development": "train", "validation": "validation", "evaluation": "test"}
COLUMNS = tables.Columns(file=(("file_name",),), formats=(".csv",))
ORIGIN = Provenance(
    source="Clotho v2.1 (K. Drossos et al., ICASSP 2020), https://zenodo.org/records/4783391",
    licence="captions for non-commercial use (Tampere University); audio by clip, of Freesound",
)


def build(
    clotho_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str = "clotho",
    **options: Any,
) -> pathlib.Path:
    """Makes the dataset `out/name/1.0.0` of the clips that are there, and returns that folder.

    Args:
      clotho_dir: folder of captions, metadata and audio.
      out: parent folder of the dataset.
      name: of the dataset.
      options: further arguments of `data.common.making.make_dataset`.

    Raises:
      ValueError, OSError: as `make_dataset` says; or there are no captions.
    """
    return make_dataset(
        lambda settings: list_files(clotho_dir, settings),
        out,
        name=name,
        description="Clotho v2.1 (Drossos et al. 2020): sounds of Freesound with five captions.",
        origin=ORIGIN,
        is_published=True,
        **options,
    )


def list_files(clotho_dir: str | os.PathLike[str], settings: Settings) -> Files:
    """The clips with captions, nothing decoded yet; arguments and errors are as in `build`."""
    folder = pathlib.Path(clotho_dir)
    audio = AudioFiles(folder)
    captions = {
        path: split
        for published, split in SPLITS.items()
        for path in files_below(folder)
        if path.name == f"clotho_captions_{published}.csv"
    }
    if not captions:
        raise FileNotFoundError(
            f"{folder}: holds no clotho_captions_SPLIT.csv; SPLIT is one of {', '.join(SPLITS)}"
        )
    entries, left_out = tables.read(
        captions, folder, with_captions=settings.with_captions, columns=COLUMNS
    )
    published = {split: name for name, split in SPLITS.items()}
    said = {split: _metadata(folder, name) for name, split in SPLITS.items()}
    for entry in entries:
        assert entry.split is not None
        entry.name = entry.file
        entry.columns |= said[entry.split].get(entry.file, {})
        within = f"{published[entry.split]}/"
        entry.file = audio.find(stem(entry.file), within=within) or within + entry.file
    return Files.of(audio, entries, left_out, settings, table=next(iter(captions)))


def _metadata(folder: pathlib.Path, published: str) -> dict[str, dict[str, Any]]:
    """Further columns of a split by file name."""
    named = f"clotho_metadata_{published}.csv"
    found = {path: SPLITS[published] for path in files_below(folder) if path.name == named}
    entries, _ = tables.read(
        found, folder, with_captions=False, columns=COLUMNS, readers={".csv": _as_published}
    )
    return {
        entry.file: {column: value for column, value in entry.columns.items() if value}
        for entry in entries
    }


def _as_published(table: pathlib.Path, check: Check) -> Iterator[Found]:
    """Rows of a table that is in UTF-8, or in Windows-1252 as some of the published ones are."""
    try:
        table.read_bytes().decode()
    except UnicodeDecodeError:
        yield from csv_rows(table, check, encoding="cp1252")
    else:
        yield from csv_rows(table, check)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_string(
        "clotho_dir",
        None,
        "Folder of captions, metadata and audio.",
        required=True,
        flag_values=values,
    )
    define_making_flags(values, name="clotho")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    build(values.clotho_dir, values.out, **making_options())


if __name__ == "__main__":
    define_flags()
    cli.run(main)
