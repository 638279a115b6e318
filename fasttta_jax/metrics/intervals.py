"""A measured figure: its value, its standard error, and how much stands behind it.

Dimensions: n clips, m reference clips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64


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

    def __post_init__(self) -> None:
        """Numbers of NumPy become Python's, as JSON needs them."""
        object.__setattr__(self, "value", float(self.value))
        if self.standard_error is not None:
            object.__setattr__(self, "standard_error", float(self.standard_error))
        if self.count is not None:
            object.__setattr__(self, "count", int(self.count))
        if self.interval is not None:
            low, high = self.interval
            object.__setattr__(self, "interval", (float(low), float(high)))


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A figure and how far each clip moves it: what intervals and comparisons are computed from.

    To first order, a set in which clip i stands w_i times, n in all, has the figure
    value + sum_i w_i influence_i / n. For a mean that is exact, and the influence of a clip is its
    distance to the mean.

    Source: Hampel, 1974 (the influence function); Efron, 1982, chapter 6 (errors from it).

    Attributes:
      value: the figure.
      influence: of each clip; the mean is 0.
      reference_influence: of each reference clip, where those are a sample of their own; None where
        they are fixed, or counted with the clips of the same prompts.
    """

    value: float
    influence: Float64[np.ndarray, " n"]
    reference_influence: Float64[np.ndarray, " m"] | None = None

    @classmethod
    def of_mean(cls, values: Float[np.ndarray, " n"]) -> Estimate:
        """The mean of one value a clip.

        Raises:
          ValueError: there are no values.
        """
        if len(values) == 0:
            raise ValueError("there are no clips, so their mean is not defined")
        mean = np.mean(values, dtype=np.float64)
        return cls(float(mean), np.asarray(values, np.float64) - mean)

    def paired(
        self, rows: Sequence[int] | None = None, reference_rows: Sequence[int] | None = None
    ) -> Estimate:
        """The same figure where clips and reference clips of one prompt are drawn together.

        What a prompt does to both often cancels, so this gives the smaller errors.

        Args:
          rows: the clips that have a counterpart; None where clip i is that of reference clip i.
          reference_rows: their counterparts, in the same order. Reference clips without a clip
            remain a sample of their own.

        Raises:
          ValueError: the rows are not pairs of these clips.
        """
        if self.reference_influence is None:
            return self
        num_clips, num_reference = len(self.influence), len(self.reference_influence)
        if rows is None or reference_rows is None:
            rows, reference_rows = range(num_clips), range(num_reference)
        if not len(set(rows)) == len(set(reference_rows)) == len(rows) == len(reference_rows):
            raise ValueError(
                f"{len(rows)} of {num_clips} clips and {len(reference_rows)} of {num_reference} "
                "reference clips cannot be paired: each needs one counterpart"
            )
        influence, remaining = self.influence.copy(), self.reference_influence.copy()
        influence[list(rows)] += num_clips / num_reference * remaining[list(reference_rows)]
        remaining[list(reference_rows)] = 0.0
        return Estimate(self.value, influence, remaining if len(rows) < num_reference else None)


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
