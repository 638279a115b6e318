"""What the settings of a model take here, from prompts to sound: kept for `--max_seconds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tqdm

from benchmarks import frontier_grid
from benchmarks.frontier_times import Limits, Rate, warm_calls
from benchmarks.settings import Setting
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.generation.time_budget import MeasuredSetting, read_quality
from fasttta_jax.performance.flops import sampling_flops
from fasttta_jax.report.text_table import format_table
from fasttta_jax.report.values import MISSING

MODEL = "model"


def settings_of(pipeline: Pipeline) -> list[Setting]:
    """Those of the model's frontier where there is one, else its iterations; cheapest first."""
    runs = {MODEL: pipeline.trained.config}
    known = read_quality(pipeline.measured_times.model)
    settings = [Setting(MODEL, decode, steps) for decode, steps in known]
    if not settings:
        rows = frontier_grid.plan(runs)
        settings = [row.setting for row in rows if not row.variant]
    return sorted(settings, key=lambda one: sampling_flops(frontier_grid.sampled(runs, one)).total)


def measure_here(
    pipeline: Pipeline, batch_sizes: Sequence[int], limits: Limits
) -> list[MeasuredSetting]:
    """Measures every setting at every batch size that fits, and keeps each at once.

    Returns:
      All that are kept: those of earlier calls, too, with their other batch sizes.
    """
    store = pipeline.measured_times
    kept = {(one.decode, one.sampling_steps): dict(one.seconds) for one in store.read()}
    rate, settings = Rate(), settings_of(pipeline)
    sizes = sorted({pipeline.filled(size) for size in batch_sizes})
    for setting in tqdm.tqdm(settings, "measuring settings", unit="setting"):
        trained = pipeline.trained.with_sampling(setting.decode, setting.sampling_steps)
        flops = sampling_flops(trained.config).total
        sampled = Pipeline(trained, pipeline.mesh)
        for size in sizes:
            if rate.seconds(size * flops) > limits.longest_call:
                continue
            _make(sampled, size)  # compiles
            timing = warm_calls(lambda sampled=sampled, size=size: _make(sampled, size), limits)
            rate.saw(size * flops, timing.median)
            kept.setdefault((setting.decode, setting.sampling_steps), {})[size] = timing.high
            store.write(MeasuredSetting(*key, seconds) for key, seconds in kept.items())
    return store.read()


def _make(pipeline: Pipeline, batch_size: int) -> list[Any]:
    return [clip.audio for clip in pipeline.generate([""] * batch_size, batch_size=batch_size)]


def to_text(settings: Sequence[MeasuredSetting]) -> str:
    """A table of what was found."""
    sizes = sorted({size for one in settings for size in one.seconds})
    head = ["setting", *(f"s, batch of {size}" for size in sizes), "quality known"]
    rows = []
    for one in settings:
        cells = (one.seconds.get(size) for size in sizes)
        seconds = [MISSING if value is None else f"{value:.3f}" for value in cells]
        rows.append([str(one), *seconds, "no" if one.quality is None else "yes"])
    return format_table(head, rows)
