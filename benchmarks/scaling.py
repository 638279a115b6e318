"""How training and sampling scale: tables of compiled programs for TPU slices, and a study here.

    python -m benchmarks.scaling --table
    python -m benchmarks.scaling --study
    python -m benchmarks.scaling --study --devices=1,2,4,8 --config=configs/audiodear_base.py \\
        --dtype=bfloat16 --batch_size=256

`--table` compiles the training step and the sampler of the paper's models for 16, 64 and 256 chips
with libtpu, no TPU needed, and writes what they need, send and take on paper into docs/scaling.md.
What is compiled already is not compiled again, so a run that was stopped goes on.

`--study` runs the training step on 1, 2, 4, 8 devices, each number in a process of its own: on a
machine without accelerators, virtual devices that share its cores. `weak` keeps the clips of a
device, `strong` those of the batch. Every layout's collectives are counted from the compiled
program. Results are JSON files below --results; the page is written from them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags

from benchmarks import measure, scaling_cells, scaling_tables
from fasttta_jax import cli
from fasttta_jax.config import RunConfig
from fasttta_jax.parallel.compile import abstract_state, compile_init, compile_train_step
from fasttta_jax.parallel.mesh import check_batch_size, make_mesh
from fasttta_jax.performance.hlo import find_collectives, summarize
from fasttta_jax.performance.timing import MIN_REPEATS, Timing, time_in_turns
from fasttta_jax.performance.topology import require_libtpu
from fasttta_jax.report.text_table import format_table
from fasttta_jax.storage.files import write_json
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.tools.aot_cases import EFFORTS
from fasttta_jax.tools.aot_report import describe_axes
from fasttta_jax.training import programs
from fasttta_jax.training.state import TrainState
from fasttta_jax.typing import Metrics

CELLS_FOLDER = "cells"
STUDY_FILE = "study.json"
WORKER_TIMEOUT = 3600.0
COLUMNS = (
    "scaling",
    "data x fsdp x tensor",
    "devices",
    "clips",
    "compile s",
    "median ms",
    "p10..p90 ms",
    "clips/s",
    "of ideal",
)
MIB = 2**20


def layouts(num_devices: int) -> tuple[tuple[int, int, int], ...]:
    """(data, fsdp, tensor) that are compared: whole copies, parts, both, and all three."""
    found = [(num_devices, 1, 1), (1, num_devices, 1)]
    if num_devices % 2 == 0:
        found.append((2, num_devices // 2, 1))
    if num_devices % 4 == 0:
        found.append((num_devices // 4, 2, 2))
    return tuple(dict.fromkeys(found))


class Training:
    """A training step on one mesh over the first devices, with a state that moves on.

    Args:
      run: its config, with mesh and batch.

    Attributes:
      traffic: its collectives.

    Raises:
      ConfigError: the batch cannot be split over the mesh.
    """

    def __init__(self, run: RunConfig) -> None:
        num_devices = math.prod((run.mesh.data, run.mesh.fsdp, run.mesh.tensor))
        mesh = make_mesh(run.mesh, jax.devices()[:num_devices])
        check_batch_size(run.data.batch_size, mesh)
        self.run, self.mesh = run, mesh
        text = abstract_text_encoder(run.model.text)
        context = programs.default_context(run, text)
        fresh = programs.fresh_state(context)
        abstract = abstract_state(fresh, mesh)
        self.state: TrainState = compile_init(fresh, abstract, mesh)(jax.random.key(0))
        self.frozen: Any = {}
        if context.teacher is not None:
            shapes = abstract_state(context.teacher.init, mesh)
            self.frozen = compile_init(context.teacher.init, shapes, mesh)(jax.random.key(1))
        self.batch = _random_batch(programs.abstract_batch(run, text, mesh))
        self.key = jax.random.key(2)
        step = compile_train_step(programs.train_step(context), abstract, self.frozen, mesh)
        self._compiled = step.compile(self.state, self.frozen, self.batch, self.key)
        self.traffic = summarize(find_collectives(self._compiled.as_text(), mesh))

    def __call__(self) -> Metrics:
        """One optimizer step after all others; not waited for."""
        self.state, metrics = self._compiled(self.state, self.frozen, self.batch, self.key)
        return metrics

    def row(self, scaling: str, timing: Timing) -> dict[str, Any]:
        """What was found, as it goes into the JSON file."""
        size = self.run.data.batch_size
        return {
            "scaling": scaling,
            "mesh": dict(self.mesh.shape),
            "devices": self.mesh.size,
            "batch_size": size,
            **measure.timing_columns(timing, [self._compiled.report]),
            "clips_per_second": size / timing.median,
            "collectives": [row._asdict() for row in self.traffic],
        }


def _random_batch(shapes: Any) -> Any:
    """Normal numbers, ones where a mask or a weight is asked for, in the shapes of a batch."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_plain = len(leaf.shape) < 3 or not np.issubdtype(leaf.dtype, np.floating)
        values = np.ones(leaf.shape) if is_plain else rng.standard_normal(leaf.shape)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def with_layout(run: RunConfig, mesh: tuple[int, int, int], batch_size: int) -> RunConfig:
    """`run` on another mesh with another global batch, in one part."""
    return dataclasses.replace(
        run,
        mesh=dataclasses.replace(run.mesh, data=mesh[0], fsdp=mesh[1], tensor=mesh[2]),
        data=dataclasses.replace(run.data, batch_size=batch_size),
        optimizer=dataclasses.replace(run.optimizer, accumulation_steps=1),
    )


