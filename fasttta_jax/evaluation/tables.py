"""An evaluation as tables, for a page and a terminal; its curves and its sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import AudioError, playback_level
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.labels import events_of
from fasttta_jax.evaluation.literature import LITERATURE, LITERATURE_FIGURES
from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.protocols import PROTOCOLS
from fasttta_jax.evaluation.rows import ENERGY_SCORE, TIMES_SLOWER, RowResult
from fasttta_jax.evaluation.sound_sets import Sound, SoundSet
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.evaluation.tagger_metrics import AttributeAccuracy, EventAccuracy, RecallAt2
from fasttta_jax.report.intervals import intervals_png
from fasttta_jax.report.page import (
    Cell,
    Figure,
    Gate,
    PromptRow,
    Row,
    Table,
    format_value,
)
from fasttta_jax.report.spectrograms import curves_png
from fasttta_jax.report.text_table import format_table

TWO_EVENT_PROMPTS = 4
UNLABELLED_PROMPTS = 8
SHOWN_MISTAKES = 2
OPENING = """
Every model was asked for the captions of test clips, in wordings that training never showed it.
The row "real" is the test clips themselves, and "codec" the same clips turned into tokens and back:
the most that a model of these tokens can reach.
"""
ABOUT_TAGGER = """
The tagger, which says what it recognises in the sounds, is a small network trained on the training
split of this very dataset. Its figures, and the Fréchet distance between its embeddings of the
sounds and of real training clips, compare rows of this page. They are not the FD, FAD or KL of the
literature, which are taken with public networks (PANNs, VGGish), and cannot be held against those.
A Fréchet distance depends on the number of clips; on real clips it is not zero either.
"""
ABOUT_ENERGY = """
The energy score tells how well single tokens of unseen clips are predicted from the tokens
around them and the caption. A lower score is a better fit, but it does not rank how good samples
sound: how tokens go together is left out. Read it beside the figures on sounds, and listen. All
runs score the same masked clips, so energy scores of two runs differ more surely than their errors,
which are mostly the choice of clips, suggest.
"""
ABOUT_ERRORS = """
± is one standard error: sqrt(p (1 - p) / n) for shares, over clips for all others. Differences of
less than two of them mean little. In brackets is the 95 % confidence interval over clips. For the
same prompts the difference of two systems is known better than their errors suggest.
"""
ABOUT_JUDGED = """
Every column of the results is a set of sounds, held against the same real ones by public networks.
A figure means something only with its protocol, the list of clips and the weights behind it: they
stand below the results. Two sets can be compared where all of these are equal.

