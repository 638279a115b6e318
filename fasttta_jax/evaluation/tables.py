"""An evaluation as tables, for a page and a terminal, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.literature import LITERATURE, LITERATURE_FIGURES
from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.protocols import PROTOCOLS
from fasttta_jax.evaluation.rows import ENERGY_SCORE, TIMES_SLOWER, RowResult
from fasttta_jax.evaluation.tagger_metrics import (
    AttributeAccuracy,
    EventAccuracy,
    EventCount,
    RecallAtK,
)
from fasttta_jax.report.page import Gate, Row, Table
from fasttta_jax.report.text_table import format_table
from fasttta_jax.report.values import format_value

OPENING = """
Every model was asked for the captions of test clips. "real" is the test clips themselves, and
"codec" the same clips turned into tokens and back: the most that a model of these tokens can reach.
"""
ABOUT_TAGGER = """
The tagger, which says what it recognises in the sounds, is a small network trained on the training
split of this very dataset. Its figures, and the Fréchet distance between its embeddings of the
sounds and of real training clips, compare columns of this page. They are not the FD, FAD or KL of
the literature, which are taken with public networks (PANNs, VGGish), and cannot be held against
those. A Fréchet distance depends on the number of clips; on real clips it is not zero either.
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
    metric.quantity.name for metric in (EventAccuracy, AttributeAccuracy, RecallAtK, TAGGER_FRECHET)
}


def about(rows: Sequence[RowResult]) -> str:
    """What a reader must know of these rows, in paragraphs."""
    figures = {name for row in rows for name in row.values}
    parts = [OPENING]
    if figures & TAGGER_FIGURES:
        parts.append(ABOUT_TAGGER)
    if ENERGY_SCORE.name in figures:
        parts.append(ABOUT_ENERGY)
    return "\n\n".join([*parts, ABOUT_ERRORS])


def results_table(rows: Sequence[RowResult], quantities: Sequence[Quantity]) -> Table:
    """One line for each quantity and one for the number of clips; one column for each row."""
    scenes = any(number > 1 for row in rows for number in row.num_events)
    figures = [
        Row(
            quantity.title,
            tuple(row.values.get(quantity.name) for row in rows),
            quantity.better,
        )
        for quantity in quantities
    ]
    clips = Row("clips", tuple(_num_clips(row, scenes=scenes) for row in rows))
    words = {quantity.title: _words(quantity, rows) for quantity in quantities}
    if scenes:
        words["clips"] = "those with one event + those with several"
    return Table(
        "Results",
        ("figure", *(row.name for row in rows)),
        [*figures, clips],
        "↑ higher is better, ↓ lower is better.",
        words,
        _missing(rows, quantities),
    )


def protocol_table(rows: Sequence[RowResult]) -> Table:
    """What the figures of each judged row were taken on; one column for each."""
    judged = {row.name: row.judged.about for row in rows if row.judged is not None}
    lines: dict[str, list[str]] = {}
    networks = dict.fromkeys(name for about in judged.values() for name in about["networks"])
    for about in judged.values():
        counts = about["generated"]["left_out_by_reason"]
        left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        candidates = about["candidates"]
        column = {
            "protocol": about["protocol"],
            "list": about["captions"],
            "captions": (about["caption_list_sha256"] or "none")[:8],
            "pairs": f"{about['pairs']['count']} by {about['pairs']['by']}",
            "left out": left_out or "none",
            "candidates": "not stated" if candidates is None else str(candidates),
        }
        for name in networks:
            one = about["networks"].get(name)
            column[name] = f"{one['sample_rate']} Hz, {one['sha256'][:8]}" if one else "none"
        for field, words in column.items():
            lines.setdefault(field, []).append(words)
    return Table(
        "Protocol",
        ("taken on", *judged),
        [Row(field, cells) for field, cells in lines.items()],
        "Hashes are SHA-256, here their first eight digits.",
        {name: PROTOCOLS[name].words for name in sorted({*lines["protocol"]})},
    )


