"""The rows of the ablation sweep: which runs are trained, and how each of them decodes.

Everything follows from the configs of the runs. Rows that come to the same run and the same way of
decoding share one `Setting`, which is evaluated once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from benchmarks.rows import choose
from benchmarks.settings import Setting
from fasttta_jax.config import RunConfig

TEACHER = "teacher"
STUDENT = "student"
GUIDANCE_SCALES = (1.0, 2.0, 3.0, 4.5, 6.0)
SAMPLING_STEPS = (10, 25, 50, 100)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      group: the table's section.
      name: what --only is matched with; unique.
      setting: what is evaluated.
    """

    group: str
    name: str
    setting: Setting


def shortened(config: RunConfig, num_steps: int | None) -> RunConfig:
    """The run with `num_steps` steps, warm-up and decay in proportion; as it is for None.

    It is evaluated, and saved, twice, and writes no samples.
    """
    total = config.num_steps if num_steps is None else num_steps
    optimizer = dataclasses.replace(
        config.optimizer,
        warmup_steps=config.optimizer.warmup_steps * total // config.num_steps,
        decay_steps=config.optimizer.decay_steps * total // config.num_steps,
    )
    return dataclasses.replace(
        config,
        num_steps=total,
        evaluate_every=max(1, -(-total // 2)),
        optimizer=optimizer,
        sample_prompts=(),
    )


def distinct_runs(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """For each name the first one with an equal config: the run that stands for both."""
    first: dict[RunConfig, str] = {}
    return {name: first.setdefault(config, name) for name, config in configs.items()}


def plan(teacher: RunConfig, students: Mapping[str, RunConfig], only: str = "") -> list[Row]:
    """The rows of the sweep, in order.

    Args:
      teacher: config of the trained teacher.
      students: config of every student by name; `STUDENT` is the one that decodes in many ways.
      only: rows whose name this regular expression does not find are left out.

    Raises:
      ValueError: no row is left, or `only` is no regular expression.
    """
    runs = distinct_runs(students)
    base = {
        TEACHER: Setting(TEACHER, teacher.decode, teacher.diffusion.sampling_steps),
        **{name: Setting(runs[name], config.decode, None) for name, config in students.items()},
    }
    rows = [Row("Training", name, setting) for name, setting in base.items()]
    tokens = teacher.model.num_tokens
    iterations = [2**power for power in range(tokens.bit_length())]
    for name in (TEACHER, STUDENT):
        for scale in GUIDANCE_SCALES:
            setting = base[name].changed(guidance_scale=scale)
            rows.append(Row("Guidance scale", f"{name}_guidance_{scale:g}", setting))
    for name in (TEACHER, STUDENT):
        for number in iterations:
            setting = base[name].changed(num_iterations=number)
            rows.append(Row("Decoding iterations", f"{name}_iterations_{number}", setting))
    for steps in SAMPLING_STEPS:
        if steps <= teacher.diffusion.num_steps:
            setting = dataclasses.replace(base[TEACHER], sampling_steps=steps)
            rows.append(Row("Diffusion steps", f"{TEACHER}_diffusion_{steps}", setting))
    return choose(rows, only)
