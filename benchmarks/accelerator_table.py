"""The results of `accelerator` as Markdown: a table for each kind of part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measure import describe_machine

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
GIB = 2**30


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / GIB:.2f}"


TIMES: tuple[Column, ...] = (
    ("clips", lambda row: str(row["batch_size"])),
    ("compile, s", lambda row: f"{row['compile_seconds']:.1f}"),
    ("first call, s", lambda row: f"{row['first_call_seconds']:.1f}"),
    ("median, ms", lambda row: f"{1e3 * row['median_seconds']:.1f}"),
    (
        "p10 to p90",
        lambda row: f"{1e3 * row['p10_seconds']:.1f} to {1e3 * row['p90_seconds']:.1f}",
    ),
    ("clips/s", lambda row: f"{row['clips_per_second']:.2f}"),
)
RATES: tuple[Column, ...] = (
    ("GFLOP a clip", lambda row: f"{row['flops_per_clip'] / 1e9:,.1f}"),
    ("TFLOP/s", lambda row: f"{row['flops_per_second'] / 1e12:.2f}"),
    ("of the peak rate", lambda row: _share(row["utilisation"])),
)
MEMORY: tuple[Column, ...] = (
    ("GiB, planned", lambda row: _gib(row["memory_bytes"])),
    ("GiB, most so far", lambda row: _gib(row["peak_device_bytes"])),
)
REAL_TIME: Column = ("s per s of audio", lambda row: f"{row['real_time_factor']:.4f}")
NAME: Column = ("program", lambda row: row["program"])
TABLES: Mapping[str, tuple[str, tuple[Column, ...]]] = {
    "training": ("Training steps", (NAME, *TIMES, *RATES, *MEMORY)),
    "sampler": ("Samplers", (NAME, *TIMES, REAL_TIME, *RATES, *MEMORY)),
    "front end": ("Front end", (NAME, *TIMES, *MEMORY)),
}


def to_markdown(results: Mapping[str, Any]) -> str:
    """Tables of what was measured, and a list of what was not.

    Args:
      results: "machine" and "rows", as `accelerator.collect` gives them.
    """
    machine = results["machine"]
    sections = ["nothing was measured" if machine is None else describe_machine(machine)]
    measured = [row for row in results["rows"] if "failed" not in row]
    for kind, (title, columns) in TABLES.items():
        rows = [[cell(row) for _, cell in columns] for row in measured if row["kind"] == kind]
        if rows:
            sections.append(f"### {title}\n\n{_table([name for name, _ in columns], rows)}")
    for row in measured:
        if row["kind"] == "profile":
            costs = [
                [cost["part"], f"{1e3 * cost['seconds']:.2f}", f"{cost['share']:.1%}"]
                for cost in row["costs"]
            ]
            table = _table(["operations of", "ms", "share"], costs)
            sections.append(f"### Where the time goes: {row['program']}\n\n{table}")
    missing = [f"* {row['name']}: {row['failed']}" for row in results["rows"] if "failed" in row]
    if missing:
        sections.append("### Not measured\n\n" + "\n".join(missing))
    return "\n\n".join(sections) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ruler, *rows))
