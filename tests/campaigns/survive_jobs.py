"""The jobs of the survival campaign: commands as users give them, and what they must leave behind.

A job works in one folder, which a trial finds empty, and reads the `world`. What it leaves is a
table of hashes: of every file, or, of a run, of the arrays of its last checkpoint and its metrics,
whose other files hold times. For runs on changing devices it is a table of losses instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fasttta_jax.config import OptimizerConfig, RunConfig
from fasttta_jax.workdir.checkpoint import StoredCheckpoints
from fasttta_jax.workdir.hashes import tree_hash
from tests.campaigns.world import World
from tests.support import helpers, tolerance

Command = list[str]
Left = Mapping[str, Any]
"""What a job has left: hashes of files, or numbers, by name."""
NUM_STEPS = 14


@dataclasses.dataclass(frozen=True)
class Layout:
    """Processes of a training, and virtual devices of each."""

    processes: int = 1
    devices: int = 1


ALONE = Layout()


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A job, in the words of the campaign.

    Attributes:
      name: of it.
      commands: of its world and folder: one for each process.
      weight: how often it is chosen; what takes long to start is chosen seldom.
      prepare: fills the folder with what the commands change.
      left: what is in the folder at the end.
      inputs: patterns, below the world or the folder, of files that it cannot do without.
      parts: patterns, below the folder, of files whose loss it survives.
      begun: a file that tells, once it is there, that inputs may not change any more.
      complete: one that tells that no part would be made again; "" where all are.
      layouts: of a job of jax.distributed, one of which each start has; none for others.
      bound: largest relative difference of numbers.
    """

    name: str
    commands: Callable[[World, pathlib.Path], Sequence[Command]]
    weight: float
    left: Callable[[pathlib.Path], Left]
    inputs: tuple[str, ...]
    parts: tuple[str, ...]
    begun: str
    complete: str = ""
    prepare: Callable[[World, pathlib.Path], None] = lambda world, folder: None
    layouts: tuple[Layout, ...] = ()
    bound: float = 0.0

    def differences(self, found: Left, expected: Left) -> list[str]:
        """What differs from the undisturbed job, a line each; [] where nothing does."""
        lines = []
        for name in sorted(found.keys() | expected.keys()):
            a, b = found.get(name), expected.get(name)
            if isinstance(a, float) and isinstance(b, float):
                if not abs(a - b) <= self.bound * abs(b):
                    lines.append(f"{name} is {a!r}, undisturbed {b!r}")
            elif a != b:
                state = "is missing" if a is None else "is left over" if b is None else "differs"
                lines.append(f"{name} {state}")
        return lines


def files_left(folder: pathlib.Path) -> Left:
    """SHA-256 of every file, and every folder that is empty."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[name] = "empty folder"
    return found


def _stored(path: pathlib.Path) -> Any:
    """A tree of a checkpoint, as numpy arrays, wherever it was written."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(path).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _losses(workdir: pathlib.Path) -> dict[str, float]:
    return {
        f"{name} of step {row['step']}": float(value)
        for row in helpers.rows_of(workdir)
        for name, value in row.items()
        if name in ("train/loss", "validation/loss")
    }


def losses_left(folder: pathlib.Path) -> Left:
    """The losses of a run, and its last step."""
    workdir = folder / "run"
    return {**_losses(workdir), "last step": StoredCheckpoints(workdir).steps()[-1]}


def run_left(folder: pathlib.Path) -> Left:
    """The last checkpoint of a run, its metrics and settings, and what should not be there."""
    workdir = folder / "run"
    last = StoredCheckpoints(workdir).steps()[-1]
    trees = {
        name: tree_hash(_stored(workdir / "checkpoints" / str(last) / name))
        for name in ("ema", "rest")
    }
    rows = json.dumps(helpers.rows_of(workdir)).encode()
    metrics = {"last step": last, "metrics": hashlib.sha256(rows).hexdigest()}
    kept = {
        name: value
        for name, value in files_left(workdir).items()
        if name.split("/")[0] in ("config.json", "origin.json", "codec", "text")
    }
    known = {"metrics.jsonl", "unreadable", "hosts", ".training.lock", *kept}
    others = {
        path.name: "left over"
        for path in workdir.iterdir()
        if path.name not in known | {"codec", "text", "checkpoints"}
        and not path.name.startswith("events.out.tfevents.")
    }
    steps = workdir / "checkpoints"
    others |= {path.name: "no step" for path in steps.iterdir() if not path.name.isdecimal()}
    return {**trees, **metrics, **kept, **others}


