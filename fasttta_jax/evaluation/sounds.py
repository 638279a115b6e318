"""Sounds of another project, read from a folder and matched with test clips by their captions.

A table in the folder names them, see `sound_tables`. Here they are held against the test clips of a
data set, of one length; `sound_sets` and `judging` are for sounds as they are.

Dimensions: n sounds, S samples.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from fasttta_jax.audio.files import AudioError, read_audio
from fasttta_jax.evaluation.clips import cut_or_pad
from fasttta_jax.evaluation.sound_tables import TABLES, SoundsError, find_table, read_table


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSounds:
    """The sounds of a folder that were made for captions of test clips.

    Attributes:
      audio: waveforms, cut or padded with silence to one length.
      rows: the rising rows of the test clips that they were made for.
      missing: captions of test clips that no row of the table has, counted for each clip.
      unreadable: files that cannot be read, with the reason; they are left out.
      unused: rows of the table whose caption no test clip has, or has no more often.
      cut: sounds that were longer than the clips.
    """

    audio: Float[np.ndarray, "n S"]
    rows: list[int]
    missing: int
    unreadable: Mapping[str, str]
    unused: int
    cut: int

    def counts(self) -> dict[str, Any]:
        """What was left out, for metrics.json."""
        return {
            "missing": self.missing,
            "unreadable": dict(self.unreadable),
            "unused": self.unused,
            "cut": self.cut,
        }

    def warnings(self) -> list[str]:
        """What a reader of the figures must know."""
        files = [f"{name} ({reason})" for name, reason in self.unreadable.items()]
        lines = {
            f"{self.missing} captions of test clips have no sound": self.missing,
            f"{len(files)} files cannot be read and are left out: {', '.join(files)}": len(files),
            f"{self.unused} sounds are for other captions and are left out": self.unused,
            f"{self.cut} sounds are longer than the clips and are cut": self.cut,
        }
        return [line for line, count in lines.items() if count]


def read_sounds(
    folder: str | pathlib.Path, prompts: Sequence[str], *, num_samples: int, sample_rate: int
) -> FolderSounds:
    """Reads the sounds that a folder has for some captions.

    Where several test clips have the same caption, its sounds go to them in the order of the table.
    A silent file is a sound like any other.

    Args:
      folder: with a table and the files that it names, or the table itself.
      prompts: captions of the test clips.
      num_samples: S.
      sample_rate: samples per second of the result; files of another rate are resampled.

    Raises:
      SoundsError: there is no table or more than one, a row lacks a file or a caption, or no
        readable sound was made for any of the captions.
    """
    folder = pathlib.Path(folder)
    table = find_table(folder)
    if table is None:
        raise SoundsError(f"{folder} must hold one of {', '.join(TABLES)}; found: none")
    waiting: dict[str, collections.deque[str]] = collections.defaultdict(collections.deque)
    for row in read_table(table):
        waiting[row.caption].append(row.file)
    unreadable: dict[str, str] = {}
    audio, rows, missing, cut = [], [], 0, 0
    for row, prompt in enumerate(tqdm(prompts, f"reading {folder}", unit="clip", mininterval=1.0)):
        if not waiting.get(prompt.strip()):
            missing += 1
            continue
        file = waiting[prompt.strip()].popleft()
        try:
            samples = read_audio(table.parent / file, sample_rate)
        except AudioError as error:
            if error.reason != "silent":
                unreadable[file] = error.reason
                continue
            samples = np.zeros(num_samples, np.float32)
        cut += len(samples) > num_samples
        audio.append(cut_or_pad(samples, num_samples))
        rows.append(row)
    unused = sum(map(len, waiting.values()))
    if not rows:
        raise SoundsError(
            f"{table} has no readable sound for any of the {len(prompts)} captions of the test "
            f"clips, such as {prompts[0]!r}; unreadable: {len(unreadable)}, with other captions: "
            f"{unused}"
        )
    return FolderSounds(np.stack(audio), rows, missing, unreadable, unused, cut)
