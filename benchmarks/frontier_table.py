"""The frontier as Markdown: the rows, how much faster they are, and both in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import frontier_ratios as ratios
from benchmarks.frontier_ratios import AIMS, Quantity, Ratio, Row
from benchmarks.measure import describe_machine
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.values import MISSING, format_value

PLOT_FILE = "frontier.png"


def measured(figures: Mapping[str, Any] | None, quantity: Quantity) -> Measured | None:
    """A figure as JSON has it."""
    name = quantity["name"]
    if not figures or figures.get(name) is None:
        return None
    interval = figures.get(f"{name}_interval")
    error = figures.get(f"{name}_standard_error")
    return Measured(figures[name], error, None, None if interval is None else tuple(interval))


def to_markdown(results: Mapping[str, Any]) -> str:
    """The page of frontier.json."""
    parts = [
        "# Frontier\n",
        _introduction(results),
        f"![quality against passes, operations and seconds]({PLOT_FILE})\n",
        "## Rows\n",
        rows_table(results["rows"], results["quantities"], results["batch_sizes"], results),
        "## How much faster\n",
        ratios_table(results["rows"], _quantity(results), results["batch_sizes"]),
        "## Aims\n",
        *sentences(results["rows"], results["quantities"], results["figure"]),
        *(f"* {warning}" for warning in results["warnings"]),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _quantity(results: Mapping[str, Any]) -> Quantity:
    return next(one for one in results["quantities"] if one["name"] == results["figure"])


def _introduction(results: Mapping[str, Any]) -> str:
    clips = results["clips"]
    return (
        "± is one standard error, [] a 95 % interval. Passes are of the backbone: a guided "
        "iteration has two. GFLOP are of a clip; TFLOP at the paper's size are those of the same "
        "schedule with 12 + 12 blocks (cut in proportion), width 768 and 256 tokens. Times are "
        "medians of warm calls of the token sampler, without the codec, row by row; compiling is "
        "that of the smallest batch, without a cache. "
        f"{clips['single']} clips with one event, {clips['scenes']} with several, seed "
        f"{clips['seed']}. Machine: {describe_machine(results['machine'])}; load before the start "
        f"{results['load']:.1f}.\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is of names."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *rows)) + "\n"


def rows_table(
    rows: Sequence[Row],
    quantities: Sequence[Quantity],
    batch_sizes: Sequence[str],
    results: Mapping[str, Any],
) -> str:
    """All rows, behind those of real clips."""
    head = ["row", "passes", "GFLOP", "TFLOP, paper's size", "compiling, s"]
    head += [f"ms, batch of {size}" for size in batch_sizes]
    head += [one["title"] for one in quantities]
    lines = [
        [f"`{name}`", *[MISSING] * (4 + len(batch_sizes)), *_figures(figures, quantities)]
        for name, figures in results["references"].items()
    ]
    for row in rows:
        cells = [format_value(row[name]) for name in ("passes", "gflop", "paper_tflop")]
        cells += [format_value(compile_seconds(row)), *_times(row, batch_sizes)]
        lines.append([f"`{row['name']}`", *cells, *_figures(row["figures"], quantities)])
    return table(head, lines)


def compile_seconds(row: Row) -> float | None:
    """Of the smallest batch, without a cache."""
    found = (cell.get("compile_seconds") for cell in row["times"].values())
    return next((one for one in found if one is not None), None)


def _times(row: Row, batch_sizes: Sequence[str]) -> list[str]:
    cells = []
    for size in batch_sizes:
        cell = row["times"].get(size, {})
        if "seconds" in cell:
            cells.append(format_value(1e3 * cell["seconds"]))
        else:
            cells.append(cell.get("left_out", MISSING))
    return cells


def _figures(figures: Mapping[str, Any] | None, quantities: Sequence[Quantity]) -> list[str]:
    return [format_value(measured(figures, one)) for one in quantities]


def ratios_table(rows: Sequence[Row], quantity: Quantity, batch_sizes: Sequence[str]) -> str:
    """How many times less every student takes than the paper's teacher and than a fair one."""
    head = ["row", "paper's teacher: operations", *(f"batch of {size}" for size in batch_sizes)]
    head += [
        "teacher of equal quality",
        "operations",
        *(f"batch of {size}" for size in batch_sizes),
    ]
    paper, lines = ratios.paper_teacher(rows), []
    for row in rows:
        if ratios.is_teacher(row):
            continue
        fair = ratios.fair_teacher(row, rows, quantity)
        ours, theirs = (None if one is None else ratios.ratio(row, one) for one in (paper, fair))
        name = MISSING if theirs is None else f"`{theirs.other}`"
        cells = [*_times_less(ours, batch_sizes), name, *_times_less(theirs, batch_sizes)]
        lines.append([f"`{row['name']}`", *cells])
    title = "" if paper is None else f"; the paper's teacher is `{paper['name']}`"
    return f"Equal quality is by {quantity['title']}{title}.\n\n{table(head, lines)}"


def _times_less(found: Ratio | None, batch_sizes: Sequence[str]) -> list[str]:
    if found is None:
        return [MISSING] * (1 + len(batch_sizes))
    return [_factor(found.operations), *(_factor(found.seconds.get(size)) for size in batch_sizes)]


def _factor(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def sentences(rows: Sequence[Row], quantities: Sequence[Quantity], figure: str) -> list[str]:
    """Which row reaches which aim, by every figure; of the main one with both ratios."""
    reference = ratios.full_student(rows)
    if reference is None:
        return [
            "* The student of two passes was not judged with all iterations: nothing to aim at."
        ]
    lines = []
    for index, (rule, aim) in enumerate(AIMS):
        for quantity in sorted(quantities, key=lambda one: one["name"] != figure):
            row = ratios.aimed_at(rows, quantity)[index]
            if row is None:
                continue
            lines.append(_aim(row, reference, quantity, rule, aim))
            if quantity["name"] == figure:
                lines[-1] += _both_ratios(row, rows, quantity)
    return lines


def _aim(row: Row, reference: Row, quantity: Quantity, rule: str, aim: float) -> str:
    ours, theirs = (format_value(measured(one["figures"], quantity)) for one in (row, reference))
    size = row["paper_tflop"]
    cost = "has no counterpart at the paper's size"
    if size is not None:
        cost = f"takes {size:.2f} TFLOP a clip at the paper's size (aim: {aim:g})"
    return (
        f"* {quantity['title']}, {rule} of `{reference['name']}` ({theirs}): the cheapest is "
        f"`{row['name']}` ({ours}), which {cost}."
    )


def _both_ratios(row: Row, rows: Sequence[Row], quantity: Quantity) -> str:
    found = [ratios.paper_teacher(rows), ratios.fair_teacher(row, rows, quantity)]
    names = ("the paper's teacher", "the cheapest teacher of equal quality")
    parts = []
    for other, name in zip(found, names, strict=True):
        if other is not None:
            one = ratios.ratio(row, other)
            times = [f"{_factor(less)} at batch {size}" for size, less in one.seconds.items()]
            measured_times = f"; by time {', '.join(times)}" if times else ""
            parts.append(f"{name}, `{one.other}`: {_factor(one.operations)}{measured_times}")
    return f" Fewer operations than {'; than '.join(parts)}." if parts else ""
