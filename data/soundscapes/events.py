"""What a soundscape can hold: twelve sound events, their axes, and scenes of one to four of them.

Every event varies along exactly two axes: one of its own (pitch or speed) and distance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

AXES: dict[str, tuple[str, str]] = {
    "pitch": ("low", "high"),
    "speed": ("slow", "fast"),
    "distance": ("near", "far"),
}
EVENT_AXES: dict[str, tuple[str, str]] = {
    "siren": ("pitch", "distance"),
    "bell": ("pitch", "distance"),
    "rain": ("speed", "distance"),
    "wind": ("pitch", "distance"),
    "engine": ("speed", "distance"),
    "footsteps": ("speed", "distance"),
    "clock": ("speed", "distance"),
    "phone": ("pitch", "distance"),
    "bird": ("pitch", "distance"),
    "thunder": ("speed", "distance"),
    "alarm": ("pitch", "distance"),
    "wave": ("speed", "distance"),
}
EVENTS: tuple[str, ...] = tuple(EVENT_AXES)
ARRANGEMENTS: dict[str, tuple[int, ...]] = {"single": (1,), "together": (2,), "sequence": (2, 3, 4)}
"""How the events of a scene lie in time, and how many they may be."""

Attributes = Mapping[str, str]
"""Axis name to value, such as {"pitch": "low", "distance": "far"}."""


def check_attributes(event: str, attributes: Attributes) -> None:
    """Raises ValueError unless `attributes` gives an allowed value to both axes of `event`."""
    if event not in EVENT_AXES:
        raise ValueError(f"event is {event!r}; allowed: {EVENTS}")
    axes = EVENT_AXES[event]
    if set(attributes) != set(axes):
        raise ValueError(f"attributes of {event!r} name the axes {sorted(attributes)}; need {axes}")
    for axis in axes:
        if attributes[axis] not in AXES[axis]:
            raise ValueError(
                f"attribute {axis!r} of {event!r} is {attributes[axis]!r}; allowed: {AXES[axis]}"
            )


@dataclasses.dataclass(frozen=True)
class Scene:
    """One event, or two to four different ones.

    Attributes:
      arrangement: "single", "together" (two that last the whole clip) or "sequence" (two to four,
        an equal part of the clip each).
      events: event names, in the order of time for a sequence.
      attributes: the attributes of every event.
    """

    arrangement: str
    events: tuple[str, ...]
    attributes: Mapping[str, Attributes]

    def __post_init__(self) -> None:
        allowed = ARRANGEMENTS.get(self.arrangement)
        if allowed is None:
            raise ValueError(
                f"scene.arrangement is {self.arrangement!r}; allowed: {tuple(ARRANGEMENTS)}"
            )
        if len(self.events) not in allowed or len(set(self.events)) != len(self.events):
            raise ValueError(
                f"scene.events is {self.events}; a {self.arrangement!r} scene "
                f"holds {' or '.join(map(str, allowed))} different event(s)"
            )
        if set(self.attributes) != set(self.events):
            raise ValueError(
                f"scene.attributes describes {sorted(self.attributes)}; "
                f"scene.events is {self.events}"
            )
        for event in self.events:
            check_attributes(event, self.attributes[event])
