"""Curves and sounds of an evaluation, for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import AudioError, playback_level
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.labels import events_of
from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.rows import RowResult
from fasttta_jax.evaluation.sound_sets import Sound, SoundSet
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.report.intervals import intervals_png
from fasttta_jax.report.page import Cell, Figure, PromptRow
from fasttta_jax.report.spectrograms import curves_png

SCENE_PROMPTS = 4
UNLABELLED_PROMPTS = 8


def prompt_rows(
    test: Clips, sounds: Mapping[str, Mapping[int, Float[np.ndarray, " S"]]], sample_rate: int
) -> list[PromptRow]:
    """Some prompts with the real clip and every sound that was made for them.

    One prompt for each event and a few of several; of data without labels, the first ones.

    Args:
      test: the clips whose captions were the prompts.
      sounds: for each row its sounds, by the row of `test`.
      sample_rate: of all clips.
    """
    first: dict[str, int] = {}
    for row in test.rows_with(1):
        first.setdefault(events_of(test.labels[row])[0], row)
    chosen = [row for _, row in sorted(first.items())]
    chosen += test.scenes()[:SCENE_PROMPTS]
    chosen = chosen or list(range(min(UNLABELLED_PROMPTS, len(test))))

    def cells(row: int) -> list[Cell]:
        audio = {"real": to_float(test.audio[row])}
        found = audio | {name: made.get(row) for name, made in sounds.items()}
        return [
            Cell(label, None if one is None else playback_level(one), sample_rate)
            for label, one in found.items()
        ]

    return [PromptRow(test.prompts[row], cells(row)) for row in chosen]


def judged_prompts(sets: Mapping[str, SoundSet]) -> list[PromptRow]:
    """The first captions of the first set, with the sound of every set that has the caption."""
    prompts = []
    first = next(iter(sets.values()), None)
    for sound in () if first is None else first.sounds[:UNLABELLED_PROMPTS]:
        cells = []
        for name, other in sets.items():
            same = (one for one in other.sounds if _same(sound, one))
            cells.append(_cell(name, next(same, None)))
        prompts.append(PromptRow(sound.caption or sound.name, cells))
    return prompts


def _same(sound: Sound, other: Sound) -> bool:
    return sound.caption == other.caption if sound.caption else sound.name == other.name


def _cell(name: str, sound: Sound | None) -> Cell:
    if sound is None:
        return Cell(name, None, 0)
    try:
        samples, rate = sound.load()
    except AudioError:
        return Cell(name, None, 0)
    return Cell(name, playback_level(samples.mean(axis=1)), rate)


def curves(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], losses: Mapping[str, str]
) -> list[Figure]:
    """Training and validation losses of the runs, one figure for each loss.

    Args:
      metrics: for each run the rows of its metrics.jsonl.
      losses: the losses that are shown, each in words.
    """
    figures = []
    for loss, words in losses.items():
        lines = {}
        for run, rows in metrics.items():
            for phase in ("train", "validation"):
                key = f"{phase}/{loss}"
                points = [(row["step"], row[key]) for row in rows if key in row]
                if points:
                    steps, values = zip(*points, strict=True)
                    lines[f"{run}, {phase}"] = (steps, values)
        if lines:
            png = curves_png(lines, y_label=words)
            figures.append(Figure(words.capitalize(), png, "Validation: the averaged weights."))
    return figures


def comparison_figure(rows: Sequence[RowResult], quantities: Sequence[Quantity]) -> list[Figure]:
    """Every figure of the protocol with its interval, row by row; nothing for a single row."""
    panels = {
        f"{quantity.title} ({quantity.better} is better)": found
        for quantity in quantities
        if len(
            found := {
                row.name: row.values[quantity.name] for row in rows if quantity.name in row.values
            }
        )
        > 1
    }
    if not panels:
        return []
    caption = "Dots are the figures, lines their 95 % confidence intervals over clips."
    return [Figure("Systems side by side", intervals_png(panels), caption)]
