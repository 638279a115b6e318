"""Figures as text, by one rule for pages, Markdown, terminals and logs.

A figure has the decimals of its standard error, and that has two digits where its first three are
at most 354, else one: 0.969 ± 0.013, but 0.87 ± 0.05. A 95 % interval counts as 3.92 errors wide.
Without an error there are three significant digits, and 1 counts as a share: 1.000.

Source: Particle Data Group, Review of Particle Physics, introduction, section 5.3 (Rounding).
"""

from __future__ import annotations

import math

import numpy as np

from fasttta_jax.metrics.intervals import Measured

Value = float | int | str | bool | np.number | np.bool_ | Measured | None
MISSING = "–"
WIDTH = 2 * 1.96
"""Of a 95 % interval, in standard errors."""
MOST_DECIMALS = 6
"""Beyond these, and from WHOLE_UNTIL on, a number is written with an exponent."""
WHOLE_UNTIL = 1e15


def format_value(value: Value) -> str:
    """A figure with its error, a dash for None; whole numbers and thousands are grouped."""
    return " ".join(filter(None, figure_and_error(value)))


def figure_and_error(value: Value) -> tuple[str, str]:
    """The two parts of `format_value`: "0.969" and "± 0.013", or "[0.944, 0.994]", or "".

    An error of zero, as where all of a few clips are right, says nothing and is left out.
    """
    if value is None:
        return MISSING, ""
    if isinstance(value, bool | np.bool_):
        return ("yes" if value else "no"), ""
    if isinstance(value, int | np.integer):
        return f"{int(value):,}", ""
    if isinstance(value, float | np.floating):
        return fixed(float(value), decimals(float(value))), ""
    if not isinstance(value, Measured):
        return value if isinstance(value, str) else str(value), ""
    error = standard_error(value)
    digits = decimals(value.value, error)
    figure = fixed(value.value, digits)
    if error is None:
        return figure, ""
    if value.interval is None:
        return figure, f"± {fixed(error, digits)}"
    low, high = (fixed(bound, digits) for bound in value.interval)
    return figure, f"[{low}, {high}]"


def decimals(value: float, error: float | None = None) -> int:
    """How many decimals a figure has.

    Args:
      value: the figure.
      error: its standard error, above 0; None where it is not known.
    """
    if error is not None:
        place = math.floor(math.log10(error))
        return max((1 if error / 10.0**place < 3.545 else 0) - place, 0)
    size = abs(value)
    if size == 0 or not math.isfinite(size):
        return 0
    return 3 if size == 1 else max(2 - math.floor(math.log10(size)), 0)


def standard_error(measured: Measured) -> float | None:
    """The error behind the digits of a figure; None where it is unknown, zero or not finite."""
    error = measured.standard_error
    if measured.interval is not None:
        error = (measured.interval[1] - measured.interval[0]) / WIDTH
    return error if error is not None and math.isfinite(error) and error > 0 else None


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with these decimals, zero without a minus; not a number is "NaN"."""
    sign = "+" if signed else ""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value) or decimals > MOST_DECIMALS or abs(value) >= WHOLE_UNTIL:
        return f"{value:{sign}.3g}"
    return f"{round(value, decimals) + 0.0:{sign},.{decimals}f}"
