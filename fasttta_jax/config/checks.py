"""The one error of a config, and how a field is checked."""

from __future__ import annotations

import typing
from typing import Any


class ConfigError(ValueError):
    """A field that does not exist, a value not allowed, or fields that do not fit together."""


def check(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises ConfigError naming field, value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} is {value!r}; allowed: {allowed}")


def check_choice(field: str, value: Any, choices: Any) -> None:
    """Raises ConfigError unless `value` is one of the `Literal` type `choices`."""
    options = typing.get_args(choices)
    check(value in options, field, value, "one of " + ", ".join(map(repr, options)))
