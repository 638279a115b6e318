"""ESC-10 as a captioned dataset: ten categories of everyday sounds, five seconds each.

    python -m data.esc10 --esc10_dir datasets/esc10 --out datasets

The recordings come with a category only (metadata.csv: file_name, fold, category, freesound_id; the
audio in audio/). Every clip gets two or three wordings of its category as captions. Folds 1 to 3
are for training. Fold 4 is halved into validation and test, category by category, as evenly as it
goes without parting clips cut from the same Freesound recording. Test captions use wordings that
training never sees.

Source: K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", ACM Multimedia 2015.
The recordings are under Creative Commons licences of their authors, mostly for non-commercial use.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from absl import flags

from data import folder
from data.common.sources import WORKERS
from fasttta_jax import cli
from fasttta_jax.storage.files import write_atomically
from fasttta_jax.storage.rows import read_rows, require

COLUMNS = ("file_name", "fold", "category", "freesound_id")
TRAIN_FOLDS = ("1", "2", "3")
EVALUATION_FOLD = "4"

WORDINGS = {
    "baby_cry": (
        "a baby cries",
        "a baby is crying loudly",
        "an infant is wailing",
        "the crying of a small child",
        "a newborn cries and gasps for breath",
        "a baby crying",
    ),
    "chainsaw": (
        "a chainsaw is running",
        "a chainsaw cuts through wood",
        "a chainsaw revving",
        "the loud buzz of a chainsaw",
        "someone is sawing with a chainsaw",
        "the motor of a chainsaw roars",
    ),
    "clock_tick": (
        "a clock is ticking",
        "a clock ticks steadily",
        "the ticking of a clock",
        "the second hand of a clock ticks",
        "a quiet, regular clock tick",
        "a clock ticking in a quiet room",
    ),
    "dog_bark": (
        "a dog barks",
        "a dog is barking loudly",
        "the bark of a dog",
        "a dog barking",
        "a dog barks a few times",
        "a barking dog",
    ),
    "fire_crackling": (
        "a fire is crackling",
        "a crackling fire",
        "wood crackles and pops in a fire",
        "the crackling of burning wood",
        "flames crackle in a fireplace",
        "a campfire crackling",
    ),
    "helicopter": (
        "a helicopter is flying",
        "a helicopter flies overhead",
        "the rotor of a helicopter is spinning",
        "a helicopter hovering nearby",
        "the steady chop of helicopter blades",
        "a helicopter passes by",
    ),
    "person_sneeze": (
        "a person sneezes",
        "someone is sneezing",
        "a loud sneeze",
        "a person sneezing",
        "somebody lets out a sneeze",
        "the sneeze of a person",
    ),
    "rain": (
        "rain is falling",
        "heavy rain pours down",
        "the sound of rain",
        "rain falling steadily on the ground",
        "it is raining",
        "raindrops patter outside",
    ),
    "rooster": (
        "a rooster crows",
        "a rooster is crowing loudly",
        "the crow of a rooster",
        "a rooster crowing",
        "a rooster crows on a farm",
        "a crowing rooster",
    ),
    "sea_waves": (
        "waves roll onto the shore",
        "sea waves are breaking",
        "the sound of sea waves",
        "ocean waves crash on a beach",
        "waves of the sea wash ashore",
        "the surf of the sea",
    ),
}

HELD_OUT_WORDINGS = {
    "baby_cry": ("a crying baby", "a little baby cries and wails", "an infant crying loudly"),
    "chainsaw": ("the sound of a chainsaw", "a buzzing chainsaw", "a chainsaw sawing wood"),
    "clock_tick": ("a ticking clock", "the steady tick of a clock", "the sound of a clock ticking"),
    "dog_bark": ("the loud barking of a dog", "a dog is barking", "the sound of a dog's bark"),
    "fire_crackling": ("the sound of a crackling fire", "burning wood pops", "a fire crackles"),
    "helicopter": (
        "a flying helicopter",
        "the sound of a helicopter",
        "helicopter blades spinning",
    ),
    "person_sneeze": ("a sneeze", "a person is sneezing loudly", "the sound of someone sneezing"),
    "rain": ("the patter of falling rain", "it rains heavily", "steady rain"),
    "rooster": (
        "the sound of a crowing rooster",
        "a rooster is crowing",
        "the loud crow of a rooster",
    ),
    "sea_waves": (
        "breaking waves at the beach",
        "waves crash on the shore",
        "the sea washes ashore",
    ),
}


def build(
    esc10_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, workers: int = WORKERS
) -> pathlib.Path:
    """Writes `out/esc10_metadata.jsonl`, makes the dataset `out/esc10/1.0.0` of it, returns that.

    Raises:
      ValueError: metadata.csv is not that of ESC-10, or a recording would be in two splits.
      OSError: a file cannot be read or written.
    """
    esc10_dir, out = pathlib.Path(esc10_dir), pathlib.Path(out)
    records = captioned(read_clips(esc10_dir / "metadata.csv"))
    table = out / "esc10_metadata.jsonl"
    write_atomically(table, "".join(json.dumps(record) + "\n" for record in records).encode())
    return folder.build(
        esc10_dir / "audio",
        out,
        name="esc10",
        metadata=table,
        workers=workers,
        description="ESC-10 (Piczak 2015): ten categories of sounds, captioned from templates.",
    )


def read_clips(table: pathlib.Path) -> list[dict[str, str]]:
    """The rows of ESC-10's metadata.csv, checked."""
    folds = (*TRAIN_FOLDS, EVALUATION_FOLD)
    clips = []
    for line, clip in read_rows(table, require(COLUMNS), formats=[".csv"]):
        clips.append(dict(clip))
        for column, allowed in (("fold", folds), ("category", tuple(WORDINGS))):
            if clip[column] not in allowed:
                raise ValueError(
                    f"{table}:{line}: {column} is {clip[column]!r}; allowed: {', '.join(allowed)}"
                )
    return clips


