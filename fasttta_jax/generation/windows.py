"""Sequences of any length from a model of N tokens: windows, one after the other, that overlap.

A window is given what is known of its columns, because windows before it have made them or because
the caller has, and the sampler makes the rest. The last column of a window ends like a clip, so the
next window makes it anew, as one that goes on. The columns about the joint of two windows are then
made anew in a window that lies over it and knows the columns on both sides, and so are those about
the seam of a loop.
Dimensions: n clips, Z columns of a sequence, P columns of a window, G tokens per column, C
channels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

OVERLAP = 0.0625
"""Share of a window that it shares with the one before it."""
SEAM = 0.25
"""Share of a window that is made anew around a joint, or the seam of a loop."""

Sample = Callable[
    [int, "Window", Float[np.ndarray, "n P G C"], Bool[np.ndarray, "n P G"]],
    Float[np.ndarray, "n P G C"],
]
"""Tokens of a window, by its number, from what is known of it and where."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Columns that are sampled together.

    Attributes:
      first: number of the first of them.
      length: P.
      anew: those, counted in the window, that are made even where they are there already.
      circle: columns after which the sequence begins anew; 0 where it does not.
    """

    first: int
    length: int
    anew: range
    circle: int = 0

    @property
    def columns(self) -> Int[np.ndarray, " P"]:
        """Their numbers in the sequence."""
        columns = np.arange(self.first, self.first + self.length)
        return columns % self.circle if self.circle else columns


def advance(length: int) -> int:
    """Columns by which a window of `length` columns goes beyond the one before it.

    Raises:
      ValueError: such windows cannot overlap.
    """
    if length < 2:
        raise ValueError(
            "the model's clips are one column of tokens, so that windows cannot overlap; allowed: "
            "no more than its clip's seconds"
        )
    return length - _overlap(length) - (length > 2)


def _overlap(length: int) -> int:
    return max(1, round(OVERLAP * length))


def line(num_columns: int, length: int) -> tuple[Window, ...]:
    """Windows that cover so many columns, or more.

    Raises:
      ValueError: see `advance`.
    """
    if num_columns <= length:
        return (Window(0, length, range(length)),)
    step = advance(length)
    later = math.ceil((num_columns - length) / step)
    anew = range(_overlap(length), length)
    return tuple(
        Window(number * step, length, anew if number else range(length))
        for number in range(later + 1)
    )


def num_columns(windows: tuple[Window, ...]) -> int:
    """Z, columns that the windows of a line cover."""
    return max(window.first + window.length for window in windows)


def joined(line: tuple[Window, ...]) -> tuple[Window, ...]:
    """The windows of a line, and behind each but the first one that lies over its joint.

    A line whose windows are too short to know both sides of a joint stays as it is.
    """
    length = line[0].length
    if length < least_circle(length):
        return line
    over = (
        (window, _over(joint, length)) for window, joint in zip(line[1:], joints(line), strict=True)
    )
    return (line[0], *itertools.chain.from_iterable(over))


def joints(line: tuple[Window, ...]) -> tuple[int, ...]:
    """Where each window of a line but the first begins to make columns."""
    return tuple(window.first + window.anew.start for window in line[1:])


def seam(circle: int, length: int) -> Window:
    """The window over the seam of a loop of `circle` columns.

    Raises:
      ValueError: the loop is so short that nothing would be known.
    """
    if circle < least_circle(length):
        raise ValueError(f"a loop has {circle} columns; allowed: {least_circle(length)} or more")
    return _over(circle, length, circle)


def _over(joint: int, length: int, circle: int = 0) -> Window:
    """The window with a joint in its middle, about which it makes columns anew."""
    middle, width = length // 2, _width(length) // 2
    return Window(joint - middle, length, range(middle - width, middle + width), circle)


def _width(length: int) -> int:
    return max(2, round(SEAM * length))


def least_circle(length: int) -> int:
    """Columns of the shortest loop."""
    return 2 * (_width(length) // 2) + 2


def fill(
    windows: tuple[Window, ...],
    tokens: Float[np.ndarray, "n Z G C"],
    given: Bool[np.ndarray, "n Z G"],
    sample: Sample,
    *,
    made: bool = False,
    number: int = 0,
) -> Float[np.ndarray, "n Z G C"]:
    """The sequences with everything made that the windows cover.

    Args:
      windows: in the order in which they are made.
      tokens: what is known.
      given: where it is the caller's, who gets it back.
      sample: makes the tokens of a window; what it leaves as it was stays.
      made: whether all columns are there already.
      number: of the first window.
    """
    tokens = tokens.copy()
    there = np.full(tokens.shape[1], made)
    for index, window in enumerate(windows, number):
        columns = window.columns
        anew = np.isin(columns, columns[window.anew])
        known = given[:, columns] | (there[columns] & ~anew)[None, :, None]
        if not known.all():
            found = sample(index, window, tokens[:, columns], known)
            # In a circle shorter than the window, the columns nearest to its middle count.
            spare = max(0, window.length - window.circle) // 2 if window.circle else 0
            kept = slice(spare, spare + window.circle) if spare else slice(None)
            tokens[:, columns[kept]] = found[:, kept]
        there[columns] = True
    return tokens