def study_cases(run: RunConfig, num_devices: int) -> dict[str, tuple[str, RunConfig]]:
    """What runs on so many devices, by a unique name: the kind of scaling, and the config.

    Weak scaling has `data.batch_size` clips on each device, strong scaling as many in all.

    Raises:
      ConfigError: the batch cannot be split over a layout.
    """
    size = run.data.batch_size
    found = {}
    for mesh in layouts(num_devices):
        shown = "x".join(map(str, mesh))
        found[f"strong {shown}"] = "strong", with_layout(run, mesh, size)
    if num_devices > 1:
        mesh = (num_devices, 1, 1)
        found[f"weak {num_devices}"] = "weak", with_layout(run, mesh, size * num_devices)
    return found


def work(run: RunConfig, num_devices: int, repeats: int) -> dict[str, Any]:
    """The study on the first `num_devices` devices of this process.

    Raises:
      RuntimeError: there are fewer.
      ConfigError: the batch cannot be split over a layout.
    """
    there = len(jax.devices())
    if there < num_devices:
        raise RuntimeError(f"{num_devices} devices are asked for; this machine has {there}")
    cases = study_cases(run, num_devices)
    trainings = {name: Training(case) for name, (_, case) in cases.items()}
    timings = time_in_turns(trainings, repeats)
    rows = [trainings[name].row(cases[name][0], timing) for name, timing in timings.items()]
    return {"machine": measure.machine(), "rows": rows}


