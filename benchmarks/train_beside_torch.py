"""The teacher's training step beside torch's, on a CPU.

    python -m benchmarks.train_beside_torch
    python -m benchmarks.train_beside_torch --batch_size=2 --rounds=5 --out=train_beside_torch.json

Forward and backward pass, clipping, AdamW and the running average, in float32, on synthetic clips:
the package's step, and MAR's as the published code does it (`train_torch`), of the same sizes. They
take turns, in a process of their own each time, so that one is in memory and noise of the machine
hits both alike. Where other programs compete for the cores, the CPU seconds of a step, the work of
all its threads, are the better figure.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.beside_torch import bind_threads
from benchmarks.train_step import Training, in_one_part
from fasttta_jax import cli
from fasttta_jax.config import RunConfig
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance.flops import training_step_flops
from fasttta_jax.report.text_table import format_table
from fasttta_jax.storage.files import write_json

Side = Literal["ours", "torch"]
SIDES: tuple[Side, ...] = get_args(Side)
COLUMNS = (
    "step",
    "clips",
    "threads",
    "compile s",
    "first step s",
    "median s",
    "p10..p90 s",
    "CPU s",
    "GFLOP per CPU s",
    "GiB",
)


def check_run(run: RunConfig) -> None:
    """Raises ValueError where MAR's published step does not train such a run; names the field."""
    found = {
        "objective": (run.objective, "diffusion"),
        "diffusion.prediction": (run.diffusion.prediction, "epsilon"),
        "model.text.encoder": (run.model.text.encoder, "frozen"),
    }
    for name, (value, allowed) in found.items():
        if value != allowed:
            raise ValueError(f"{name} is {value!r}; allowed beside torch: {allowed!r}")
    if run.model.backbone.encoder_depth == 0:
        raise ValueError("model.backbone.encoder_depth is 0; allowed beside torch: 1 or more")


def _our_step(run: RunConfig) -> tuple[Callable[[], Any], Callable[[], float]]:
    training = Training("ours", run, 1.0, make_mesh(run.mesh))
    step = training.step("gathered")

    def call() -> None:
        step()
        jax.block_until_ready(training.state)

    return call, lambda: training.program("gathered").report.seconds


def _torch_step(run: RunConfig, num_threads: int) -> tuple[Callable[[], Any], Callable[[], float]]:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.train_torch import TorchTraining

    torch.set_num_threads(num_threads)
    return TorchTraining(run), lambda: 0.0


