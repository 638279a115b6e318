"""A text for each stretch of time: "0-4 rain; 2-3 thunder".

A column of tokens follows the texts of its time. Where several hold, each counts alike for as much
of the column as it covers; where none does, the clip's prompt holds.
Dimensions: P token columns, X texts, the prompt first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fasttta_jax.config.checks import shown
from fasttta_jax.generation.seconds import NUMBER, check_seconds

_ENTRY = re.compile(rf"\s*{NUMBER}\s*-\s*{NUMBER}\s+(\S.*?)\s*", re.DOTALL)


class TimelineError(ValueError):
    """A timeline that cannot be followed; names the part."""


class Entry(NamedTuple):
    """What is to be heard for a while.

    Attributes:
      start: in seconds.
      end: in seconds.
      text: what.
    """

    start: float
    end: float
    text: str


def parse_timeline(text: str) -> tuple[Entry, ...]:
    """Entries START-END TEXT with semicolons between them, in seconds; they may overlap.

    Raises:
      TimelineError: a part is not of that form, or ends before it starts.
      ValueError: one ends beyond a day.
    """
    entries = []
    for part in text.split(";"):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise TimelineError(
                f"{shown(part.strip())} is no part of a timeline; write START-END TEXT in seconds, "
                "with semicolons between the parts, such as '0-4 rain; 2-3 thunder'"
            )
        entry = Entry(float(match[1]), float(match[2]), match[3])
        if entry.start >= entry.end:
            raise TimelineError(
                f"{shown(part.strip())} ends at {entry.end:g} s; allowed: after its start, "
                f"{entry.start:g}"
            )
        check_seconds(f"the end of {shown(part.strip())}", entry.end)
        entries.append(entry)
    return tuple(entries)


def weights(
    entries: tuple[Entry, ...], num_columns: int, column_seconds: float
) -> tuple[tuple[str, ...], Float[np.ndarray, "P X"]]:
    """The different texts of the entries, and the share of each, behind the prompt's, in a column.

    Args:
      entries: of the timeline.
      num_columns: P.
      column_seconds: what a column stands for.

    Returns:
      Texts, and shares that sum to 1, float32 [P, 1 + texts].
    """
    texts = tuple(dict.fromkeys(entry.text for entry in entries))
    # Between two edges nothing changes, so that every piece of a column has one set of texts.
    edges = np.arange(num_columns + 1) * column_seconds
    inner = [time for entry in entries for time in entry[:2] if time < edges[-1]]
    times = np.unique(np.concatenate([edges, inner]))
    middle, length = (times[:-1] + times[1:]) / 2, np.diff(times)
    counts = np.zeros((len(middle), 1 + len(texts)))
    for entry in entries:
        counts[:, 1 + texts.index(entry.text)] += (entry.start < middle) & (middle < entry.end)
    counts[:, 0] = counts.sum(axis=1) == 0
    shares = length[:, None] * counts / counts.sum(axis=1, keepdims=True)
    found = np.zeros((num_columns, 1 + len(texts)))
    columns = np.clip((middle / column_seconds).astype(int), 0, num_columns - 1)
    np.add.at(found, columns, shares / column_seconds)
    return texts, (found / found.sum(axis=1, keepdims=True)).astype(np.float32)
