"""An evaluation as a page, as JSON and as text: tables, curves, sounds and what they mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import playback_level
from fasttta_jax.evaluation.clips import (
    Clips,
    Material,
    events_of,
)
from fasttta_jax.evaluation.scoring import Scores, Share
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.evaluation.timing import SamplingTime
from fasttta_jax.metrics.energy_score import HeldOutEnergy
from fasttta_jax.report.page import (
    Cell,
    Figure,
    Gate,
    Measured,
    PromptRow,
    Row,
    Table,
    Value,
    format_value,
)
from fasttta_jax.report.spectrograms import curves_png
from fasttta_jax.report.text_table import format_table

SCENE_PROMPTS = 4
SHOWN_MISTAKES = 2
CURVES = {
    "mse": ("Teachers: diffusion loss", "mean squared error"),
    "vb": ("Teachers: variance term", "variational bound"),
    "energy": ("Students: energy distance", "energy score"),
    "align": ("Students: distance to the teacher's features", "mean squared error"),
}
INTRODUCTION = """
Every model was asked for the captions of test clips, in wordings that training never showed it.
A tagger then said what it hears in the answers. The row "real" is the test clips themselves, and
"codec" the same clips turned into tokens and back: the most that a model of these tokens can
reach.

The tagger is a small network trained on the training split of this very dataset. Its figures,
and the Fréchet distance between its embeddings of the answers and of real training clips,
compare rows of this page. They are not the FD, FAD or KL of the literature, which are taken with
public networks (PANNs, VGGish), and cannot be held against those. A Fréchet distance depends on
the number of clips, which is the same in all rows; on real clips it is not zero either.

The energy score tells how well single tokens of unseen clips are predicted from the tokens
around them and the caption. A lower score is a better fit, but it does not rank how good samples
sound: how tokens go together is left out. Read it beside the figures on sounds, and listen.

± is one standard error: sqrt(p (1 - p) / n) for shares, over clips for the energy score.
Differences of shares of less than two of them mean little. All runs score the same masked clips,
so energy scores of two runs differ more surely than their errors, which are mostly the choice of
clips, suggest.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class RowResult:
    """Everything that was found for one row of the main table.

    Attributes:
      name: "real", "codec" or the run's.
      kind: "reference", "teacher" or "student".
      scores: what the tagger says.
      energy: held-out energy score; runs only.
      sampling: sampling time; runs only.
      times_slower: sampling time over that of the student; None without a student.
    """

    name: str
    kind: str
    scores: Scores
    energy: HeldOutEnergy | None = None
    sampling: SamplingTime | None = None
    times_slower: float | None = None

    def figures(self) -> dict[str, float | None]:
        """The figures that can be bounded, by name."""
        shares = {name: getattr(self.scores, name) for name in SHARES}
        return {
            **{name: share.value if share else None for name, share in shares.items()},
            "frechet": self.scores.frechet,
            "energy_score": self.energy.mean if self.energy else None,
            "times_slower": self.times_slower,
        }

    def to_json(self) -> dict[str, Any]:
        """All figures with their errors and counts."""
        result: dict[str, Any] = {"kind": self.kind, **self.figures()}
        for name in SHARES:
            share = getattr(self.scores, name)
            if share is not None:
                result[f"{name}_standard_error"] = share.standard_error
                result[f"{name}_count"] = share.count
        for name in ("num_clips", "num_scenes", "frechet_clips"):
            result[name] = getattr(self.scores, name)
        if self.energy is not None:
            error = self.energy.standard_error
            result["energy"] = self.energy._asdict() | {
                "standard_error": error if math.isfinite(error) else None
            }
        if self.sampling is not None:
            result["sampling"] = self.sampling.to_json()
        result["events"] = {
            count.event: {
                "clips": count.clips,
                "right": count.right,
                "taken_for": dict(count.taken_for),
            }
            for count in self.scores.events
        }
        return result


SHARES = ("event_accuracy", "attribute_accuracy", "recall_at_2")


def _measured(share: Share | None) -> Value:
    return Measured(share.value, share.standard_error) if share else None