def literature_table() -> Table:
    """Published figures; a letter stands for the protocol and the source that its authors name."""
    origins = list(dict.fromkeys((one.protocol, one.source) for one in LITERATURE))
    letters = {origin: chr(ord("a") + place) for place, origin in enumerate(origins)}
    return Table(
        "Figures of the literature",
        ("system", *LITERATURE_FIGURES, "as in"),
        [
            Row(
                one.system,
                (
                    *(one.figures.get(name) for name in LITERATURE_FIGURES),
                    letters[one.protocol, one.source],
                ),
            )
            for one in LITERATURE
        ],
        "As their sources report them. Rows of different protocols, and rows of these and of the "
        "results above, cannot be subtracted.",
        {letter: f"{protocol} ({source})" for (protocol, source), letter in letters.items()},
    )


def _num_clips(row: RowResult, *, scenes: bool) -> str:
    total, several = sum(row.num_events.values()), row.num_scenes
    return f"{total - several} + {several}" if scenes else f"{total}"


def _words(quantity: Quantity, rows: Sequence[RowResult]) -> str:
    """What a quantity says; with the observations behind it where no error tells of them."""
    found = [row.values[quantity.name] for row in rows if quantity.name in row.values]
    counts = {measured.count for measured in found if measured.standard_error is None}
    words = quantity.words
    if len(counts) == 1 and (count := counts.pop()) is not None:
        words += f", n = {count}"
    return words


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
    """Sampling time in detail; one column for each row that has one."""
    timed = [(row, row.sampling) for row in rows if row.sampling]
    times = [time for _, time in timed]
    lines = [
        Row("median, ms", [1000 * time.median for time in times]),
        Row("fastest, ms", [1000 * min(time.timing.calls) for time in times]),
        Row("slowest, ms", [1000 * max(time.timing.calls) for time in times]),
        Row("clips a second", [time.clips_per_second for time in times]),
        Row("real-time factor", [time.real_time_factor for time in times]),
        Row("first call, s", [time.timing.first for time in times]),
        *(
            Row(quantity.title, [row.values.get(quantity.name) for row, _ in timed])
            for quantity in quantities
            if quantity.name == TIMES_SLOWER
        ),
    ]
    return Table(
        "Sampling time",
        ("time", *(row.name for row, _ in timed)),
        lines,
        f"Warm calls of the compiled token sampler, {len(times[0].timing.calls)} for each run, "
        f"taken in turns, {times[0].batch_size} clips together; turning tokens into audio is "
        "not counted. Real-time factor: seconds of computing for a second of audio. The first call "
        "includes compilation.",
    )


def event_table(rows: Sequence[RowResult]) -> Table:
    """Event by event, how many clips of each row the tagger recognised."""
    found = {row.name: {count.event: count for count in row.events} for row in rows if row.events}
    clips: dict[str, int] = {}
    for counts in found.values():
        for event, count in counts.items():
            clips[event] = max(count.clips, clips.get(event, 0))

    def cell(count: EventCount | None, all_clips: int) -> str | None:
        if count is None:
            return None
        right = f"{count.right}" + (f" of {count.clips}" if count.clips < all_clips else "")
        return "; ".join([right, *(f"{name} ({number})" for name, number in count.taken_for[:1])])

    return Table(
        "Event by event",
        ("event", "clips", *found),
        [
            Row(event, (number, *(cell(counts.get(event), number) for counts in found.values())))
            for event, number in clips.items()
        ],
        "How many clips of one event the tagger recognised, and what it mostly took the others "
        "for.",
    )


def as_text(table: Table, gates: Iterable[Gate] = ()) -> str:
    """A table for a terminal; gates, and what is missing, below."""
    rows = [[row.heading, *map(format_value, row.values)] for row in table.rows]
    text = format_table(table.columns, rows)
    verdicts = [
        f"{'pass' if gate.passed else 'FAIL'}  {gate.row}: {gate.condition}" for gate in gates
    ]
    missing = [f"not measured: {line}" for line in table.missing]
    return "\n\n".join("\n".join(lines) for lines in ([text], verdicts, missing) if lines)
