"""Bounds that the figures of an evaluation must meet, so that a run can fail by its sound.

A bound belongs to a row of the main table by its name. Rows that are not there are not judged; a
figure that was not measured does not meet its bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fasttta_jax.report.page import Gate, format_value

Figures = Mapping[str, float | None]


class Bound(NamedTuple):
    """The least that a figure of a row may be.

    Attributes:
      row: name of the row.
      figure: key of the figure.
      minimum: the bound.
      words: the figure in words.
    """

    row: str
    figure: str
    minimum: float
    words: str


def _demo() -> tuple[Bound, ...]:
    bounds = [
        Bound("real", "event_accuracy", 0.97, "event accuracy"),
        Bound("codec", "event_accuracy", 0.95, "event accuracy"),
    ]
    for row in ("teacher", "student"):
        bounds += [
            Bound(row, "event_accuracy", 0.85, "event accuracy"),
            Bound(row, "attribute_accuracy", 0.75, "attribute accuracy"),
            Bound(row, "recall_at_2", 0.6, "two-event recall@2"),
        ]
    return (*bounds, Bound("teacher", "times_slower", 3.0, "sampling time over the student's"))


GATES: dict[str, tuple[Bound, ...]] = {"demo": _demo()}
RUNS_JUDGED = ("teacher", "student")


def check_runs(name: str, runs: Mapping[str, str]) -> None:
    """Raises ValueError where there are no such gates, or they would judge none of the runs."""
    if name not in GATES:
        raise ValueError(f"gates is {name!r}; allowed: {sorted(GATES)}")
    if not set(runs) & set(RUNS_JUDGED):
        raise ValueError(
            f"gates is {name!r}, which judges runs named {' and '.join(RUNS_JUDGED)}; the runs are "
            f"named {', '.join(runs)}"
        )


def judge(name: str, rows: Mapping[str, Figures]) -> dict[str, tuple[Gate, ...]]:
    """The gates of every row, by its name.

    Args:
      name: which set of bounds.
      rows: the figures of each row; the comparison of sampling times is made only where there is
        a row "student" to compare with.
    """
    gates: dict[str, list[Gate]] = {row: [] for row in rows}
    for bound in GATES[name]:
        if bound.row not in rows or (bound.figure == "times_slower" and "student" not in rows):
            continue
        value = rows[bound.row].get(bound.figure)
        found = "not measured" if value is None else format_value(value)
        gates[bound.row].append(
            Gate(
                f"{bound.words} at least {bound.minimum:g} (found: {found})",
                value is not None and value >= bound.minimum,
            )
        )
    return {row: tuple(found) for row, found in gates.items()}
