"""The rows of the frontier: which run samples in which way, and what that takes by operations.

The grid is data: `ITERATIONS` of every run, times `STEPS` of a teacher, or times `DECODES` of a
student. A row's cost is also given at the paper's size, where blocks are cut in proportion.
Dimensions: N tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.settings import Setting
from configs import audiodear_base, audiodear_base_guided, impact_base
from fasttta_jax.config import ConfigError, RunConfig, from_config_dict
from fasttta_jax.decoding.plan import plan_segments
from fasttta_jax.objectives import build_objective
from fasttta_jax.performance.flops import sampling_flops

TEACHER, STUDENT = "teacher", "student"
ITERATIONS = (64, 32, 16, 8, 4)
STEPS = (100, 20, 10)
"""Of a teacher's diffusion; 64 iterations of 100 are the paper's teacher."""
DECODES: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "bisection": {"order": "bisection"},
    "exponential": {"counts": "exponential"},
    "reconstruction": {"order": "bisection", "counts": "bisection"},
    "late": {"guided": (0.0, 0.4)},
    "late_exponential": {"guided": (0.0, 0.4), "counts": "exponential"},
}
"""Of a student, by name, the fields of DecodeConfig in place of the run's; "reconstruction" is GtR,
late guidance is for students of two passes."""


PAPER = {"diffusion": impact_base, "energy": audiodear_base, "guided": audiodear_base_guided}
"""By objective, the config of the paper's size."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      setting: what is judged and timed.
      variant: the name in `DECODES`; "" for a run's own way of decoding, and for teachers.
    """

    setting: Setting
    variant: str = ""

    @property
    def series(self) -> str:
        """Rows that differ in their iterations alone share it."""
        steps = self.setting.sampling_steps
        return f"{self.setting.run} {self.variant if steps is None else f'x{steps}'}".strip()

    @property
    def name(self) -> str:
        """What --only is matched with; unique."""
        steps = self.setting.sampling_steps
        number = f"{self.setting.decode.num_iterations}" + ("" if steps is None else f"x{steps}")
        return "_".join(filter(None, (self.setting.run, number, self.variant)))


def plan(runs: Mapping[str, RunConfig]) -> list[Row]:
    """All rows, the cheapest first.

    Args:
      runs: by name; those of the objective "diffusion" are teachers, the others students.
    """
    rows = []
    for name, run in runs.items():
        numbers = [number for number in ITERATIONS if number <= run.model.num_tokens]
        for number in numbers or [run.model.num_tokens]:
            base = Setting(name, run.decode, None).changed(num_iterations=number)
            if run.objective == "diffusion":
                most = run.diffusion.num_steps
                rows += [
                    Row(dataclasses.replace(base, sampling_steps=steps))
                    for steps in sorted({min(steps, most) for steps in STEPS})
                ]
            else:
                rows += [
                    Row(base.changed(**changes), key)
                    for key, changes in DECODES.items()
                    if run.objective == "energy" or "guided" not in changes
                ]
    rows = list({row.setting: row for row in reversed(rows)}.values())
    return sorted(rows, key=lambda row: sampling_flops(sampled(runs, row.setting)).total)


def paper_teacher(rows: Sequence[Row]) -> Row | None:
    """The teacher with its most iterations and diffusion steps, if there is a teacher."""
    teachers = [row for row in rows if row.setting.sampling_steps is not None]
    return max(teachers, key=_iterations_and_steps, default=None)


def _iterations_and_steps(row: Row) -> tuple[int, int]:
    return row.setting.decode.num_iterations, row.setting.sampling_steps or 0


def sampled(runs: Mapping[str, RunConfig], setting: Setting) -> RunConfig:
    """A run's config with the settings of a row."""
    run = dataclasses.replace(runs[setting.run], decode=setting.decode)
    if setting.sampling_steps is None:
        return run
    diffusion = dataclasses.replace(run.diffusion, sampling_steps=setting.sampling_steps)
    return dataclasses.replace(run, diffusion=diffusion)


@functools.cache
def paper_run(objective: str) -> RunConfig:
    """The paper's teacher or student, or the student of one pass, base size."""
    return from_config_dict(PAPER[objective].get_config())


def at_paper_size(run: RunConfig, full: RunConfig) -> RunConfig | None:
    """A run as it would sample at the paper's size; None where its schedule is for other tokens.

    Args:
      run: with the settings of a row.
      full: the run of full depth, which has the paper's 12 + 12 blocks.
    """
    base = paper_run(run.objective)

    def depth(field: str) -> int:
        share = getattr(run.model.backbone, field) / getattr(full.model.backbone, field)
        return round(share * getattr(base.model.backbone, field))

    depths = {field: depth(field) for field in ("encoder_depth", "decoder_depth")}
    backbone = dataclasses.replace(base.model.backbone, **depths)
    try:
        return dataclasses.replace(
            run,
            model=dataclasses.replace(base.model, backbone=backbone),
            energy=base.energy,
            decode=dataclasses.replace(run.decode, max_segments=base.decode.max_segments),
        )
    except ConfigError:
        return None


def num_passes(run: RunConfig) -> int:
    """Passes of the network for a clip: two where guidance needs a second one."""
    guides_itself = build_objective(run).max_strength is not None
    if run.model.network == "latent":
        twice = run.decode.guidance_scale != 1 and not guides_itself
        return run.decode.num_iterations * (2 if twice else 1)
    segments = plan_segments(run.decode, run.model.num_tokens)
    return sum(
        len(segment.counts) * (1 if guides_itself else segment.branches) for segment in segments
    )


def cost(runs: Mapping[str, RunConfig], row: Row) -> dict[str, Any]:
    """Passes of the backbone and operations of a clip, here and at the paper's size."""
    run = sampled(runs, row.setting)
    full = runs.get(STUDENT, runs[row.setting.run])
    paper = at_paper_size(run, full)
    return {
        "passes": num_passes(run),
        "gflop": sampling_flops(run).total / 1e9,
        "paper_tflop": None if paper is None else sampling_flops(paper).total / 1e12,
    }
