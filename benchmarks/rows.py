"""Rows of a benchmark, of which --only does some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar


class HasName(Protocol):
    """A row."""

    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=HasName)


def choose(rows: Sequence[Named], only: str) -> list[Named]:
    """The rows whose name a regular expression finds.

    Raises:
      ValueError: no row is left, or `only` is no regular expression.
    """
    try:
        chosen = [row for row in rows if re.search(only, row.name)]
    except re.error as error:
        raise ValueError(f"--only={only!r} is no regular expression: {error}") from error
    if not chosen:
        names = ", ".join(row.name for row in rows)
        raise ValueError(f"--only={only!r} finds none of the rows: {names}")
    return chosen
