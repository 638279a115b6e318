"""The one error of a config, and how a field is checked."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

LONGEST = 300
"""Characters of a value in a message."""


class ConfigError(ValueError):
    """A field that does not exist, a value not allowed, or fields that do not fit together."""


def check(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises ConfigError naming field, value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} is {shown(value)}; allowed: {allowed}")


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, but for the middle of what is long."""
    text = repr(value)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


class Rule(NamedTuple):
    """What a number may be, and how to say it."""

    holds: Callable[[Any], bool]
    allowed: str


POSITIVE = Rule(lambda value: value > 0, "above 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "0 or more")
SHARE = Rule(lambda value: 0 <= value < 1, "from 0 up to, not including, 1")


def check_fields(config: Any, section: str, rule: Rule, *fields: str) -> None:
    """Raises ConfigError unless all these fields of a config obey the rule.

    Args:
      config: a dataclass.
      section: what to put in front of a field's name, "optimizer." or "".
      rule: what they may be.
      fields: their names.
    """
    for field in fields:
        value = getattr(config, field)
        check(rule.holds(value), section + field, value, rule.allowed)


def check_text(field: str, value: str) -> None:
    """Raises ConfigError unless `value` is text: a terminal of another encoding gives bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        shown = value.encode("utf-8", "backslashreplace").decode()
        raise ConfigError(f"{field} is {shown!r}, which is not UTF-8; allowed: text") from None


def check_choice(field: str, value: Any, choices: Any) -> None:
    """Raises ConfigError unless `value` is one of the `Literal` type `choices`."""
    check_name(field, value, typing.get_args(choices))


def check_name(field: str, value: Any, names: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of the names, of a table for instance."""
    names = tuple(names)
    check(value in names, field, value, "one of " + ", ".join(map(repr, names)))
