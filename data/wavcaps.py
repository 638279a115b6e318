"""WavCaps, or what one has of it: its four lists, its blacklists, and FLAC files or zip archives.

    python -m data.wavcaps --wavcaps_dir WavCaps --out datasets
    python -m data.wavcaps --wavcaps_dir WavCaps --subset SoundBible --subset AudioSet_SL \\
        --blacklist test_ac --out datasets

--wavcaps_dir is the repository of the Hub, cvssp/WavCaps, or a part of it: as_final.json,
bbc_final.json, fsd_final.json and sb_final.json anywhere below it, and the audio of each in a
folder or a zip archive whose path names its source (AudioSet_SL, BBC_Sound_Effects, FreeSound,
SoundBible). Archives are read as they are; those in parts (.z01, ...) must be joined first. A clip
is called "SOURCE/ID".

Clips that the blacklists name are left out and counted: "all_ac" has all sounds of AudioCaps and
Clotho, "test_ac" those that they validate and test on, "ub8k_esc50_vggsound" those of three other
data sets. Give --blacklist for each that is to hold, or --blacklist none; "all_ac" holds by
default, so that the clips can be mixed with AudioCaps and evaluated on it. Ids count as the same
with and without a suffix and AudioSet's leading "Y".

Long clips are cut into pieces of at most --max_seconds. What is missing is counted, listed in
skipped.jsonl, and does not count towards --max_skipped_fraction.

Source: X. Mei et al., "WavCaps: A ChatGPT-Assisted Weakly-Labelled Audio Captioning Dataset for
Audio-Language Multimodal Research", 2023, arXiv:2303.17395.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from data.common import tables
from data.common.audio_files import AudioFiles, stem
from data.common.making import define_making_flags, make_dataset, making_options
from data.common.provenance import Provenance
from data.common.recordings import Files, Settings
from data.common.tables import Entry, Skipped
from fasttta_jax import cli
from fasttta_jax.storage.files import files_below

LISTS = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
BLACKLISTS = ("all_ac", "test_ac", "ub8k_esc50_vggsound")
NONE = "none"
BLACKLIST_KEYS = {"AudioSet_SL": "AudioSet", "FreeSound": "FreeSound"}
"""What a blacklist calls the sources that it has ids of."""
COLUMNS = tables.Columns(file=(("id",),), formats=(".json",))
DROPPED = ("audio", "description")
"""Columns that are not kept: a path of another machine, and the text that captions were made of."""
YOUTUBE_ID = 11
ORIGIN = Provenance(
    source="WavCaps (X. Mei et al., 2023), https://huggingface.co/datasets/cvssp/WavCaps",
    licence="academic use only; audio under the terms of its sources",
)


def build(
    wavcaps_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    subsets: Sequence[str] = (),
    blacklists: Sequence[str] = ("all_ac",),
    name: str = "wavcaps",
    **options: Any,
) -> pathlib.Path:
    """Makes the dataset `out/name/1.0.0` of the clips that are there, and returns that folder.

    Args:
      wavcaps_dir: folder of the lists, blacklists and audio.
      out: parent folder of the dataset.
      subsets: sources of `LISTS` to take; those whose list is there when empty.
      blacklists: names of `BLACKLISTS` whose clips are left out.
      name: of the dataset.
      options: further arguments of `data.common.making.make_dataset`.

    Raises:
      ValueError, OSError: as `make_dataset` says; or a list or blacklist is not there once.
    """
    return make_dataset(
        lambda settings: list_files(wavcaps_dir, settings, subsets=subsets, blacklists=blacklists),
        out,
        name=name,
        description="WavCaps (Mei et al. 2023): sounds with captions by a language model.",
        origin=ORIGIN,
        is_published=True,
        **options,
    )


def list_files(
    wavcaps_dir: str | os.PathLike[str],
    settings: Settings,
    *,
    subsets: Sequence[str] = (),
    blacklists: Sequence[str] = ("all_ac",),
) -> Files:
    """The clips of the lists, nothing decoded yet; arguments and errors are as in `build`."""
    folder = pathlib.Path(wavcaps_dir)
    audio = AudioFiles(folder)
    for field, given, allowed in (
        ("subset", subsets, tuple(LISTS)),
        ("blacklist", blacklists, BLACKLISTS),
    ):
        if unknown := [name for name in given if name not in allowed]:
            raise ValueError(f"{field} is {unknown[0]!r}; allowed: {', '.join(allowed)}")
    names = {path.name for path in files_below(folder)}
    present = [source for source, name in LISTS.items() if name in names]
    lists = {source: _only(folder, LISTS[source]) for source in subsets or present}
    if not lists:
        raise FileNotFoundError(f"{folder}: holds none of {', '.join(LISTS.values())}")
    banned = {name: _blacklist(folder, name) for name in blacklists}
    entries: list[Entry] = []
    left_out: list[Skipped] = []
    for source, path in lists.items():
        found, repeated = tables.read(
            path, folder, with_captions=settings.with_captions, columns=COLUMNS
        )
        names = {entry.id: f"{source}/{stem(entry.file)}" for entry in found}
        left_out += [Skipped(names[item.file], item.reason, item.detail) for item in repeated]
        for entry in found:
            bare = _bare(source, entry.file)
            entry.name = names[entry.id]
            if by := [name for name, ids in banned.items() if bare in ids.get(source, ())]:
                left_out.append(Skipped(entry.name, "blacklisted", ", ".join(by)))
                continue
            stems = [bare, f"Y{bare}"] if source == "AudioSet_SL" else [bare]
            entry.file = audio.find(*stems, within=source) or f"{entry.name}.flac"
            kept = {name: said for name, said in entry.columns.items() if name not in DROPPED}
            entry.columns = {"source": source, **kept}
            entries.append(entry)
    return Files.of(audio, entries, left_out, settings, table=folder)


def _bare(source: str, clip_id: str) -> str:
    """An id without suffix and, for AudioSet, without the "Y" before the id of the video."""
    bare = stem(clip_id)
    if source == "AudioSet_SL" and len(bare) == 1 + YOUTUBE_ID:
        return bare.removeprefix("Y")
    return bare


def _blacklist(folder: pathlib.Path, name: str) -> dict[str, set[str]]:
    """The bare ids that a blacklist has of each source."""
    path = _only(folder, f"blacklist_exclude_{name}.json")
    try:
        found = json.loads(path.read_text("utf-8-sig"))
        return {
            source: {_bare(source, str(clip_id)) for clip_id in found.get(key, ())}
            for source, key in BLACKLIST_KEYS.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is not a blacklist: {error}; allowed: lists of ids by "
            f"{' and '.join(BLACKLIST_KEYS.values())}"
        ) from error


def _only(folder: pathlib.Path, name: str) -> pathlib.Path:
    found = [path for path in files_below(folder) if path.name == name]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise FileNotFoundError(f"{folder} must hold one {name}; found: {listed}")
    return found[0]


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_string(
        "wavcaps_dir",
        None,
        "Folder of the lists, the blacklists and the audio.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_multi_enum(
        "subset",
        [],
        list(LISTS),
        "Source to take; give it once for each (default: those whose list is there).",
        flag_values=values,
    )
    flags.DEFINE_multi_enum(
        "blacklist",
        ["all_ac"],
        [*BLACKLISTS, NONE],
        "Blacklist whose clips are left out; give it once for each.",
        flag_values=values,
    )
    define_making_flags(values, name="wavcaps")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    build(
        values.wavcaps_dir,
        values.out,
        subsets=values.subset,
        blacklists=[name for name in values.blacklist if name != NONE],
        **making_options(),
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
