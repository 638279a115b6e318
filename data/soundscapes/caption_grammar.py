"""Captions of scenes, drawn from a small grammar.

A caption is a sentence frame filled with one phrase per event. A phrase is a clause ("a low bell
rings far away"), a participle ("a low bell ringing far away") or a noun phrase ("a distant low
bell"). Each axis of each event is mentioned with probability MENTION_RATE, as an adjective or as an
adverbial, and a caption says nothing about the axes that it does not mention.

Held-out captions use their own frames, and may pair an adjective with an event that training never
pairs. Their event nouns and attribute words all occur in training captions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from data.soundscapes import events

MENTION_RATE = 0.6

Number = Literal["one", "mass", "many"]
Mentioned = dict[str, list[str]]
"""Event name to the axes that a caption mentions."""

Choice = TypeVar("Choice")

NOUNS: dict[str, tuple[tuple[str, Number], ...]] = {
    "siren": (("siren", "one"), ("emergency siren", "one")),
    "bell": (("bell", "one"), ("church bell", "one"), ("metal bell", "one")),
    "rain": (("rain", "mass"), ("rainfall", "mass")),
    "wind": (("wind", "one"), ("wind", "mass"), ("gusts of wind", "many")),
    "engine": (("engine", "one"), ("car engine", "one"), ("motor", "one")),
    "footsteps": (("footsteps", "many"), ("steps", "many")),
    "clock": (("clock", "one"), ("wall clock", "one")),
    "phone": (("phone", "one"), ("telephone", "one")),
    "bird": (("bird", "one"), ("songbird", "one")),
    "thunder": (("thunder", "mass"), ("peal of thunder", "one")),
    "alarm": (("alarm", "one"), ("warning alarm", "one")),
    "wave": (("waves", "many"), ("sea waves", "many"), ("ocean waves", "many")),
}

VERBS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "siren": (("wails", "wail", "wailing"), ("blares", "blare", "blaring")),
    "bell": (("rings", "ring", "ringing"), ("tolls", "toll", "tolling")),
    "rain": (("falls", "fall", "falling"), ("comes down", "come down", "coming down")),
    "wind": (("blows", "blow", "blowing"), ("howls", "howl", "howling")),
    "engine": (("runs", "run", "running"), ("chugs", "chug", "chugging")),
    "footsteps": (("goes by", "go by", "going by"), ("passes", "pass", "passing")),
    "clock": (("ticks", "tick", "ticking"), ("ticks away", "tick away", "ticking away")),
    "phone": (("rings", "ring", "ringing"), ("trills", "trill", "trilling")),
    "bird": (("sings", "sing", "singing"), ("chirps", "chirp", "chirping")),
    "thunder": (("rumbles", "rumble", "rumbling"), ("booms", "boom", "booming")),
    "alarm": (("beeps", "beep", "beeping"), ("goes off", "go off", "going off")),
    "wave": (("breaks", "break", "breaking"), ("rolls in", "roll in", "rolling in")),
}
"""Third person singular, plural and participle."""

ADJECTIVES: dict[tuple[str, str], tuple[str, ...]] = {
    ("pitch", "low"): ("low", "low-pitched", "deep"),
    ("pitch", "high"): ("high", "high-pitched", "shrill"),
    ("speed", "slow"): ("slow", "slow-paced", "unhurried"),
    ("speed", "fast"): ("fast", "quick", "rapid"),
    ("distance", "near"): ("nearby", "close"),
    ("distance", "far"): ("distant", "faraway"),
}
ADVERBIALS: dict[tuple[str, str], tuple[str, ...]] = {
    ("pitch", "low"): ("at a low pitch", "in a low tone", "in a deep tone"),
    ("pitch", "high"): ("at a high pitch", "in a high tone", "in a shrill tone"),
    ("speed", "slow"): ("slowly", "at a slow pace", "unhurriedly"),
    ("speed", "fast"): ("quickly", "rapidly", "at a fast pace"),
    ("distance", "near"): ("nearby", "close by", "up close"),
    ("distance", "far"): ("far away", "in the distance", "far off"),
}

FRAMES: dict[str, tuple[str, ...]] = {
    "single": (
        "{0:clause}",
        "{0:participle}",
        "{0:noun}",
        "the sound of {0:participle}",
        "the sound of {0:noun}",
        "the noise of {0:noun}",
        "we hear {0:participle}",
        "you can hear {0:noun}",
        "listen to {0:participle}",
        "a clip of {0:participle}",
        "audio in which {0:clause}",
        "nothing but {0:noun}",
    ),
    "together": (
        "{0:clause} while {1:clause}",
        "{0:clause} as {1:clause}",
        "{0:participle} and {1:participle} at the same time",
        "{0:noun} and {1:noun} together",
        "{0:noun} together with {1:noun}",
        "the sound of {0:participle} over {1:noun}",
        "we hear {0:participle} while {1:clause}",
        "both {0:noun} and {1:noun} at once",
    ),
    "sequence": (
        "{0:clause}, then {1:clause}",
        "{0:participle}, then {1:participle}",
        "{0:noun} and then {1:noun}",
        "{0:noun} followed by {1:noun}",
        "first {0:participle}, then {1:participle}",
        "{0:clause} before {1:clause}",
        "{1:clause} after {0:noun}",
        "we hear {0:participle}, followed by {1:participle}",
    ),
}
LONG_FRAMES: tuple[tuple[str, str, str], ...] = (
    ("{0:clause}", ", then {0:clause}", ", and then {0:clause}"),
    ("{0:participle}", ", then {0:participle}", ", then {0:participle}"),
    ("{0:noun}", ", then {0:noun}", ", followed by {0:noun}"),
    ("first {0:participle}", ", then {0:participle}", ", and at last {0:participle}"),
    ("we hear {0:noun}", ", after it {0:noun}", " and after it {0:noun}"),
    ("one after the other: {0:noun}", ", {0:noun}", " and {0:noun}"),
)
"""Sequences of three events or more: how the first, those between and the last are written."""

HELD_OUT_FRAMES: dict[str, tuple[str, ...]] = {
    "single": (
        "a recording of {0:participle}",
        "somewhere one hears {0:noun}",
        "{0:noun} can be heard",
        "it seems that {0:clause}",
        "in this scene {0:clause}",
    ),
    "together": (
        "a recording of {0:noun} together with {1:noun}",
        "somewhere one hears {0:participle} while {1:clause}",
        "{0:noun} and {1:noun} can be heard at the same time",
        "it seems that {0:clause} as {1:clause}",
        "{0:clause}, and all the while {1:clause}",
    ),
    "sequence": (
        "a recording of {0:noun} followed by {1:noun}",
        "somewhere one hears {0:participle}, then {1:participle}",
        "{0:noun} can be heard before {1:noun}",
        "it seems that {0:clause}, then {1:clause}",
        "in the beginning {0:clause}, and then {1:clause}",
    ),
}
"""Frames by arrangement; field {i:form} takes event i of the scene in one of the three forms."""

HELD_OUT_LONG_FRAMES: tuple[tuple[str, str, str], ...] = (
    ("a recording of {0:noun}", ", then {0:noun}", " and then {0:noun}"),
    ("it seems that {0:clause}", ", then {0:clause}", ", and then {0:clause}"),
    ("in the beginning {0:clause}", ", then {0:clause}", ", and at last {0:clause}"),
)


def held_out_adjective(event: str, axis: str, value: str) -> str | None:
    """The one adjective for `value` that training captions never pair with `event`.

    Distance adjectives are too few to hold any out, which gives None.
    """
    if axis == "distance":
        return None
    rivals = [name for name in events.EVENTS if axis in events.EVENT_AXES[name]]
    words = ADJECTIVES[axis, value]
    return words[rivals.index(event) % len(words)]


def _pick(rng: np.random.Generator, options: Sequence[Choice]) -> Choice:
    return options[int(rng.integers(len(options)))]


@dataclasses.dataclass(frozen=True)
class _Phrase:
    """One event, to be written out in whichever form a frame asks for."""

    event: str
    mentions: dict[str, str]
    rng: np.random.Generator
    held_out: bool

    def __format__(self, form: str) -> str:
        noun, number = _pick(self.rng, NOUNS[self.event])
        adjectives, adverbials = [], []
        for axis, value in self.mentions.items():
            # A noun phrase has no verb to carry "slowly", but it can be "far away".
            if (form != "noun" or axis == "distance") and self.rng.random() < 0.5:
                adverbials.append(_pick(self.rng, ADVERBIALS[axis, value]))
            else:
                adjectives.append(self._adjective(axis, value))
        adjectives = [adjectives[i] for i in self.rng.permutation(len(adjectives))]
        words = " ".join([*adjectives, noun])
        article = {"one": "an" if words[0] in "aeiou" else "a", "mass": "", "many": ""}[number]
        singular, plural, participle = _pick(self.rng, VERBS[self.event])
        verb = {
            "clause": plural if number == "many" else singular,
            "participle": participle,
            "noun": "",
        }[form]
        return " ".join(part for part in (article, words, verb, *adverbials) if part)

    def _adjective(self, axis: str, value: str) -> str:
        words = ADJECTIVES[axis, value]
        if not self.held_out:
            reserved = held_out_adjective(self.event, axis, value)
            words = tuple(word for word in words if word != reserved)
        return _pick(self.rng, words)


def describe(
    scene: events.Scene, rng: np.random.Generator, held_out: bool
) -> tuple[str, Mentioned]:
    """One caption of a scene.

    Args:
      scene: what to describe.
      rng: where every choice comes from.
      held_out: True for test wordings, False for training wordings.

    Returns:
      The caption, in lower case without a full stop, and the axes it mentions for every event.
    """
    mentions = {
        event: {
            axis: scene.attributes[event][axis]
            for axis in events.EVENT_AXES[event]
            if rng.random() < MENTION_RATE
        }
        for event in scene.events
    }
    phrases = [_Phrase(event, mentions[event], rng, held_out) for event in scene.events]
    if scene.arrangement == "together" and rng.random() < 0.5:
        phrases.reverse()
    if len(phrases) > 2:
        first, between, last = _pick(rng, HELD_OUT_LONG_FRAMES if held_out else LONG_FRAMES)
        frames = (first, *[between] * (len(phrases) - 2), last)
        caption = "".join(frame.format(one) for frame, one in zip(frames, phrases, strict=True))
    else:
        frame = _pick(rng, (HELD_OUT_FRAMES if held_out else FRAMES)[scene.arrangement])
        caption = frame.format(*phrases)
    return caption, {event: list(axes) for event, axes in mentions.items()}