def captioned(clips: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """Rows for `data.folder`: the given ones with split, captions and events."""
    splits = assign_splits(clips)
    records = []
    for clip in clips:
        name, category = clip["file_name"], clip["category"]
        wordings = HELD_OUT_WORDINGS if splits[name] == "test" else WORDINGS
        ranked = sorted(wordings[category], key=lambda wording: _hash(f"{name}\n{wording}"))
        captions = ranked[: 2 + _hash(name) % 2]
        records.append({**clip, "split": splits[name], "captions": captions, "events": [category]})
    return records


def assign_splits(clips: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The split of each file name.

    Raises:
      ValueError: a Freesound recording is in a training fold and in the evaluation fold.
    """
    splits = {clip["file_name"]: "train" for clip in clips if clip["fold"] in TRAIN_FOLDS}
    trained = {clip["freesound_id"] for clip in clips if clip["fold"] in TRAIN_FOLDS}
    recordings: dict[str, dict[str, list[str]]] = {}
    for clip in clips:
        if clip["fold"] != EVALUATION_FOLD:
            continue
        if clip["freesound_id"] in trained:
            raise ValueError(
                f"{clip['file_name']}: freesound_id {clip['freesound_id']} is in fold "
                f"{EVALUATION_FOLD} and in a training fold"
            )
        of_category = recordings.setdefault(clip["category"], {})
        of_category.setdefault(clip["freesound_id"], []).append(clip["file_name"])
    for of_category in recordings.values():
        # The recordings with the most clips go first, each to the half that is smaller by then.
        halves: dict[str, list[str]] = {"validation": [], "test": []}
        for names in sorted(of_category.values(), key=lambda names: (-len(names), names)):
            smaller = min(halves, key=lambda split: len(halves[split]))
            halves[smaller] += names
        splits |= {name: split for split, names in halves.items() for name in names}
    return splits


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, required=True, flag_values=values)

    text("esc10_dir", "Holds metadata.csv and audio/*.ogg.")
    text("out", "Parent folder; makes OUT/esc10/1.0.0.")
    flags.DEFINE_integer("workers", WORKERS, "Decoding threads.", flag_values=values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    build(values.esc10_dir, values.out, workers=values.workers)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
