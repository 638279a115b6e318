"""The results of the ablation sweep as Markdown: one table for each group of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fasttta_jax.report.page import (
    Measured,
    Value,
    format_value,
)

COLUMNS = (
    "variant",
    "steps",
    "training, s",
    "event accuracy",
    "attribute accuracy",
    "two-event recall@2",
    "Fréchet (tagger)",
    "energy score",
    "sampling, ms",
)
SHARES = ("event_accuracy", "attribute_accuracy", "recall_at_2")


def to_markdown(results: Mapping[str, Any]) -> str:
    """A page with the rows of sweep.json, group by group, and what a reader must know.

    Args:
      results: what `sweep` returns.
    """
    references = [
        _cells(name, None, None, figures, None) for name, figures in results["references"].items()
    ]
    parts = ["# Ablations\n", _introduction(results), "## References\n", _table(references)]
    groups: dict[str, list[list[str]]] = {}
    for row in results["rows"]:
        median = row["sampling"]["median_ms"]
        cells = _cells(row["name"], row["steps"], row["training_seconds"], row["figures"], median)
        groups.setdefault(row["group"], []).append(cells)
    for group, rows in groups.items():
        parts += [f"## {group}\n", _table(rows)]
    parts += [f"- {remark}" for remark in results["remarks"]]
    return "\n".join(parts).rstrip() + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    evaluation = results["settings"]["evaluation"]
    environment = results["settings"]["environment"]
    batch = results["rows"][0]["sampling"]["batch_size"]
    return (
        "± is one standard error. Rows that repeat a run and its way of decoding repeat its "
        f"figures. {evaluation['num_clips']} clips with one event, {evaluation['num_scenes']} "
        f"with two, {evaluation['num_energy_clips']} for the energy score, seed "
        f"{evaluation['seed']}. Training: seconds on this machine, compilation and validation "
        "included; of a run that was interrupted, what its last part comes to. Sampling: median of "
        f"warm calls for {batch} clips together, without the codec, all rows in turns; comparable "
        f"within this page only. Machine: {environment['devices']}, {environment['machine']}, JAX "
        f"{environment['jax']}.\n"
    )


def _cells(
    name: str,
    steps: int | None,
    seconds: float | None,
    figures: Mapping[str, Any],
    median_ms: float | None,
) -> list[str]:
    energy = figures.get("energy")
    values: list[Value] = [
        steps,
        None if seconds is None else round(seconds),
        *(_measured(figures[share], figures.get(f"{share}_standard_error")) for share in SHARES),
        figures["frechet"],
        _measured(energy["mean"], energy["standard_error"]) if energy else None,
        median_ms,
    ]
    return [f"`{name}`", *map(format_value, values)]


def _measured(value: float | None, error: float | None) -> Value:
    return value if value is None or error is None else Measured(value, error)


def _table(rows: list[list[str]]) -> str:
    ruler = ["---", *["---:"] * (len(COLUMNS) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (COLUMNS, ruler, *rows)) + "\n"
