"""What people and pages ask of a model: arguments of `Pipeline.generate`, and fields of the page.

Arguments are checked before the first clip, of which none is made here: the checks are what is
tried. What passes them must be what a sampler takes.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jaxtyping
import numpy as np

from fasttta_jax.generation.pipeline import Clip, Pipeline
from fasttta_jax.tools.demo_calls import Asked, RefusedError, make
from tests.campaigns.draws import Draw
from tests.campaigns.families.configs import LISTS, NUMBERS, TEXTS
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, Kind, Refused, expect, may_refuse, unchanged
from tests.support.sound_files import sounds

FIELDS = (
    "0", "1", "-1", "1.5", "nan", "inf", "1e400", " 7 ", "", "٣", "1_000", "0x1", "é", "x" * 9000,
    "9" * 5000, "\0", "\udce9", "a dog", "0-1", "1-0", "0-1,2-3", "0-nan", "-1-2", "0-1e9", "0-0",
    "0-1 rain", "0-1 rain; 0.5-2 dog", "0-1", ";", "0-1 ;", "0-99999 rain", "0.1-0.2 \u2028",
)  # fmt: skip
PROMPTS: tuple[Any, ...] = (
    ["rain"], [], ["rain", "dog"], [""], "rain", ["\udce9"], ["x" * 5000], ["\0"], ("a",), range(0),
)  # fmt: skip
ARGUMENTS = {
    "prompts": PROMPTS,
    "seed": NUMBERS[:18],
    "seeds": ([1], [1, 2], [-1], [2**33], [], range(1), np.array([3])),
    "negative": ("", "dog", ["dog"], ["a", "b"], "\udce9", []),
    "guidance_scale": (
        1.0,
        0.0,
        -1.0,
        float("nan"),
        float("inf"),
        1e30,
        [2.0],
        [None],
        [-1.0],
        1e300,
    ),
    "num_iterations": (1, 0, -1, 8, 9, 10**9, 2),
    "counts": (*TEXTS, *LISTS),
    "order": (*TEXTS, *LISTS),
    "guided": (*TEXTS, *LISTS),
    "temperature": (1.0, 0.0, -1.0, float("nan"), float("inf"), 1e300),
    "seconds": (0.64, 0.0, -1.0, float("nan"), float("inf"), 1e9, 1e300, [0.3], [None], 1e-9, 5.0),
    "keep": FIELDS,
    "share": (0.3, 0.0, 1.0, -1.0, 2.0, float("nan"), 1e-30),
    "timeline": FIELDS,
    "loop": (True, False),
    "audio": ("sound.wav", "nothing.wav", "empty.wav", ""),
    "vary": ("sound.wav", "nothing.wav", "empty.wav", ""),
    "batch_size": (1, 0, -1, 10**6, 3),
    "max_seconds": (1.0, 0.0, -1.0, float("nan"), float("inf"), 1e9),
}
WORDS = (
    "prompt", "seed", "negative", "guidance", "iterations", "counts", "order", "guided", "seconds",
    "temperature", "keep", "share", "timeline", "loop", "audio", "vary", "batch_size", "wav",
    "token",
)  # fmt: skip


@functools.cache
def _pipeline(path: str) -> Pipeline:
    return Pipeline.open(path)


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    sounds(folder, "sound.wav", seconds=0.64)
    (folder / "empty.wav").write_bytes(b"")
    pipeline = _pipeline(str(world.exported))
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with unchanged(folder):
            return draw.pick((_generate, _page))(pipeline, draw, folder)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _value(draw: Draw, name: str, folder: pathlib.Path) -> Any:
    found = draw.pick(ARGUMENTS[name])
    return str(folder / found) if name in ("audio", "vary") and found else found


def _generate(pipeline: Pipeline, draw: Draw, folder: pathlib.Path) -> Kind:
    arguments: dict[str, Any] = {"prompts": ["rain"]}
    for _ in range(draw.between(1, 3)):
        name = draw.pick(list(ARGUMENTS))
        arguments[name] = _value(draw, name, folder)
    with may_refuse(*WORDS):
        pipeline.generate(**arguments)
    return RIGHT


class _Checks:
    """A pipeline that checks arguments as a real one does, and answers with silence."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.trained = pipeline.trained
        self.known_words = pipeline.known_words
        self.unknown_words = pipeline.unknown_words
        self._pipeline = pipeline

    def generate(self, prompts: Any, **arguments: Any) -> Any:
        self._pipeline.generate(prompts, **arguments)
        tokens, known = np.zeros((8, 8), np.float32), np.zeros(8, bool)
        yield Clip(
            np.zeros(9, np.float32), 16_000, prompts[0], arguments["seed"], tokens, known, None
        )


def _page(pipeline: Pipeline, draw: Draw, folder: pathlib.Path) -> Kind:
    names = ("prompt", "negative", "seed", "seconds", "iterations", "guidance")
    plain = {
        "prompt": "rain",
        "negative": "",
        "seed": "",
        "seconds": "",
        "iterations": "",
        "guidance": "",
    }
    for _ in range(draw.between(1, 3)):
        plain[draw.pick(names)] = draw.pick(FIELDS)
    edits: dict[str, Any] = draw.pick(
        (
            lambda: {},
            lambda: {"loop": True},
            lambda: {"timeline": _value(draw, "timeline", folder)},
            lambda: {"audio": _value(draw, "audio", folder), "keep": _value(draw, "keep", folder)},
            lambda: {"vary": _value(draw, "vary", folder), "share": _value(draw, "share", folder)},
        )
    )()
    try:
        made = make(_Checks(pipeline), Asked(**plain), **edits)  # type: ignore[arg-type]
    except RefusedError as error:
        text = str(error)
        expect(bool(text) and len(text) < 2000 and "\n" not in text, "a refusal is no sentence")
        expect(str(folder) not in text, "a visitor is told of folders")
        raise Refused(text) from error
    expect(bool(made.note), "a clip has no note")
    return RIGHT