In brackets is the 95 % confidence interval over clips. Fewer clips make a Fréchet distance larger,
also between two halves of one set, and an Inception Score smaller.
"""
TAGGER_FIGURES = {
    metric.quantity.name for metric in (EventAccuracy, AttributeAccuracy, RecallAt2, TAGGER_FRECHET)
}


def introduction(rows: Sequence[RowResult]) -> str:
    """What a reader must know of these rows, in paragraphs."""
    figures = {name for row in rows for name in row.values}
    parts = [OPENING]
    if figures & TAGGER_FIGURES:
        parts.append(ABOUT_TAGGER)
    if ENERGY_SCORE.name in figures:
        parts.append(ABOUT_ENERGY)
    return "\n\n".join([*parts, ABOUT_ERRORS])


def main_table(
    rows: Sequence[RowResult],
    quantities: Sequence[Quantity],
    gates: Mapping[str, tuple[Gate, ...]],
) -> Table:
    """One line for each row, one column for each quantity, and the number of clips."""
    two_events = any(2 in row.num_events for row in rows)
    kinds = "with one event + with two" if two_events else "those with captions"
    words = [f"{quantity.title}: {_words(quantity, rows)}." for quantity in quantities]
    return Table(
        "Results",
        ("row", *(quantity.title for quantity in quantities), "clips"),
        [
            Row(
                row.name,
                (
                    *(row.values.get(quantity.name) for quantity in quantities),
                    _num_clips(row, two_events=two_events),
                ),
                gates.get(row.name, ()),
            )
            for row in rows
        ],
        " ".join([f"Clips: {kinds}.", *(line[0].upper() + line[1:] for line in words)]),
        _missing(rows, quantities),
    )


def judged_table(rows: Sequence[RowResult], quantities: Sequence[Quantity]) -> Table:
    """One line for each figure of the protocol, one column for each set of sounds."""
    words = [f"{quantity.title}: {_words(quantity, rows)}." for quantity in quantities]
    figures = [
        Row(quantity.title, tuple(row.values.get(quantity.name) for row in rows))
        for quantity in quantities
    ]
    clips = Row("clips", tuple(sum(row.num_events.values()) for row in rows))
    return Table(
        "Results",
        ("figure", *(row.name for row in rows)),
        [*figures, clips],
        " ".join(line[0].upper() + line[1:] for line in words),
        _missing(rows, quantities),
    )


def protocol_table(rows: Sequence[RowResult]) -> Table:
    """For each judged row what its figures were taken on."""
    judged = [(row, row.judged.about) for row in rows if row.judged is not None]
    names = {about["protocol"] for _, about in judged}
    lines = []
    for row, about in judged:
        networks = [
            f"{name} at {one['sample_rate']} Hz ({one['sha256'][:8]})"
            for name, one in about["networks"].items()
        ]
        counts = about["generated"]["left_out_by_reason"]
        left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        lines.append(
            Row(
                row.name,
                (
                    about["protocol"],
                    about["captions"],
                    (about["caption_list_sha256"] or "none")[:8],
                    f"{about['pairs']['count']} by {about['pairs']['by']}",
                    left_out or "none",
                    "not stated" if about["candidates"] is None else str(about["candidates"]),
                    "; ".join(networks),
                ),
            )
        )
    return Table(
        "Protocol",
        (
            "row",
            "protocol",
            "list",
            "captions",
            "pairs",
            "left out",
            "candidates",
            "networks",
        ),
        lines,
        "Hashes are SHA-256, here their first eight digits. "
        + " ".join(f"{name}: {PROTOCOLS[name].words}." for name in sorted(names)),
    )


def literature_table() -> Table:
    """Published figures, each with the protocol that its authors name."""
    return Table(
        "Figures of the literature",
        ("system", *LITERATURE_FIGURES, "protocol", "source"),
        [
            Row(
                one.system,
                (*(one.figures.get(name) for name in LITERATURE_FIGURES), one.protocol, one.source),
            )
            for one in LITERATURE
        ],
        "As their sources report them. Rows of different protocols, and rows of these and of the "
        "results above, cannot be subtracted.",
    )


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


def _num_clips(row: RowResult, *, two_events: bool) -> str:
    total, two = sum(row.num_events.values()), row.num_events.get(2, 0)
    return f"{total - two} + {two}" if two_events else f"{total}"


def _words(quantity: Quantity, rows: Sequence[RowResult]) -> str:
    """What a quantity says; with the observations behind it where no error tells of them."""
    found = [row.values[quantity.name] for row in rows if quantity.name in row.values]
    counts = {measured.count for measured in found if measured.standard_error is None}
    words = quantity.words
    if len(counts) == 1 and (count := counts.pop()) is not None:
        words += f", n = {count}"
    return words + ("; lower is better" if quantity.better == "lower" else "")


def _missing(rows: Sequence[RowResult], quantities: Sequence[Quantity]) -> list[str]:
    """What could not be measured and why; with the rows where others have the figure."""
    lines = []
    for quantity in quantities:
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if quantity.name in row.not_measured:
                by_reason.setdefault(row.not_measured[quantity.name], []).append(row.name)
        for reason, names in by_reason.items():
            where = "" if len(names) == len(rows) else f" in {', '.join(names)}"
            lines.append(f"{quantity.title}{where}: {reason}")
    return lines


def sampling_table(rows: Sequence[RowResult], quantities: Sequence[Quantity]) -> Table:
    """Sampling time in detail, for the rows that have one."""
    compared = [quantity for quantity in quantities if quantity.name == TIMES_SLOWER]
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
            *(quantity.title for quantity in compared),
        ),
        [
            Row(
                row.name,
                (
                    1000 * time.median,
                    1000 * min(time.timing.calls),
                    1000 * max(time.timing.calls),
                    time.clips_per_second,
                    time.real_time_factor,
                    time.timing.first,
                    *(row.values.get(quantity.name) for quantity in compared),
                ),
            )
            for row, time in timed
        ],
        f"Warm calls of the compiled token sampler, {len(timed[0][1].timing.calls)} for each run, "
        f"taken in turns, {timed[0][1].batch_size} clips together; turning tokens into audio is "
        "not counted. Real-time factor: seconds of computing for a second of audio. The first call "
        "includes compilation.",
    )


def event_table(row: RowResult) -> Table:
    """Event by event, what was asked of a run and what the tagger recognised."""
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
            for count in row.events
        ],
    )


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


def prompt_rows(
    test: Clips, sounds: Mapping[str, Mapping[int, Float[np.ndarray, " S"]]], sample_rate: int
) -> list[PromptRow]:
    """Some prompts with the real clip and every sound that was made for them.

    One prompt for each event and a few of two events; of data without labels, the first ones.

    Args:
      test: the clips whose captions were the prompts.
      sounds: for each row its sounds, by the row of `test`.
      sample_rate: of all clips.
    """
    first: dict[str, int] = {}
    for row in test.rows_with(1):
        first.setdefault(events_of(test.labels[row])[0], row)
    chosen = [row for _, row in sorted(first.items())]
    chosen += test.rows_with(2)[:TWO_EVENT_PROMPTS]
    chosen = chosen or list(range(min(UNLABELLED_PROMPTS, len(test))))

    def cells(row: int) -> list[Cell]:
        audio = {"real": to_float(test.audio[row])}
        found = audio | {name: made.get(row) for name, made in sounds.items()}
        return [
            Cell(label, None if one is None else playback_level(one), sample_rate)
            for label, one in found.items()
        ]

    return [PromptRow(test.prompts[row], cells(row)) for row in chosen]


def as_text(table: Table) -> str:
    """A table for a terminal, with its gates, and what is missing, below."""
    rows = [[row.name, *map(format_value, row.values)] for row in table.rows]
    text = format_table(table.columns, rows)
    verdicts = [
        f"{'pass' if gate.passed else 'FAIL'}  {row.name}: {gate.condition}"
        for row in table.rows
        for gate in row.gates
    ]
    missing = [f"not measured: {line}" for line in table.missing]
    return "\n\n".join("\n".join(lines) for lines in ([text], verdicts, missing) if lines)