def measure_side(side: Side, run: RunConfig, *, steps: int, num_threads: int) -> dict[str, Any]:
    """One process's turn: a first step, then so many timed ones.

    Args:
      side: whose step.
      run: sizes; float32.
      steps: timed ones.
      num_threads: of torch.
    """
    ours = side == "ours"
    step, compile_seconds = _our_step(run) if ours else _torch_step(run, num_threads)
    seconds, cpu_seconds = [], []
    for _ in range(steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "compile_seconds": compile_seconds(),
        "first_seconds": seconds[0],
        "seconds": seconds[1:],
        "cpu_seconds": cpu_seconds[1:],
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def take_turns(arguments: Sequence[str], rounds: int) -> dict[Side, list[dict[str, Any]]]:
    """Both sides in processes of their own, one after the other, so many times.

    Our programs are compiled in the first round and kept for the others in a folder of this call.

    Args:
      arguments: flags of this command for each process.
      rounds: turns of each side.

    Raises:
      RuntimeError: a process failed.
    """
    found: dict[Side, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "turn.json"
        for number in range(rounds):
            for side in SIDES:
                own = [f"--turn={side}", f"--out={target}", f"--compilation_cache={folder}/cache"]
                command = [sys.executable, "-m", "benchmarks.train_beside_torch", *arguments, *own]
                code = subprocess.run(command, check=False).returncode
                if code:
                    raise RuntimeError(f"round {number + 1} of {side} ended with exit code {code}")
                found[side].append(json.loads(target.read_text()))
                print(f"round {number + 1}, {side}: {found[side][-1]['seconds']}", flush=True)
    return found


def summarize(
    turns: Mapping[Side, Sequence[Mapping[str, Any]]], run: RunConfig, num_threads: int
) -> dict[str, Any]:
    """Rows of both sides, and how much faster ours is: of all steps, and in each round."""
    flops = run.data.batch_size * training_step_flops(run).total
    rows = []
    for side in SIDES:
        seconds = np.concatenate([turn["seconds"] for turn in turns[side]])
        cpu = np.concatenate([turn["cpu_seconds"] for turn in turns[side]])
        rows.append(
            {
                "step": side,
                "batch_size": run.data.batch_size,
                "num_threads": num_threads,
                "compile_seconds": turns[side][0]["compile_seconds"],
                "first_seconds": turns[side][0]["first_seconds"],
                "median_seconds": float(np.median(seconds)),
                "p10_seconds": float(np.percentile(seconds, 10)),
                "p90_seconds": float(np.percentile(seconds, 90)),
                "cpu_seconds": float(np.median(cpu)),
                "flops_per_cpu_second": flops / float(np.median(cpu)),
                "peak_bytes": max(turn["peak_bytes"] for turn in turns[side]),
                "repeats": len(seconds),
            }
        )
    faster = {}
    for name in ("seconds", "cpu_seconds"):
        medians = {side: [float(np.median(turn[name])) for turn in turns[side]] for side in SIDES}
        ratios = [
            theirs / ours for ours, theirs in zip(medians["ours"], medians["torch"], strict=True)
        ]
        faster[name] = {"median": float(np.median(ratios)), "rounds": ratios}
    return {"rows": rows, "faster_than_torch": faster}


def report(results: Mapping[str, Any]) -> str:
    """The table, and the ratios."""
    rows = [
        [
            row["step"],
            str(row["batch_size"]),
            str(row["num_threads"]),
            f"{row['compile_seconds']:.1f}",
            f"{row['first_seconds']:.1f}",
            f"{row['median_seconds']:.2f}",
            f"{row['p10_seconds']:.2f}..{row['p90_seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['flops_per_cpu_second'] / 1e9:.1f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
        ]
        for row in results["rows"]
    ]
    lines = []
    for name, words in (("seconds", "seconds"), ("cpu_seconds", "CPU seconds")):
        ratios = results["faster_than_torch"][name]
        lowest, highest = min(ratios["rounds"]), max(ratios["rounds"])
        lines.append(
            f"torch's {words} over ours: {ratios['median']:.2f} "
            f"({lowest:.2f} to {highest:.2f} over {len(ratios['rounds'])} rounds)"
        )
    return "\n".join([format_table(COLUMNS, rows), "", *lines])


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_string("config", "configs/impact_base.py", "A teacher with frozen text.")
    flags.DEFINE_integer("batch_size", 4, "Clips of a step.", 1)
    flags.DEFINE_integer("rounds", 3, "Turns of each side.", 1)
    flags.DEFINE_integer("steps", 3, "Timed steps of a turn, after a first one.", 1)
    flags.DEFINE_integer("threads", None, "Cores of each side; left out: all.", 1)
    flags.DEFINE_enum("turn", None, SIDES, "One turn of one side alone, as JSON in --out.")
    flags.DEFINE_string("out", None, "JSON file for the results.")


def main() -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS
    if importlib.util.find_spec("torch") is None:
        raise ValueError("torch is not installed; it comes with pip install -e '.[test]'")
    run = in_one_part(measure.load_run_config(values.config, "float32"), values.batch_size)
    check_run(run)
    num_threads = bind_threads(values.threads)
    if values.turn is not None:
        found = measure_side(values.turn, run, steps=values.steps, num_threads=num_threads)
        if values.out is not None:
            write_json(pathlib.Path(values.out), found)
        return
    names = ("config", "batch_size", "steps")
    arguments = [f"--{name}={getattr(values, name)}" for name in names]
    arguments.append(f"--threads={num_threads}")
    turns = take_turns(arguments, values.rounds)
    results = {**summarize(turns, run, num_threads), "turns": turns}
    measure.finish(results, report(results), values.out)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
