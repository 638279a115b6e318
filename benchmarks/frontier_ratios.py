"""How much faster, at which quality: the arithmetic of the frontier, on rows as JSON has them.

Two rows are of equal quality by a figure where one is no worse than the other by more than the
standard error of that other's figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frontier_grid import STUDENT

Row = Mapping[str, Any]
Quantity = Mapping[str, str]
"""Name, title, and whether "higher" or "lower" is better."""
NEAR = 0.10
"""Of a figure: how much worse the second aim lets it be."""
AIMS = (("within one standard error", 1.63), ("within 10 %", 0.72))
"""TFLOP of a clip at the paper's size: 8.5 times below its teacher, and below a fair one."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times less a row takes than another.

    Attributes:
      other: name of the other.
      operations: of a clip.
      seconds: of a batch, by its size as text, where both were timed.
    """

    other: str
    operations: float
    seconds: Mapping[str, float]


def is_teacher(row: Row) -> bool:
    """Whether a row is sampled by diffusion."""
    return row["sampling_steps"] is not None


def seconds(row: Row, batch: str) -> float | None:
    """Of a batch; None where it was not timed."""
    return row["times"].get(batch, {}).get("seconds")


def ratio(row: Row, other: Row) -> Ratio:
    """How many times less `row` takes than `other`."""
    times = {}
    for batch in row["times"]:
        ours, theirs = seconds(row, batch), seconds(other, batch)
        if ours is not None and theirs is not None:
            times[batch] = theirs / ours
    return Ratio(other["name"], operations(other) / operations(row), times)


def value(row: Row, quantity: Quantity) -> float | None:
    """A figure, turned so that lower is better; None where it was not measured."""
    found = (row["figures"] or {}).get(quantity["name"])
    if found is None:
        return None
    return found if quantity["better"] == "lower" else -found


def as_good(row: Row, reference: Row, quantity: Quantity) -> bool:
    """Whether a row is no worse than the reference by more than the reference's standard error."""
    ours, theirs = value(row, quantity), value(reference, quantity)
    if ours is None or theirs is None:
        return False
    return ours <= theirs + (reference["figures"].get(f"{quantity['name']}_standard_error") or 0.0)


def nearly_as_good(row: Row, reference: Row, quantity: Quantity) -> bool:
    """Whether a row is no worse than the reference by more than a tenth of its figure."""
    ours, theirs = value(row, quantity), value(reference, quantity)
    return ours is not None and theirs is not None and ours <= theirs + NEAR * abs(theirs)


def operations(row: Row) -> float:
    """Of a clip, in GFLOP."""
    return row["gflop"]


def paper_teacher(rows: Sequence[Row]) -> Row | None:
    """The teacher with its most iterations and diffusion steps."""
    teachers = filter(is_teacher, rows)
    return max(teachers, key=lambda row: (row["iterations"], row["sampling_steps"]), default=None)


def fair_teacher(row: Row, rows: Sequence[Row], quantity: Quantity) -> Row | None:
    """The cheapest teacher of equal quality."""
    teachers = filter(is_teacher, rows)
    equal = (other for other in teachers if as_good(other, row, quantity))
    return min(equal, key=operations, default=None)


def full_student(rows: Sequence[Row]) -> Row | None:
    """The student of two passes with as many iterations as the paper's teacher.

    None where it was not judged.
    """
    teacher = paper_teacher(rows)
    for row in rows:
        is_full = teacher is None or row["iterations"] == teacher["iterations"]
        if row["series"] == STUDENT and row["figures"] and is_full:
            return row
    return None


def aimed_at(rows: Sequence[Row], quantity: Quantity) -> list[Row | None]:
    """For each of `AIMS` the cheapest row that is as good as the full student."""
    reference = full_student(rows)
    if reference is None:
        return [None] * len(AIMS)
    students = [row for row in rows if not is_teacher(row)]
    rules = (as_good, nearly_as_good)
    return [
        min(
            (row for row in students if rule(row, reference, quantity)),
            key=operations,
            default=None,
        )
        for rule in rules
    ]
