"""The frontier at the paper's size, with random weights: operations, and seconds where they fit.

One clip of 10.24 s: 256 tokens of 128 numbers, 78 text positions, width 768, 12 + 12 blocks or
fewer. A row of one pass is a student whose guidance was distilled away.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from benchmarks import frontier_grid, measure
from benchmarks.frontier_ratios import AIMS
from benchmarks.frontier_table import table
from benchmarks.frontier_times import Limits, Rate, time_cell
from fasttta_jax.config import RunConfig
from fasttta_jax.generation.sampler import Sampler
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.performance.flops import sampling_flops
from fasttta_jax.report.values import MISSING, format_value
from fasttta_jax.storage.files import write_atomically, write_json
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.typing import Params

BANDS = 4
"""Tokens of a column."""
PAPER_TEACHER = "teacher, 64 x 100"


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A way of sampling at the paper's size.

    Attributes:
      name: of the row.
      objective: of the run.
      decode: fields of DecodeConfig in place of the config's.
      depths: encoder and decoder blocks.
      steps: diffusion steps of a teacher.
    """

    name: str
    objective: str
    decode: Mapping[str, Any]
    depths: tuple[int, int] = (12, 12)
    steps: int = 100

    @property
    def run(self) -> RunConfig:
        """Its config."""
        run = frontier_grid.paper_run(self.objective)
        encoder, decoder = self.depths
        backbone = dataclasses.replace(
            run.model.backbone, encoder_depth=encoder, decoder_depth=decoder
        )
        return dataclasses.replace(
            run,
            model=dataclasses.replace(run.model, backbone=backbone),
            decode=dataclasses.replace(run.decode, **self.decode),
            diffusion=dataclasses.replace(run.diffusion, sampling_steps=self.steps),
        )


TEACHERS = ((64, 100), (64, 20), (32, 20), (32, 10), (16, 20))
"""Iterations and diffusion steps."""
RECONSTRUCTION = {"order": "bisection", "counts": "bisection"}
TWO_PASSES: Mapping[str, Mapping[str, Any]] = {
    "64": {"num_iterations": 64},
    "32": {"num_iterations": 32},
    "16": {"num_iterations": 16},
    "8": {"num_iterations": 8},
    "32, reconstruction": {"num_iterations": 32, **RECONSTRUCTION},
    "16, reconstruction": {"num_iterations": 16, **RECONSTRUCTION},
    "16, guided in (0, .25]": {"num_iterations": 16, "guided": (0.0, 0.25)},
    "16, exponential, guided in (.1, .3]": {
        "num_iterations": 16,
        "counts": "exponential",
        "guided": (0.1, 0.3),
    },
}
ONE_PASS: Mapping[str, Mapping[str, Any]] = {
    **{str(number): {"num_iterations": number} for number in (64, 32, 24, 18, 16, 8)},
    "32, reconstruction": {"num_iterations": 32, **RECONSTRUCTION},
    "16, reconstruction": {"num_iterations": 16, **RECONSTRUCTION},
    "16, exponential": {"num_iterations": 16, "counts": "exponential"},
}
DEPTHS = ((6, 6), (12, 3), (9, 3), (3, 3))
"""Encoder and decoder blocks of shallower students of one pass."""
SHALLOW_ITERATIONS = (64, 32, 16)


def paper_rows() -> list[PaperRow]:
    """Teachers, students of two passes, of one, and of one with fewer blocks."""
    rows = [
        PaperRow(
            f"teacher, {number} x {steps}", "diffusion", {"num_iterations": number}, steps=steps
        )
        for number, steps in TEACHERS
    ]
    rows += [
        PaperRow(f"two passes, {name}", "energy", decode) for name, decode in TWO_PASSES.items()
    ]
    rows += [PaperRow(f"one pass, {name}", "guided", decode) for name, decode in ONE_PASS.items()]
    for depths in DEPTHS:
        blocks = "{}+{}".format(*depths)
        rows += [
            PaperRow(
                f"one pass, {number}, {blocks} blocks",
                "guided",
                {"num_iterations": number},
                depths,
            )
            for number in SHALLOW_ITERATIONS
        ]
    return rows


def measure_sizes(
    timed: Sequence[PaperRow],
    *,
    batch_sizes: Sequence[int],
    limits: Limits,
    dtype: str | None,
    out: str,
) -> str:
    """Counts every row and times some as far as they fit, the cheapest first; writes after each.

    Args:
      timed: what is timed.
      batch_sizes: that are timed; none counts alone.
      limits: of the timing.
      dtype: of the matrix products; None for the configs'.
      out: folder for paper_sizes.json and paper_sizes.md.

    Returns:
      The table as Markdown.
    """
    folder, rate, text = pathlib.Path(out), Rate(), ""
    found = {row.name: sampling_flops(row.run).total for row in paper_rows()}
    times: dict[str, dict[str, Any]] = {name: {} for name in found}
    cheapest_first = sorted(timed, key=lambda row: found[row.name])
    for row in tqdm.tqdm([None, *cheapest_first] if batch_sizes else [None], "rows", unit="row"):
        if row is not None:
            times[row.name] = _times(row, batch_sizes, limits, dtype, rate)
        document = {"machine": measure.machine(), "flops_per_clip": found, "times": times}
        write_json(folder / "paper_sizes.json", document)
        text = to_markdown(found, times, batch_sizes)
        write_atomically(folder / "paper_sizes.md", text.encode())
    return text


def _times(
    row: PaperRow, batch_sizes: Sequence[int], limits: Limits, dtype: str | None, rate: Rate
) -> dict[str, Any]:
    run = row.run
    if dtype is not None:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, dtype=dtype))
    flops = sampling_flops(run).total
    system = build_model(run, abstract_text_encoder(run.model.text))
    params: Params = {}
    cells = {}
    for size in batch_sizes:
        if not params and rate.seconds(size * flops) <= limits.longest_call:
            params = measure.random_params(system.init)
        sampler = Sampler(system, run.decode, local_mesh(), size, BANDS)
        cells[str(size)] = time_cell(
            sampler,
            params,
            ["a caption"],
            limits=limits,
            flops=size * flops,
            rate=rate,
            anew=True,
        )
    return cells


def to_markdown(
    tflop: Mapping[str, float],
    times: Mapping[str, Mapping[str, Any]],
    batch_sizes: Sequence[int],
) -> str:
    """Operations of every row, how many times fewer than the paper's teacher, and seconds."""
    head = ["row", "TFLOP", "times fewer than the paper's teacher", "budget"]
    if batch_sizes:
        head += ["compiling, s", *(f"s, batch of {size}" for size in batch_sizes)]
    lines = []
    for name, flops in tflop.items():
        size = flops / 1e12
        within = [f"below {budget:g}" for _, budget in AIMS if size <= budget]
        less = tflop[PAPER_TEACHER] / flops if PAPER_TEACHER in tflop else None
        line = [
            name,
            f"{size:.2f}",
            MISSING if less is None else f"{less:.1f}",
            within[-1] if within else MISSING,
        ]
        if batch_sizes:
            cells = [times[name].get(str(batch), {}) for batch in batch_sizes]
            line += [format_value(cells[0].get("compile_seconds")), *map(_seconds, cells)]
        lines.append(line)
    return table(head, lines)


def _seconds(cell: Mapping[str, Any]) -> str:
    return format_value(cell["seconds"]) if "seconds" in cell else cell.get("left_out", MISSING)
