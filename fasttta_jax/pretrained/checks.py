"""Checks that the sizes of published networks share."""

from __future__ import annotations

from typing import Any


def check_whole(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a whole number from 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number from 1")
