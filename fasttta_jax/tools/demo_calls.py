"""What the web page asks of a model: values of its fields are checked, and a clip is made.

Whatever a visitor types, the outcome is a clip or a sentence that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import textwrap
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fasttta_jax.generation.edits import Edits
from fasttta_jax.generation.pipeline import Clip, Pipeline
from fasttta_jax.generation.sampler import MAX_SEED
from fasttta_jax.text.vocabulary import note

MOST_LETTERS = 500
"""Of a prompt; captions have a tenth of that."""
LONGEST_SECONDS = 60.0
"""Of a clip; `generate.py` makes longer ones."""
MOST_GUIDANCE = 20.0
FILES = {"audio": "a sound to keep a part of", "vary": "a sound to vary"}
TEXTS = {"keep": "the seconds to keep, such as 0-1", "timeline": "what is to be heard when"}


class RefusedError(ValueError):
    """What a visitor asked for cannot be made; the message is shown in the page."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The fields that all tabs of the page have, as they were typed.

    Attributes:
      prompt: what is to be heard.
      negative: what is not to be heard; "" is nothing.
      seed: a whole number; "" is 0.
      seconds: length; "" is the model's, or what an edit says.
      iterations: of decoding; "" is the model's.
      guidance: its strength; "" is the model's.
    """

    prompt: str
    negative: str = ""
    seed: str = ""
    seconds: str = ""
    iterations: str = ""
    guidance: str = ""


class Made(NamedTuple):
    """A clip and a line about it."""

    clip: Clip
    note: str


def make(pipeline: Pipeline, asked: Asked, **edits: Any) -> Made:
    """Makes the clip that is asked for.

    Args:
      pipeline: the model.
      asked: fields that all tabs have.
      **edits: those of a tab, by their names in `generation.edits.Edits`.

    Raises:
      RefusedError: a value is missing or not allowed, a sound cannot be used, or the model gives
        values that are not finite.
    """
    arguments = _arguments(pipeline, asked, edits)
    began = time.perf_counter()
    try:
        (clip,) = pipeline.generate([arguments.pop("prompt")], **arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        raise RefusedError(_sentence(str(error), edits)) from error
    took = time.perf_counter() - began
    lines = [f"{clip.seconds:.2f} s of sound from seed {clip.seed}, made in {took:.1f} s."]
    texts = [clip.prompt, *(entry.text for entry in Edits(**edits).entries)]
    unknown = dict.fromkeys(word for text in texts for word in pipeline.unknown_words(text))
    if unknown:
        lines.append(_sentence(note(list(unknown), pipeline.known_words)))
    return Made(clip, "\n".join(lines))


def _arguments(pipeline: Pipeline, asked: Asked, edits: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Pipeline.generate`, with the prompt among them."""
    for name, words in (FILES | TEXTS).items():
        if name in edits and not edits[name]:
            raise RefusedError(f"Give {words}.")
    prompt = _text("the prompt", asked.prompt)
    if not prompt and not edits.get("timeline"):
        raise RefusedError("The prompt is empty: say what is to be heard.")
    if "timeline" in edits:
        edits = {**edits, "timeline": _text("the timeline", edits["timeline"])}
    most = pipeline.trained.config.model.num_tokens
    seed = _number("seed", asked.seed, 0, MAX_SEED, whole=True)
    return {
        "prompt": prompt,
        "negative": _text("the negative prompt", asked.negative),
        "seed": seed or 0,
        "seconds": _number("seconds", asked.seconds, 0, LONGEST_SECONDS, above=True),
        "num_iterations": _number("iterations", asked.iterations, 1, most, whole=True),
        "guidance_scale": _number("guidance", asked.guidance, 0, MOST_GUIDANCE),
        **edits,
    }


def _text(name: str, text: str) -> str:
    found = text.strip()
    if len(found) > MOST_LETTERS:
        raise RefusedError(
            _sentence(f"{name} has {len(found):,} letters; allowed: up to {MOST_LETTERS}")
        )
    return found


def _number(
    name: str,
    text: str,
    lowest: float,
    highest: float,
    *,
    whole: bool = False,
    above: bool = False,
) -> float | None:
    """The value of a field; None where it is empty."""
    if not text.strip():
        return None
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    if lowest <= number <= highest and not (above and number == lowest):
        return number
    kind = "whole numbers from " if whole else "above " if above else ""
    shown = textwrap.shorten(text, 40, placeholder=" ...")
    raise RefusedError(_sentence(f"{name} is {shown}; allowed: {kind}{lowest:g} to {highest:,.0f}"))


def _sentence(words: str, edits: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A message that begins and ends like a sentence, and names files as the visitor does."""
    words = words[:1].upper() + words[1:].rstrip(".") + "."
    for name in FILES:
        if path := edits.get(name):
            words = words.replace(str(path), pathlib.Path(path).name)
    return words
