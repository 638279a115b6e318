"""Command lines of five commands, in which any flag has values that nobody meant.

What a flag leads to is cut off where it would train, encode or generate: the checks before are what
is tried.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jaxtyping
from absl import flags

import generate
from data import folder as folder_command
from data import manifest
from data.common import making
from fasttta_jax.tools import export, merge
from tests.campaigns import console
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import Kind, unchanged
from tests.support.sound_files import sounds

VALUES = (
    "0", "1", "-1", "3", "nan", "inf", "-inf", "1e400", "1e9", "99999999999999999999", "0.5", "",
    " ", "true", "é", "\udce9", "a" * 3000, "a\nb", "~", "~nobody/x", "/dev/null", "/proc/1/mem",
    "gs://bucket/x", "nothing/here", "../x", "1,2", "x=y", "=", "--seed", "None", "last", "best",
    "-0", "1_000", "0x10", "١", "²", "9" * 5000, "[]", "{}", "*.csv", "a::b", "wav", "files",
    "{index:0999999999d}", "{prompt}", "{", "{0.__class__}", "{slug!r:>{index}}",
)  # fmt: skip
"""Among them digits that int() reads and nobody else does."""


class Command(NamedTuple):
    """A command, and a command line of it that works.

    Attributes:
      define: its flags.
      main: what it does.
      line: of what works, flags by name.
      positional: names of arguments without a flag.
    """

    define: Callable[[flags.FlagValues], None]
    main: Callable[..., None]
    line: Callable[[World, pathlib.Path], dict[str, str]]
    positional: str = ""


def _stop(*unused: Any, **named: Any) -> Any:
    """In place of what follows the checks."""
    raise SystemExit(0)


def _generate(world: World, folder: pathlib.Path) -> dict[str, str]:
    return {"workdir": str(world.exported), "prompt": "rain", "out": str(folder / "out")}


def _folder(world: World, folder: pathlib.Path) -> dict[str, str]:
    sounds(folder / "audio", "a.wav")
    (folder / "audio" / "metadata.csv").write_text("file,caption\na.wav,rain\n")
    return {"audio_dir": str(folder / "audio"), "out": str(folder / "out"), "name": "mine"}


def _manifest(world: World, folder: pathlib.Path) -> dict[str, str]:
    line = _folder(world, folder)
    return {**line, "manifest": f"train={folder / 'audio' / 'metadata.csv'}"}


def _export(world: World, folder: pathlib.Path) -> dict[str, str]:
    return {"": str(world.exported), " ": str(folder / "out"), "title": "Mine"}


def _merge(world: World, folder: pathlib.Path) -> dict[str, str]:
    return {"": str(folder)}


COMMANDS = {
    "generate": Command(generate.define_flags, generate.main, _generate),
    "data.folder": Command(folder_command.define_flags, folder_command.main, _folder),
    "data.manifest": Command(manifest.define_flags, manifest.main, _manifest),
    "export": Command(export.define_flags, export.main, _export, "WORKDIR OUT"),
    "merge": Command(lambda values: None, merge.main, _merge, "FOLDER"),
}


@functools.cache
def _names(command: str) -> list[str]:
    values = flags.FlagValues()
    COMMANDS[command].define(values)
    return sorted(values)


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    name = draw.pick(("generate", "generate", *COMMANDS))
    command = COMMANDS[name]
    line = command.line(world, folder)
    wanted = _names(name)
    for _ in range(draw.between(1, 2)):
        flag = draw.pick([*line, *wanted, *line, "unknown", "config.seed"])
        line[flag] = draw.pick(VALUES)
    if draw.chance(10):
        line.pop(draw.pick(list(line)))
    arguments = [value for flag, value in line.items() if not flag.strip()]
    arguments += [f"--{flag}={value}" for flag, value in line.items() if flag.strip()]
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with (
            unchanged(folder, ("out", "audio/")),
            mock.patch.object(generate.Job, "run", _stop),
            mock.patch.object(making, "audio_dataset", _stop),
            mock.patch.object(export, "write_exported", _stop),
        ):
            ended = console.run(command.define, command.main, arguments, command.positional)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
    return console.judged(ended)
