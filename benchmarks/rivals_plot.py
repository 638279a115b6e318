"""Quality of rivals against network passes and operations, as a PNG for each setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.frontier_plot import costs_png
from benchmarks.rivals_plan import TEACHERS
from benchmarks.rivals_table import SYSTEMS
from fasttta_jax.report.spectrograms import LINE_COLOURS

COLOURS = dict(
    zip(
        SYSTEMS, (*LINE_COLOURS, "#c0457a", "#7a8f2a", "#38a3c7", "#8c5a3c", "#1c2128"), strict=True
    )
)
"""By system, the same in every plot."""


def rivals_png(results: Mapping[str, Any], setting: str, figure: str) -> bytes:
    """The rows of a setting, and the teachers; bars are one standard error.

    Args:
      results: what rivals.json holds.
      setting: of training.
      figure: the name of what is drawn; real clips after the codec are a dotted line.
    """
    quantity = next(one for one in results["quantities"] if one["name"] == figure)
    rows = [
        row | {"series": SYSTEMS[row["system"]]}
        for row in results["rows"]
        if row["setting"] in (setting, TEACHERS)
    ]
    costs = {
        "network passes": lambda row: row["passes"],
        "operations of a clip": lambda row: 1e9 * row["gflop"],
    }
    floor = results["references"].get("codec", {}).get(figure)
    colours = {SYSTEMS[name]: colour for name, colour in COLOURS.items()}
    return costs_png(rows, costs, quantity, floor, colours)
