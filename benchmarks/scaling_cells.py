"""The programs of the table in docs/scaling.md, each compiled in a process of its own.

A cell is one config on one slice with one mesh. Its report is a JSON file; started again, a cell
whose program is still the same is not compiled again.
"""

from __future__ import annotations

import json
import logging
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import tqdm

from benchmarks.measure import model_label
from fasttta_jax.performance.topology import parse_topology
from fasttta_jax.tools.aot_cases import ProgramName

logger = logging.getLogger("fasttta_jax.scaling")

CONFIGS = ("configs/audiodear_base.py", "configs/audiodear_large.py")
TOPOLOGIES = ("v5e:4x4", "v5e:8x8", "v5e:16x16")
MOST_CHIPS = 256
TIMEOUT = 3600.0
"""Seconds for a cell; one takes minutes."""


class Cell(NamedTuple):
    """One config on one slice.

    Attributes:
      config: a file of configs/.
      topology: name of the slice.
      mesh: (data, fsdp, tensor).
      programs: what is compiled.
    """

    config: str
    topology: str
    mesh: tuple[int, int, int]
    programs: tuple[ProgramName, ...]

    @property
    def name(self) -> str:
        """Of its file."""
        parts = (model_label(self.config), self.topology, "x".join(map(str, self.mesh)))
        return "-".join(parts).replace(":", "_")


def meshes(num_chips: int) -> dict[tuple[int, int, int], tuple[ProgramName, ...]]:
    """The layouts that are compared on so many chips, and which programs on each.

    Whole copies of the parameters, and parts of them on four chips. On the largest slice also parts
    on sixteen, tensor parallelism on two, and sampling, which knows no other chips than a clip's.
    """
    if num_chips < MOST_CHIPS:
        return {(num_chips, 1, 1): ("train",), (num_chips // 4, 4, 1): ("train",)}
    return {
        (num_chips, 1, 1): ("train", "sampler"),
        (num_chips // 4, 4, 1): ("train", "sampler"),
        (num_chips // 16, 16, 1): ("train",),
        (num_chips // 4, 2, 2): ("train",),
    }


def cells(configs: Sequence[str] = CONFIGS, topologies: Sequence[str] = TOPOLOGIES) -> list[Cell]:
    """All of the table, in its order.

    Raises:
      ConfigError: there is no such topology.
    """
    found = []
    for config in configs:
        for topology in topologies:
            for mesh, programs in meshes(parse_topology(topology).num_chips).items():
                found.append(Cell(config, topology, mesh, programs))
    return found


def command(cell: Cell, target: pathlib.Path, effort: str) -> list[str]:
    """The call of `aot_report` that compiles a cell, its layers in a loop."""
    axes = zip(("data", "fsdp", "tensor"), cell.mesh, strict=True)
    return [
        sys.executable,
        "-m",
        "fasttta_jax.tools.aot_report",
        f"--config={cell.config}",
        f"--topology={cell.topology}",
        *(f"--config.mesh.{axis}={size}" for axis, size in axes),
        "--config.model.backbone.scan_layers=true",
        f"--program={','.join(cell.programs)}",
        f"--effort={effort}",
        f"--out={target}",
        "--reuse",
    ]


def compile_cells(
    wanted: Sequence[Cell], folder: pathlib.Path, effort: str
) -> list[dict[str, Any]]:
    """The reports of all cells, compiled where they are not there yet.

    Args:
      wanted: cells.
      folder: of their files.
      effort: of the compiler.

    Raises:
      RuntimeError: cells failed, after all others were done; says how each did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    with tqdm.tqdm(wanted, unit="cell") as progress:
        for cell in progress:
            progress.set_description(cell.name)
            target = folder / f"{cell.name}.json"
            problem = _run(command(cell, target, effort), target.with_suffix(".log"))
            if problem:
                failed.append(f"{cell.name}: {problem}")
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(wanted)} cells failed; the others are done, and the same "
            "command goes on where this one stopped:\n" + "\n".join(failed)
        )
    return read_cells(wanted, folder)


def _run(arguments: list[str], log: pathlib.Path) -> str:
    """What went wrong, or ""."""
    with log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                arguments, stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT:.0f} s, see {log}"
    if done.returncode == 0:
        return ""
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    last = errors[-1].removeprefix("error: ") if errors else f"exit code {done.returncode}"
    return f"{last} (see {log})"


def read_cells(wanted: Sequence[Cell], folder: pathlib.Path) -> list[dict[str, Any]]:
    """The reports of those cells that are there, with the config's name, in their order."""
    found = []
    for cell in wanted:
        source = folder / f"{cell.name}.json"
        if source.is_file():
            label = model_label(cell.config)
            found += [{"model": label, **report} for report in json.loads(source.read_text())]
    return found