def _run_config(name: str, world: World) -> RunConfig:
    """Checkpoints every three steps, a validation every seven, a row of metrics every two."""
    fields: dict[str, Any] = {
        "num_steps": NUM_STEPS,
        "log_every": 2,
        "checkpoint_every": 3,
        "evaluate_every": 7,
        "hang_timeout": 20.0,
        "optimizer": OptimizerConfig(
            learning_rate=1e-4, warmup_steps=10, ema_decay=0.9, ema_warmup=True
        ),
    }
    if name == "student":
        return helpers.tiny_student_config(world.encoded, world.teacher, **fields)
    return helpers.tiny_teacher_config(world.encoded, **fields)


def _training(name: str, kind: str) -> Callable[[World, pathlib.Path], Sequence[Command]]:
    def commands(world: World, folder: pathlib.Path) -> list[Command]:
        config = helpers.run_config_file(_run_config(kind, world), world.folder / f"{name}.py")
        return [helpers.train_command(config, folder / "run")]

    return commands


def _shared(*command: object, processes: int) -> list[Command]:
    """The command of each process that shares the work."""
    shares = [[f"--process_id={i}", f"--num_processes={processes}"] for i in range(processes)]
    return [[*map(str, command), *(share if processes > 1 else [])] for share in shares]


def _of_folder(processes: int) -> Callable[[World, pathlib.Path], Sequence[Command]]:
    return lambda world, folder: _shared(
        *("-m", "data.folder", "--name=sounds", "--clips_per_shard=2", "--workers=2"),
        *(f"--audio_dir={world.sounds}", f"--out={folder}"),
        processes=processes,
    )


def _soundscapes(processes: int, workers: int) -> Callable[..., Sequence[Command]]:
    return lambda world, folder: _shared(
        *("-m", "data.soundscapes", "--num_train=260", "--num_validation=2", "--num_test=2"),
        *("--clip_seconds=1", f"--workers={workers}", f"--out={folder}"),
        processes=processes,
    )


def _encode(processes: int) -> Callable[..., Sequence[Command]]:
    return lambda world, folder: _shared(
        *("-m", "data.encode_latents", "--clips_per_shard=3", "--batch_size=4"),
        *(f"--data={world.audio}", f"--codec={world.codec}", f"--out={folder / 'encoded'}"),
        processes=processes,
    )


def _embed(processes: int) -> Callable[..., Sequence[Command]]:
    return lambda world, folder: _shared(
        *("-m", "tests.campaigns.small_shards", "-m", "data.embed_text"),
        *(f"--data={folder / 'encoded'}", "--positions=t5=16"),
        *(f"--encoder=t5={world.t5}", f"--encoder=clap={world.clap}"),
        processes=processes,
    )


def _copy_encoded(world: World, folder: pathlib.Path) -> None:
    """Encoded data without anything about text."""
    shutil.copytree(world.encoded, folder / "encoded", ignore=shutil.ignore_patterns("text"))


def _tokenizer(world: World, folder: pathlib.Path) -> list[Command]:
    return [["-m", "data.embed_text", f"--data={folder / 'encoded'}", "--vocabulary_size=300"]]


def _generate(store: str, processes: int) -> Callable[..., Sequence[Command]]:
    return lambda world, folder: _shared(
        *("generate.py", f"--workdir={world.student}", f"--prompts={world.prompts}"),
        *(f"--out={folder / 'sounds'}", f"--store={store}"),
        *("--batch_size=4", "--clips_per_shard=5"),
        processes=processes,
    )


def _generation(name: str, store: str, processes: int, weight: float) -> Job:
    return Job(
        name,
        _generate(store, processes),
        weight,
        files_left,
        inputs=("world/student/checkpoints/*/ema/**/*", "world/prompts.csv"),
        parts=("sounds/job/shards/*.json", "sounds/*.*", "sounds/job/settings.json"),
        begun="sounds/job/settings.json",
    )


