"""A measured figure: its value, its standard error, and how much stands behind it."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Measured:
    """One figure.

    Attributes:
      value: the figure.
      standard_error: of the value; None where it is not known.
      count: observations behind it; None where there is no such number.
      interval: bounds of its 95 % confidence interval; None where they are not known.
    """

    value: float
    standard_error: float | None = None
    count: int | None = None
    interval: tuple[float, float] | None = None


def proportion(hits: int, count: int) -> Measured:
    """A share of yes-or-no outcomes with its binomial standard error, sqrt(p (1 - p) / n).

    Outcomes count as independent.

    Args:
      hits: outcomes that are "yes".
      count: n, all outcomes.

    Raises:
      ValueError: there are no outcomes, or more hits than outcomes.
    """
    if not 0 <= hits <= count or count == 0:
        raise ValueError(f"{hits} hits of {count}; allowed: 0 to count hits, and a count above 0")
    value = hits / count
    return Measured(value, math.sqrt(value * (1.0 - value) / count), count)
