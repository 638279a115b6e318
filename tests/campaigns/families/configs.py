"""Configs of runs in which a field, or several, have values that nobody meant."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from fasttta_jax.config import ConfigError, RunConfig, flatten, from_config_dict, to_config_dict
from fasttta_jax.decoding.plan import plan_segments
from tests.campaigns.damage import STRANGE, near
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse
from tests.support import helpers

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 8, 16, 0.5, 1.0, -0.5, 1e-300, 1e300, 2**31, 2**63, 10**19, float("nan"),
    float("inf"), "1", "nan", True, None, 1 + 1e-16,
)  # fmt: skip
TEXTS = (
    "", "none", "learned", "frozen", "cosine", "1,2,5", "1,,2", "(0", "é", "x" * 5000, "[]", "4,4",
    "random", "bisection", "0,1", "diffusion", "energy", "float32", "0,1/0", "ends", "3,(0,2),1",
)  # fmt: skip
LISTS: tuple[Any, ...] = (
    [], [1, 2, 5], [0.1, 0.9], ["a", "b"], [8], [[0, 1]], [1.5], [float("nan")], [-1, 9], [True],
    ["a", "a"], [[".*", [None]]], [["(", ["fsdp"]]], {"a": 1},
)  # fmt: skip
LARGEST = 512
"""Tokens up to which the schedule of decoding is planned."""
SECTIONS = (
    "",
    "data",
    "model",
    "model.backbone",
    "decode",
    "energy",
    "optimizer",
    "mesh",
    "nothing",
)


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    values = to_config_dict(helpers.tiny_teacher_config("data")).to_dict()
    names = sorted(flatten(values))
    touched = []
    for _ in range(draw.pick((1, 1, 2, 3))):
        if draw.chance(8):
            section = draw.pick(SECTIONS)
            name = f"{section}.{draw.pick(('unknown', '', 'path2', 'audio', 'stage'))}".strip(".")
        else:
            name = draw.pick(names)
        touched.append(name)
        found = flatten(values).get(name)
        strange = draw.pick((NUMBERS, TEXTS, LISTS, STRANGE))
        _set(values, name, near(draw, found) if draw.below(5) < 3 else draw.pick(strange))
    fields = [part for name in touched for part in (name, name.rpartition(".")[2])]
    others = (
        "num_heads",
        "token",
        "mask",
        "optimizer",
        "num_steps",
        "guid",
        "the config",
        "stage",
        "decode",
    )
    with may_refuse(*fields, *others, error=ConfigError):
        config = from_config_dict(values)
    again = json.loads(json.dumps(to_config_dict(config).to_dict()))
    expect(from_config_dict(again) == config, "a config is another when it is read from JSON")
    if config.model.num_tokens <= LARGEST:
        _decoded_once(config)
    return RIGHT


def _decoded_once(config: RunConfig) -> None:
    """What is allowed can be planned, and every token is revealed once."""
    with may_refuse("num_iterations", "counts", "order"):
        segments = plan_segments(config.decode, config.model.num_tokens)
    revealed = sum(sum(segment.counts) for segment in segments)
    expect(revealed == config.model.num_tokens, "not every token is decoded once")
    scales = [scale for segment in segments for scale in segment.guidance_scales]
    expect(all(math.isfinite(scale) for scale in scales), "guidance is not finite")


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        found = values.get(section)
        if not isinstance(found, dict):
            found = values[section] = {}
        values = found
    values[field] = value
