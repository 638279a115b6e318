"""Values of a config as JSON and command lines write them."""

from __future__ import annotations

import ast
from typing import Any


def as_tuples(value: Any) -> Any:
    """Lists, which is what JSON makes of tuples, as tuples, at every depth."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def read_numbers(value: Any) -> Any:
    """Text such as "1,2,5" or "3, (0, 2), 1" as a tuple, lists as tuples.

    A name, and whatever else is not made of numbers, comes back as it is.
    """
    if not isinstance(value, str):
        return as_tuples(value)
    try:
        found = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value
    return as_tuples(found if isinstance(found, tuple | list) else (found,))