def main_table(rows: Sequence[RowResult], gates: Mapping[str, tuple[Gate, ...]]) -> Table:
    """One line for each row: what the tagger says, energy score, sampling time."""
    sampling = next((row.sampling for row in rows if row.sampling), None)
    batch = f", batch of {sampling.batch_size}" if sampling else ""
    return Table(
        "Results",
        (
            "row",
            "event accuracy",
            "attribute accuracy",
            "two-event recall@2",
            "Fréchet (tagger)",
            "energy score",
            f"sampling, ms{batch}",
            "times slower than student",
            "clips",
        ),
        [
            Row(
                row.name,
                (
                    *(_measured(getattr(row.scores, name)) for name in SHARES),
                    row.scores.frechet,
                    Measured(row.energy.mean, row.energy.standard_error) if row.energy else None,
                    1000 * row.sampling.median if row.sampling else None,
                    row.times_slower,
                    f"{row.scores.num_clips} + {row.scores.num_scenes}",
                ),
                gates.get(row.name, ()),
            )
            for row in rows
        ],
        "Clips: with one event + with two. Event accuracy: the likeliest event is the one asked "
        "for. Attribute accuracy: over the attributes that a caption mentions. Recall@2: share of "
        "a scene's two events among the two likeliest. Fréchet distance: to as many real training "
        f"clips of the same events, n = {rows[0].scores.frechet_clips} on either side; lower is "
        "better, as is the energy score.",
    )


def sampling_table(rows: Sequence[RowResult]) -> Table:
    """Sampling time in detail, for the rows that have one."""
    timed = [(row, row.sampling) for row in rows if row.sampling]
    return Table(
        "Sampling time",
        (
            "run",
            "median, ms",
            "fastest, ms",
            "slowest, ms",
            "clips a second",
            "real-time factor",
            "first call, s",
            "times slower than student",
        ),
        [
            Row(
                row.name,
                (
                    1000 * time.median,
                    1000 * min(time.calls),
                    1000 * max(time.calls),
                    time.clips_per_second,
                    time.real_time_factor,
                    time.first_call,
                    row.times_slower,
                ),
            )
            for row, time in timed
        ],
        f"Warm calls of the compiled token sampler, {len(timed[0][1].calls)} for each run, taken "
        f"in turns, {timed[0][1].batch_size} clips together; turning tokens into audio is not "
        "counted. Real-time factor: seconds of computing for a second of audio. The first call "
        "includes compilation.",
    )


def event_table(row: RowResult) -> Table:
    """Event by event, what was asked of a run and what was heard."""
    return Table(
        f"Event by event: {row.name}",
        ("event", "clips", "right", "accuracy", "mostly taken for"),
        [
            Row(
                count.event,
                (
                    count.clips,
                    count.right,
                    count.right / count.clips,
                    ", ".join(f"{name} ({n})" for name, n in count.taken_for[:SHOWN_MISTAKES])
                    or None,
                ),
            )
            for count in row.scores.events
        ],
    )


def curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """Training and validation losses of the runs, one picture for each loss.

    Args:
      metrics: for each run the rows of its metrics.jsonl.
    """
    figures = []
    for loss, (title, unit) in CURVES.items():
        lines = {}
        for run, rows in metrics.items():
            for phase in ("train", "validation"):
                key = f"{phase}/{loss}"
                points = [(row["step"], row[key]) for row in rows if key in row]
                if points:
                    steps, values = zip(*points, strict=True)
                    lines[f"{run}, {phase}"] = (steps, values)
        if lines:
            picture = curves_png(lines, y_label=unit)
            figures.append(Figure(title, picture, "Validation: the averaged weights."))
    return figures


def prompt_rows(
    material: Material,
    answers: Mapping[str, tuple[Float[np.ndarray, "n S"], Float[np.ndarray, "m S"]]],
    sample_rate: int,
) -> list[PromptRow]:
    """One prompt for each event and a few of two events, with the real clip and every answer.

    Args:
      material: the clips whose captions were the prompts.
      answers: for each run its single-event and two-event clips.
      sample_rate: of all clips.
    """
    first: dict[str, int] = {}
    for row, labels in enumerate(material.singles.labels):
        first.setdefault(events_of(labels)[0], row)
    chosen = [(material.singles, 0, row) for _, row in sorted(first.items())]
    scenes = range(min(SCENE_PROMPTS, len(material.scenes)))
    chosen += [(material.scenes, 1, row) for row in scenes]

    def cells(clips: Clips, part: int, row: int) -> list[Cell]:
        sounds = {"real": to_float(clips.audio[row])}
        sounds |= {run: answer[part][row] for run, answer in answers.items()}
        return [Cell(label, playback_level(audio), sample_rate) for label, audio in sounds.items()]

    return [PromptRow(clips.prompts[row], cells(clips, part, row)) for clips, part, row in chosen]


def as_text(table: Table) -> str:
    """A table for a terminal, with its failed and passed gates below."""
    rows = [[row.name, *map(format_value, row.values)] for row in table.rows]
    text = format_table(table.columns, rows)
    verdicts = [
        f"{'pass' if gate.passed else 'FAIL'}  {row.name}: {gate.condition}"
        for row in table.rows
        for gate in row.gates
    ]
    return "\n\n".join([text, *(["\n".join(verdicts)] if verdicts else [])])
