"""Trains what a comparison of rivals lacks: first times a step of each, then teachers, pairs, runs.

Steps are timed once for an output folder, warm, on clips of noise; what takes as many seconds
follows from that, so that a run which goes on, or goes on elsewhere, keeps its length.
"""

from __future__ import annotations

import logging
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from benchmarks import measure
from benchmarks.rivals_plan import (
    FLOW,
    OURS,
    PAIRS_FOLDER,
    SAME_STEPS,
    TEACHER,
    TEACHERS,
    Options,
    RivalsError,
    Run,
    is_head,
    teachers,
    trained,
)
from benchmarks.settings import read
from benchmarks.sweep import RECORD_FILE, train
from benchmarks.train_step import Training, in_one_part
from configs import demo_rivals
from fasttta_jax.config import RunConfig
from fasttta_jax.objectives import build_objective
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.performance.flops import training_step_flops
from fasttta_jax.performance.timing import time_in_turns
from fasttta_jax.storage.files import differences, write_json
from fasttta_jax.workdir.restore import load_trained

logger = logging.getLogger("fasttta_jax.rivals")

STEPS_FILE = "steps.json"
REPEATS = 5
"""Timed steps of each system."""


def time_step(config: RunConfig) -> dict[str, Any]:
    """Seconds and memory of a step of this machine."""
    training = Training("step", in_one_part(config, None), 1.0, local_mesh())
    timing = time_in_turns({"step": training.step("gathered")}, REPEATS)["step"]
    report = training.program("gathered").report
    return {
        "seconds": timing.median,
        "memory_bytes": report.total_bytes,
        "compile_seconds": report.seconds,
        "machine": measure.machine(),
    }


def step_costs(options: Options) -> dict[str, dict[str, Any]]:
    """Seconds and memory of a step by system; each is measured once for an output folder."""
    path = options.out / STEPS_FILE
    found = read(path)
    steps = dict.fromkeys((OURS, *options.rivals), options.num_steps)
    runs = [*teachers(options), *trained(SAME_STEPS, steps, options)]
    for run in tqdm.tqdm(runs, "timing steps", unit="system"):
        if run.system not in found:
            found[run.system] = time_step(run.config)
            write_json(path, found)
    return found


def steps_of(
    setting: str, costs: Mapping[str, Mapping[str, Any]], options: Options
) -> dict[str, int]:
    """The number of steps of every system in a setting."""
    systems = (OURS, *options.rivals)
    if setting == SAME_STEPS:
        return dict.fromkeys(systems, options.num_steps)
    found = {name: max(2, round(options.seconds / costs[name]["seconds"])) for name in systems}
    return found | {
        name: options.given_steps[name] for name in systems if name in options.given_steps
    }


def plan_runs(costs: Mapping[str, Mapping[str, Any]], options: Options) -> list[Run]:
    """All runs of a comparison, teachers first."""
    runs = teachers(options)
    for setting in options.settings:
        runs += trained(setting, steps_of(setting, costs, options), options)
    return runs


def train_runs(
    runs: Sequence[Run], costs: Mapping[str, Mapping[str, Any]], options: Options
) -> None:
    """Trains what is missing, one run after the other; a finished one is left as it is."""
    missing = [run for run in runs if not run.is_given]
    expected = {run.name: costs[run.system]["seconds"] * run.config.num_steps for run in missing}
    hashes: dict[str, str] = {}

    def taught_by(run: Run) -> str:
        """The SHA-256 of the parameters that a run starts from."""
        if not run.config.init_from:
            return ""
        if run.config.init_from not in hashes:
            origin = load_trained(run.config.init_from, local_mesh()).origin()
            hashes[run.config.init_from] = origin["sha256"]
        return hashes[run.config.init_from]

    form = "{desc}: {percentage:3.0f}% of the steps' time |{bar}| {elapsed} of about {postfix}"
    total = sum(expected.values())
    with tqdm.tqdm(total=total, desc="training", bar_format=form) as progress:
        for run in missing:
            progress.set_description(f"training {run.name}, {run.config.num_steps} steps")
            progress.set_postfix_str(f"{total / 60:.0f} min")
            if run.config.data.path == str(options.out / PAIRS_FOLDER):
                make_pairs(options)
            train(run.config, run.workdir, taught_by(run))
            progress.update(expected[run.name])


def make_pairs(options: Options) -> None:
    """The pairs that reflow learns from; those that are there are kept.

    Raises:
      RivalsError: the command fails, which has said why.
    """
    arguments = {
        "workdir": options.out / FLOW,
        "data": options.encoded,
        "out": options.out / PAIRS_FOLDER,
        "number": options.num_pairs,
        "guidance": demo_rivals.GUIDANCE,
        "steps": options.pair_steps,
        "seed": options.evaluation.seed,
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    done = subprocess.run([sys.executable, "-m", "data.pairs", *flags], check=False)
    if done.returncode:
        raise RivalsError(f"python -m data.pairs {' '.join(flags)} ended with {done.returncode}")


def training_row(run: Run, cost: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """What a run's training took.

    Args:
      run: the run.
      cost: of its step, as `step_costs` has it.
      seconds: of the whole, if it was trained here.
    """
    config = run.config
    # Teachers of both kinds of networks have the sizes of their students.
    flops = training_step_flops(config).total * config.data.batch_size
    return {
        "setting": run.setting,
        "system": run.system,
        "starts_from": _start(run),
        "steps": config.num_steps,
        "step_seconds": cost["seconds"],
        "step_gflop": flops / 1e9,
        "tflop": flops * config.num_steps / 1e12,
        "memory_bytes": cost["memory_bytes"],
        "seconds": seconds,
    }


def _start(run: Run) -> str:
    if run.setting == TEACHERS:
        return "nothing"
    if run.system == OURS or is_head(run.system):
        return TEACHER
    return f"{FLOW}, pairs" if build_objective(run.config).wants_pairs else FLOW


def training_seconds(run: Run) -> float | None:
    """Of the whole, validation and compiling included; None where it was not trained here."""
    return read(pathlib.Path(run.workdir) / RECORD_FILE).get("seconds")


def check_folder(options: Options, wanted: Mapping[str, Any], name: str) -> None:
    """Begins an output folder, or goes on with one of the same settings.

    Raises:
      RivalsError: it holds runs of other settings; names them.
    """
    path = options.out / name
    found = read(path)
    if found and found != wanted:
        different = "; ".join(differences(found, wanted))
        raise RivalsError(
            f"--out={options.out} holds a comparison with other settings: {different}. "
            "Choose another folder, or go back to these settings to go on"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(wanted))
