"""What the campaigns disturb: sounds, a dataset, a codec, runs and text networks, all tiny.

python -m tests.campaigns.world FOLDER

sounds/         a dozen sound files and their table
audio/          a TFDS dataset of clips
codec/          fitted to them
encoded/        their tokens and tokenizer
teacher/ student/    runs of a few steps
t5/ clap/       converted text networks with random weights
prompts.csv     of generation
"""

from __future__ import annotations

import csv
import fcntl
import pathlib
import sys

import numpy as np
import soundfile
import tensorflow_datasets as tfds

from fasttta_jax.training.loop import Trainer
from tests.support import conversions, helpers

NUM_SOUNDS = 12
NUM_PROMPTS = 24
FINISHED = "finished"


class World:
    """The files of a folder that `make` has filled, by what they are."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.sounds, self.audio = folder / "sounds", folder / "audio"
        self.codec, self.encoded = folder / "codec", folder / "encoded"
        self.teacher, self.student = folder / "teacher", folder / "student"
        self.t5, self.clap = folder / "t5", folder / "clap"
        self.prompts = folder / "prompts.csv"


def write_sounds(folder: pathlib.Path) -> None:
    """Sound files of several formats and lengths, with a table that says their splits."""
    folder.mkdir()
    rng = np.random.default_rng(11)
    rows = []
    for index in range(NUM_SOUNDS):
        kind = helpers.KINDS[index % len(helpers.KINDS)]
        audio = helpers.synthetic_audio(kind, 0.3, rng)[: int(rng.integers(4_000, 10_000))]
        name = f"{kind} {index}.{('wav', 'flac', 'ogg')[index % 3]}"
        soundfile.write(folder / name, audio, helpers.SAMPLE_RATE)
        split = ("validation", "test")[index - 10] if index >= 10 else "train"
        rows += [(name, f"{text} {kind}", split) for text in ("a", "one more")]
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption", "split"), *rows])


def write_prompts(path: pathlib.Path) -> None:
    """A table of prompts with names of their own."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("prompt", "id"))
        for index in range(NUM_PROMPTS):
            level, kind = list(helpers.LEVELS)[index % 2], helpers.KINDS[index % 3]
            rows.writerow((f"a {level} {kind}", f"clip {index}"))


def make(folder: pathlib.Path) -> World:
    """Makes all of it below a folder, or takes what another process has made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / FINISHED).exists():
            return World(folder)
        tfds.disable_progress_bar()
        write_sounds(folder / "sounds")
        write_prompts(folder / "prompts.csv")
        encoded = helpers.write_encoded_dataset(folder)
        Trainer(helpers.tiny_teacher_config(encoded), folder / "teacher").run()
        student = helpers.tiny_student_config(encoded, folder / "teacher")
        Trainer(student, folder / "student").run()
        conversions.random_t5(folder / "t5")
        conversions.random_clap(folder / "clap")
        (folder / FINISHED).touch()
    return World(folder)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