def _dataset(
    name: str, commands: Callable[..., Sequence[Command]], weight: float, *inputs: str
) -> Job:
    return Job(
        name,
        commands,
        weight,
        files_left,
        inputs=inputs,
        parts=("**/*.incomplete/**/shards/*.json", "**/*.incomplete/**/*array_record-*"),
        begun="**/*.incomplete/settings.json",
    )


def _run(name: str, kind: str, weight: float, *layouts: Layout, **more: Any) -> Job:
    inputs = ["world/encoded/records/**/*array_record*", "world/encoded/codec/*"]
    if kind == "student":
        inputs.append("world/teacher/checkpoints/*/ema/**/*")
    return Job(
        name,
        _training(name, kind),
        weight,
        inputs=tuple(inputs),
        parts=("run/checkpoints/NEWEST/**/*", "run/.training.json"),
        begun="run/checkpoints/3",
        layouts=layouts or (ALONE,),
        **{"left": run_left, **more},
    )


def rounding_of_losses() -> float:
    """Of runs that add in another order.

    The loss of step n is at the end of a chain of n passes forward and back, each three times as
    long as a forward pass; Adam hands on the relative errors of gradients.
    """
    config = helpers.tiny_teacher_config("")
    return tolerance.rounding(NUM_STEPS * 3 * tolerance.model_terms(config.model))


def all_jobs() -> list[Job]:
    """Every job of the campaign."""
    sounds = ("world/sounds/*",)
    audio = ("world/audio/**/*array_record*", "world/codec/*")
    text = ("folder/encoded/records/**/*array_record*", "world/t5/*", "world/clap/*")
    embedding = {
        "left": files_left,
        "prepare": _copy_encoded,
        "begun": "encoded/text/embeddings/settings.json",
        "parts": ("encoded/text/embeddings/shards/*.json", "encoded/text/embeddings/0*/*.npy"),
        "complete": "encoded/text/table.json",
    }
    return [
        _run("teacher", "teacher", 0.4),
        _run("student", "student", 0.3),
        _run("teacher, two processes", "teacher", 0.1, Layout(2, 1)),
        _run(
            "teacher, changing devices",
            "teacher",
            0.1,
            *(ALONE, Layout(1, 2), Layout(2, 1)),
            left=losses_left,
            bound=rounding_of_losses(),
        ),
        _dataset("folder", _of_folder(1), 6, *sounds),
        _dataset("folder, two processes", _of_folder(2), 5, *sounds),
        _dataset("soundscapes", _soundscapes(1, 1), 2),
        _dataset("soundscapes, two processes", _soundscapes(2, 1), 1.5),
        _dataset("soundscapes, two workers", _soundscapes(1, 2), 0.2),
        _dataset("encoding", _encode(1), 2, *audio),
        _dataset("encoding, two processes", _encode(2), 1.5, *audio),
        Job("tokenizer", _tokenizer, 3, inputs=text[:1], **{**embedding, "parts": ()}),
        Job("embedding", _embed(1), 4, inputs=text, **embedding),
        Job("embedding, two processes", _embed(2), 2.5, inputs=text, **embedding),
        _generation("generation, files", "files", 1, 0.8),
        _generation("generation, files, two processes", "files", 2, 0.4),
        _generation("generation, tar", "tar", 1, 0.5),
        _generation("generation, tar, two processes", "tar", 2, 0.3),
        _generation("generation, ArrayRecord", "array_record", 1, 0.3),
        _generation("generation, ArrayRecord, two processes", "array_record", 2, 0.2),
    ]


def files_of(
    patterns: Sequence[str], world: World, folder: pathlib.Path, rng: random.Random
) -> list[pathlib.Path]:
    """Files that match, in a random order; NEWEST stands for the newest checkpoint of several."""
    found = []
    for pattern in patterns:
        root, rest = folder, pattern
        for name, place in (("world", world.folder), ("folder", folder)):
            if pattern.startswith(f"{name}/"):
                root, rest = place, pattern.removeprefix(f"{name}/")
        if "NEWEST" in rest:
            steps = [
                int(one.name) for one in root.glob("run/checkpoints/*") if one.name.isdecimal()
            ]
            if len(steps) < 2:
                continue
            rest = rest.replace("NEWEST", str(max(steps)))
        found += [path for path in sorted(root.glob(rest)) if os.path.isfile(path)]
    rng.shuffle(found)
    return found
