"""Command lines of all commands but benchmarks, in which flags have values that nobody meant.

They stand twice, without a value, without a flag or not at all, are unknown, or fields of a config
that are not there; the value may be a file or folder of another kind.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from typing import Any
from unittest import mock

import jaxtyping
from absl import flags
from huggingface_hub import constants

from tests.campaigns import console
from tests.campaigns.command_lines import COMMANDS, Command, Line, cut_off, fields
from tests.campaigns.damage import near
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import Kind, unchanged

VALUES = (
    "0", "1", "-1", "3", "nan", "inf", "-inf", "1e400", "1e9", "99999999999999999999", "0.5", "",
    " ", "true", "é", "\udce9", "a" * 3000, "a\nb", "~", "~nouser/x", "/dev/null", "/proc/1/mem",
    "gs://bucket/x", "nothing/here", "../x", "1,2", "x=y", "=", "--seed", "None", "last", "best",
    "-0", "1_000", "0x10", "١", "²", "9" * 5000, "[]", "{}", "*.csv", "a::b", "wav", "files",
    "{index:0999999999d}", "{prompt}", "{", "{0.__class__}", "{slug!r:>{index}}", "run[1]", "a*?b",
    "a\\b", "a b", "localhost:1", "3:1", "1:2", "t5=3", "t5=²", "(", "()", "(1, 2)", "'", "1,nan",
    "real=x", "a.json,b.json", "v5e:16x16", "v5e:0x0", "false", "cosine", "1e-320", "-2147483649",
)  # fmt: skip
"""Among them digits that int() reads and nobody else does."""
OTHERS = (
    "unknown", "config.seed", "config.unknown", "config", "config.data", "config.data.unknown",
    "config.", "config..seed", "config.data.path.x", "config.__class__", "flagfile", "seed",
    "num_processes", "process_id", "undefok",
)  # fmt: skip
"""Flags that few commands have."""
WRITTEN = ("out", "workdir", "data", "write_reference_statistics", "flagfile")
"""Flags of folders that a command may write to, which must not be the world's."""
USUAL = ("train.py", "eval.py", "generate.py", "data.encode_latents", "data.embed_text", "convert")


USABLE = ("1", "2", "8", "0.5", "16", "rain", "cosine", "1,7", "0.2,0.9")
"""What many flags may be that have no default."""


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    """By flag of a command, its default, or the values that it may have."""
    values = flags.FlagValues()
    COMMANDS[name].define(values)
    return {
        flag: getattr(values[flag].parser, "enum_values", values[flag].default)
        for flag in sorted(values)
    }


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    name = draw.pick([*USUAL, *COMMANDS])
    command = COMMANDS[name]
    arguments = _arguments(world, draw, folder, name, command)
    (folder / "here").mkdir()
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with (
            unchanged(folder, ("out", "audio", "here/", "x")),
            contextlib.chdir(folder / "here"),
            mock.patch.dict(os.environ, HOME=str(folder / "here")),
            mock.patch.object(constants, "HF_HUB_OFFLINE", True),
            cut_off(),
        ):
            ended = console.run(command.define, command.main, arguments, command.positional)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
    return console.judged(ended)


def _arguments(
    world: World, draw: Draw, folder: pathlib.Path, name: str, command: Command
) -> list[str]:
    """A command line that works, and what an accident makes of it."""
    line = command.line(world, folder)
    usual = _defaults(name)
    overrides = fields() if command.overrides else {}
    more: list[str] = []
    for _ in range(draw.pick((1, 1, 2, 3))):
        flag = draw.pick([*line, *usual, *usual])
        if overrides and draw.chance():
            flag = draw.pick(list(overrides))
        if draw.chance(8):
            flag = draw.pick(OTHERS)
        value = _value(world, draw, folder, flag)
        if draw.chance():
            value = _near(draw, {**usual, **overrides, **line}.get(flag))
        match draw.below(10):
            case 8 if flag.strip():
                more.append(f"--{flag}")
            case 9:
                more += [f"--{flag.strip()}", value]
            case _:
                line[flag] = value
    if draw.chance(10):
        line.pop(draw.pick(list(line)))
    if draw.chance(20):
        more.append(draw.pick(("stray", "", "--", "-", "=", "--=", "---seed=1", "--noseed")))
    return [*_written(line), *more]


def _value(world: World, draw: Draw, folder: pathlib.Path, flag: str) -> str:
    if not draw.chance(6):
        return draw.pick(VALUES)
    places = [folder / "audio", folder / "audio" / "a.wav", folder / "missing"]
    if flag.strip() and flag not in WRITTEN:
        places += [world.audio, world.encoded, world.workdir, world.exported, world.path]
    place = str(draw.pick(places))
    return draw.pick((place, f"x={place}", f"{place},{place}", f"{place}/", f"{place}:1"))


def _near(draw: Draw, value: Any) -> str:
    """A value that a flag may have, or one that differs little."""
    if isinstance(value, list | tuple):
        value = draw.pick(value or USABLE)
    if value is None:
        return draw.pick(USABLE)
    text = str(value)
    if os.path.isabs(text):  # whose neighbours are not this campaign's
        return draw.pick((text, f"{text}x", f"{text}/", f"{text}/more"))
    return text if draw.chance() else str(near(draw, value))


def _written(line: Line) -> list[str]:
    arguments = [value for flag, value in line.items() if not flag.strip()]
    return arguments + [f"--{flag}={value}" for flag, value in line.items() if flag.strip()]
