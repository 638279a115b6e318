"""The results of the ablation sweep as Markdown: one table for each group of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fasttta_jax.evaluation.rows import SAMPLING
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.values import Value, format_value


def to_markdown(results: Mapping[str, Any]) -> str:
    """A page with the rows of sweep.json, group by group, and what a reader must know.

    Args:
      results: what `sweep` returns.
    """
    quantities = results["quantities"]
    references = [
        [*_cells(name, None, None, figures, quantities), format_value(None)]
        for name, figures in results["references"].items()
    ]
    parts = [
        "# Ablations\n",
        _introduction(results),
        "## References\n",
        _table(references, quantities),
    ]
    groups: dict[str, list[list[str]]] = {}
    for row in results["rows"]:
        figures = row["figures"] | {SAMPLING: row["sampling"]["median_ms"]}
        cells = _cells(row["name"], row["steps"], row["training_seconds"], figures, quantities)
        cells.append(f"{row['sampling']['first_call_seconds']:.1f}")
        groups.setdefault(row["group"], []).append(cells)
    for group, rows in groups.items():
        parts += [f"## {group}\n", _table(rows, quantities)]
    parts += [f"- {warning}" for warning in results["warnings"]]
    return "\n".join(parts).rstrip() + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    evaluation = results["settings"]["evaluation"]
    environment = results["settings"]["environment"]
    batch = results["rows"][0]["sampling"]["batch_size"]
    return (
        "± is one standard error. Rows that repeat a run and its way of decoding repeat its "
        f"figures. {evaluation['num_clips']} clips with one event, "
        f"{evaluation['num_scenes']} with two, {evaluation['num_energy_clips']} for the "
        f"energy score, seed {evaluation['seed']}. Training: seconds on this machine, compilation "
        "and validation "
        "included; of a run that was interrupted, what its last part comes to. Sampling: median of "
        f"warm calls for {batch} clips together, without the codec, all rows in turns; comparable "
        "within this page only. The first call compiles, or reads the compilation cache. "
        f"Machine: {environment['devices']}, {environment['machine']}, JAX "
        f"{environment['jax']}.\n"
    )


def _cells(
    name: str,
    steps: int | None,
    seconds: float | None,
    figures: Mapping[str, Any],
    quantities: Sequence[Mapping[str, str]],
) -> list[str]:
    values: list[Value] = [steps, None if seconds is None else round(seconds)]
    for quantity in quantities:
        value = figures.get(quantity["name"])
        error = figures.get(f"{quantity['name']}_standard_error")
        values.append(None if value is None else Measured(value, error))
    return [f"`{name}`", *map(format_value, values)]


def _table(rows: list[list[str]], quantities: Sequence[Mapping[str, str]]) -> str:
    head = ["variant", "steps", "training, s", *(quantity["title"] for quantity in quantities)]
    head.append("first call, s")
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *rows)) + "\n"
