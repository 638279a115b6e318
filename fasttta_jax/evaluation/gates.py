"""Gates: bounds that the figures of an evaluation must meet, so that a run can fail by its sound.

A bound belongs to a row of the main table by its name. Rows that are not there are not checked; a
figure that was not measured does not meet its bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.rows import REFERENCES, TIMES_SLOWER
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.page import Gate
from fasttta_jax.report.values import decimals, fixed, standard_error


class Bound(NamedTuple):
    """What a figure of a row must be.

    Attributes:
      row: name of the row.
      figure: name of its quantity.
      limit: the bound.
      side: on which side of the bound the figure must lie.
    """

    row: str
    figure: str
    limit: float
    side: Literal["at least", "at most"] = "at least"


def _demo() -> tuple[Bound, ...]:
    bounds = [Bound("real", "event_accuracy", 0.97), Bound("codec", "event_accuracy", 0.95)]
    for row in ("teacher", "student", "guided"):
        bounds += [
            Bound(row, "event_accuracy", 0.85),
            Bound(row, "attribute_accuracy", 0.75),
            Bound(row, "recall_at_k", 0.6),
        ]
    return (*bounds, Bound("teacher", TIMES_SLOWER, 3.0))


GATES: dict[str, tuple[Bound, ...]] = {"demo": _demo()}


def check_rows(name: str, rows: Sequence[str]) -> None:
    """Raises ValueError where there are no such gates, or they bound none of the rows."""
    if name not in GATES:
        raise ValueError(f"gates is {name!r}; allowed: {sorted(GATES)}")
    bounded = dict.fromkeys(bound.row for bound in GATES[name])
    runs = [row for row in bounded if row not in REFERENCES]
    if not set(rows) & set(runs):
        raise ValueError(
            f"gates is {name!r}, which bounds runs named {' and '.join(runs)}; the runs are "
            f"named {', '.join(rows)}"
        )


def check(
    bounds: Sequence[Bound],
    rows: Mapping[str, Mapping[str, Measured]],
    quantities: Sequence[Quantity],
) -> dict[str, tuple[Gate, ...]]:
    """The gates of every row, by its name.

    Args:
      bounds: what is demanded.
      rows: the figures of each row; the comparison of sampling times is made only where there is
        a row "student" to compare with.
      quantities: how the figures are called.
    """
    titles = {quantity.name: quantity.title for quantity in quantities}
    gates: dict[str, list[Gate]] = {row: [] for row in rows}
    for bound in bounds:
        if bound.row not in rows or (bound.figure == TIMES_SLOWER and "student" not in rows):
            continue
        measured = rows[bound.row].get(bound.figure)
        found = "not measured" if measured is None else _found(bound, measured)
        title = titles.get(bound.figure, bound.figure)
        gates[bound.row].append(
            Gate(bound.row, title, f"{bound.side} {bound.limit:g}", found, _passed(bound, measured))
        )
    return {row: tuple(found) for row, found in gates.items()}


def _passed(bound: Bound, measured: Measured | None) -> bool:
    return measured is not None and _meets(bound, measured.value)


def _meets(bound: Bound, value: float) -> bool:
    return value >= bound.limit if bound.side == "at least" else value <= bound.limit


def _found(bound: Bound, measured: Measured) -> str:
    """The figure, with more decimals than usual where rounding would belie the verdict."""
    value = measured.value
    digits = decimals(value, standard_error(measured))
    while math.isfinite(value) and _meets(bound, round(value, digits)) != _meets(bound, value):
        digits += 1
    return fixed(value, digits)