def study(arguments: Sequence[str], devices: Sequence[int]) -> dict[str, Any]:
    """The rows of all device counts, each measured in a process of its own.

    Args:
      arguments: flags that say what runs.
      devices: how many, in the order of the table.

    Raises:
      RuntimeError: a process failed; its message.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_devices in tqdm.tqdm(devices, desc="numbers of devices"):
            target = pathlib.Path(folder) / f"{num_devices}.json"
            command = [sys.executable, "-m", "benchmarks.scaling", f"--worker={num_devices}"]
            done = subprocess.run(
                [*command, f"--worker_out={target}", *arguments],
                capture_output=True,
                text=True,
                timeout=WORKER_TIMEOUT,
                check=False,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(f"on {num_devices} devices: {lines[-1].removeprefix('error: ')}")
            part = json.loads(target.read_text())
            found.setdefault("machine", part["machine"])
            found.setdefault("rows", []).extend(part["rows"])
    return found


def ideal(row: Mapping[str, Any], one: Mapping[str, Any], is_shared: bool) -> float:
    """Share of the clips a second that this row should have.

    Args:
      row: on several devices.
      one: on one device.
      is_shared: the devices are one processor in parts: more of them make nothing faster, and the
        ideal is the rate of one.
    """
    factor = 1 if is_shared else row["devices"]
    return row["clips_per_second"] / (factor * one["clips_per_second"])


def study_tables(results: Mapping[str, Any]) -> str:
    """Times, and the collectives of a step by layout."""
    rows = results["rows"]
    is_shared = results["machine"]["platform"] == "cpu"
    ones = [row for row in rows if row["devices"] == 1]
    cells = [
        [
            row["scaling"],
            " x ".join(str(size) for size in row["mesh"].values()),
            str(row["devices"]),
            str(row["batch_size"]),
            f"{row['compile_seconds']:.1f}",
            f"{1e3 * row['median_seconds']:.1f}",
            f"{1e3 * row['p10_seconds']:.1f}..{1e3 * row['p90_seconds']:.1f}",
            f"{row['clips_per_second']:.2f}",
            f"{ideal(row, ones[0], is_shared):.0%}" if ones else "?",
        ]
        for row in rows
    ]
    sent = [
        [
            " x ".join(str(size) for size in row["mesh"].values()),
            traffic["kind"],
            describe_axes(traffic["axes"]),
            str(traffic["instructions"]),
            str(traffic["executions"]) + ("" if traffic["is_exact"] else " x unknown"),
            f"{traffic['sent_bytes'] / MIB:.3f}",
        ]
        for row in rows
        if row["scaling"] == "strong"
        for traffic in row["collectives"]
    ]
    columns = (
        "data x fsdp x tensor",
        "collective",
        "over",
        "instructions",
        "executions",
        "MiB a device sends",
    )
    tables = [format_table(COLUMNS, cells, num_names=2)]
    if sent:
        tables.append(format_table(columns, sent, num_names=3))
    return "\n\n".join(tables)


def study_parts(results: Mapping[str, Any]) -> dict[str, str]:
    """The generated part of the page that comes from the study."""
    text = f"{measure.describe_machine(results['machine'])}\n{results['what']}\n\n"
    return {"study": scaling_tables.fenced(text + study_tables(results))}


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_bool("table", False, "Compile the paper's models for TPU slices.")
    flags.DEFINE_bool("study", False, "Run a training step on several devices of this machine.")
    flags.DEFINE_string("results", "runs/scaling", "Folder of the JSON files.")
    flags.DEFINE_string(
        "docs", "docs/scaling.md", "Page whose tables are written anew; '' leaves it."
    )
    flags.DEFINE_multi_string(
        "config", None, "A file of configs/; left out: the paper's, and tiny:student for --study."
    )
    flags.DEFINE_list("topologies", list(scaling_cells.TOPOLOGIES), "Slices of --table.")
    flags.DEFINE_enum("effort", "low", list(EFFORTS), "Of the compiler, for --table.")
    flags.DEFINE_list("devices", ["1", "2", "4", "8"], "How many, for --study.")
    flags.DEFINE_integer("batch_size", 8, "Clips of --study, on a device or in all.", 1)
    flags.DEFINE_integer("repeats", 5, "Warm steps of every case.", MIN_REPEATS)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the study's matrix products.")
    flags.DEFINE_integer("worker", None, "Used by --study itself: devices of this process.", 1)
    flags.DEFINE_string("worker_out", None, "Used by --study itself: JSON file of this process.")


def _write_page(parts: Mapping[str, str]) -> None:
    if flags.FLAGS.docs:
        scaling_tables.write_page(pathlib.Path(flags.FLAGS.docs), parts)
        print(f"\nWritten into {flags.FLAGS.docs}")


def _table(results: pathlib.Path) -> None:
    values = flags.FLAGS
    configs = values.config or scaling_cells.CONFIGS
    wanted = scaling_cells.cells(configs, values.topologies)
    reports = scaling_cells.compile_cells(wanted, results / CELLS_FOLDER, values.effort)
    parts = scaling_tables.aot_parts(reports)
    print("\n\n".join(parts.values()))
    _write_page(parts)


def _study(results: pathlib.Path) -> None:
    values = flags.FLAGS
    name = (values.config or ["configs/tiny.py:student"])[0]
    arguments = [
        f"--config={name}",
        f"--batch_size={values.batch_size}",
        f"--repeats={values.repeats}",
        *([f"--dtype={values.dtype}"] if values.dtype else []),
    ]
    found = study(arguments, measure.positive_integers("devices", values.devices))
    run = measure.load_run_config(name, values.dtype)
    found["what"] = (
        f"{measure.model_label(name)}, training step, {run.objective}, {run.model.dtype}"
    )
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / STUDY_FILE, found)
    print(measure.describe_machine(found["machine"]), study_tables(found), sep="\n\n")
    _write_page(study_parts(found))


def _worker() -> None:
    values = flags.FLAGS
    # Without an accelerator, so many devices share the processor; it has no effect on others.
    jax.config.update("jax_num_cpu_devices", values.worker)
    measure.measure_compilation()
    run = measure.load_run_config(values.config[0], values.dtype)
    data = dataclasses.replace(run.data, batch_size=values.batch_size)
    run = dataclasses.replace(
        run,
        data=data,
        optimizer=dataclasses.replace(run.optimizer, accumulation_steps=1),
    )
    write_json(pathlib.Path(values.worker_out), work(run, values.worker, values.repeats))


def main() -> None:
    """Does what the flags ask for."""
    values = flags.FLAGS
    if values.worker is not None:
        _worker()
        return
    if not values.table and not values.study:
        raise ValueError("nothing to do; allowed: --table, --study or both")
    if values.table:
        require_libtpu("--table")
    results = pathlib.Path(values.results)
    if values.study:
        _study(results)
    if values.table:
        _table(results)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
