"""On a full disk every command ends with one line that names the file, and what was whole stays so.

The disk is full at every size in turn, so that each file that a command writes is once the one for
which there is no room; then there is room again, and the same command does its work.
"""

from __future__ import annotations

import csv
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from tests.convert.test_convert_command import ear_state, saved
from tests.support import commands, full_disk, helpers

SIZES = (0, 150, 600, 2500, 10_000, 70_000)
"""Bytes up to which a file may grow."""


class World(NamedTuple):
    """What the commands read, and where they write."""

    encoded: pathlib.Path
    audio: pathlib.Path
    teacher: pathlib.Path
    out: pathlib.Path


Case = Callable[[World], list[Any]]


def folder_of_sounds(folder: pathlib.Path) -> pathlib.Path:
    """Six clips with captions."""
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        for index in range(6):
            audio = helpers.synthetic_audio("noise", 0.5, np.random.default_rng(index))
            soundfile.write(folder / f"{index}.wav", audio, helpers.SAMPLE_RATE)
            writer.writerow([f"{index}.wav", f"noise number {index}"])
    return folder


def make_folder(world: World) -> list[Any]:
    sounds = folder_of_sounds(world.out.with_name("sounds"))
    return ["-m", "data.folder", "--audio_dir", sounds, "--out", world.out, "--name", "x"]


def make_manifest(world: World) -> list[Any]:
    sounds = folder_of_sounds(world.out.with_name("sounds"))
    table = [f"--manifest={sounds / 'metadata.csv'}", "--name=x"]
    return ["-m", "data.manifest", f"--audio_dir={sounds}", f"--out={world.out}", *table]


def fit_codec(world: World) -> list[Any]:
    return ["-m", "data.spectrogram_codec", "--data", world.audio, "--out", world.out]


def encode(world: World) -> list[Any]:
    flags = ["--codec", world.encoded, "--out", world.out]
    return ["-m", "data.encode_latents", "--data", world.audio, *flags]


def embed(world: World) -> list[Any]:
    shutil.copytree(world.encoded, world.out)
    shutil.rmtree(world.out / "text")
    return ["-m", "data.embed_text", "--data", world.out]


def convert(world: World) -> list[Any]:
    world.out.parent.mkdir(exist_ok=True)
    path = saved(world.out.parent, ear_state())
    return ["-m", "fasttta_jax.convert", "mar", path, world.out, "--num_heads=3"]


def export(world: World) -> list[Any]:
    return ["-m", "fasttta_jax.tools.export", world.teacher, world.out]


def generate(world: World) -> list[Any]:
    flags = ["--prompt=a loud tone", "--pictures", f"--out={world.out}"]
    return ["generate.py", f"--workdir={world.teacher}", *flags]


def generate_shards(world: World) -> list[Any]:
    flags = ["--prompt=a loud tone", "--store=array_record", f"--out={world.out}"]
    return ["generate.py", f"--workdir={world.teacher}", *flags]


def generate_tar(world: World) -> list[Any]:
    flags = ["--prompt=a loud tone", "--store=tar", f"--out={world.out}"]
    return ["generate.py", f"--workdir={world.teacher}", *flags]


def train(world: World) -> list[Any]:
    config = helpers.tiny_teacher_config(world.encoded, num_steps=4, evaluate_every=2)
    file = helpers.run_config_file(config, world.out.with_name("config.py"))
    return helpers.train_command(file, world.out)


def evaluate(world: World) -> list[Any]:
    flags = ["--num_iterations=1", "--num_energy_clips=8", "--tagger_steps=2", f"--out={world.out}"]
    data = [f"--audio_data={world.audio}", f"--encoded_data={world.encoded}"]
    return ["eval.py", f"--run=teacher={world.teacher}", *data, *flags]


QUICK: Mapping[str, tuple[Case, int]] = {
    "data.embed_text": (embed, 600),
    "convert": (convert, 10_000),
    "export": (export, 2500),
}
LONG: Mapping[str, Case] = {
    **{name: case for name, (case, _) in QUICK.items()},
    "data.folder": make_folder,
    "data.manifest": make_manifest,
    "data.spectrogram_codec": fit_codec,
    "data.encode_latents": encode,
    "generate": generate,
    "generate array_record": generate_shards,
    "generate tar": generate_tar,
    "train": train,
    "eval": evaluate,
}


@pytest.fixture
def world(
    encoded_dataset: pathlib.Path, runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> World:
    (tmp_path / "work").mkdir()
    audio = encoded_dataset.parent / "audio"
    return World(encoded_dataset, audio, runs["teacher"], tmp_path / "work" / "out")


def contents(*folders: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_full(world: World, arguments: list[Any], limit: int) -> bool:
    """Runs a command without room beyond `limit`; whether it did its work all the same."""
    done = commands.run("-c", full_disk.COMMAND, limit, *arguments)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    if done.returncode == 0:
        return True
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert str(world.out.parent) in errors[0], said
    assert ".tmp" not in errors[0], said
    return False


@pytest.mark.parametrize("name", QUICK)
def test_no_room_is_told_in_a_line_and_the_next_command_goes_on(world: World, name: str) -> None:
    case, limit = QUICK[name]
    arguments = case(world)
    before = contents(world.encoded, world.teacher)
    assert not check_full(world, arguments, limit)
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents(world.encoded, world.teacher) == before


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_wherever_room_ends_a_command_says_so_and_goes_on_later(world: World, name: str) -> None:
    arguments = LONG[name](world)
    before = contents(world.encoded, world.teacher)
    refused = [not check_full(world, arguments, limit) for limit in SIZES]
    assert any(refused)
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert contents(world.encoded, world.teacher) == before
    assert not list(world.out.rglob(".*.tmp"))
