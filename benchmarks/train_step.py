"""How fast teacher and student train, and where the time of a step goes.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --config=configs/impact_base.py \\
        --config=configs/audiodear_base.py --batch_size=64 --dtype=bfloat16 --out=train_step.json

Times the compiled step that training runs, on synthetic clips, over all devices with the mesh of
the config, warm and in turns. `gathered` is the package's step, whose encoder reads the visible
tokens; the encoder of `full_length` reads all of them. The batch is one part: gradients are not
accumulated. With --split the loss and its gradients are also timed alone, and a step is divided
into forward pass, backward pass and update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from benchmarks import measure
from benchmarks.baselines import full_length
from fasttta_jax import cli
from fasttta_jax.config import RunConfig
from fasttta_jax.input_pipeline.pairs import NOISE_SEEDS
from fasttta_jax.objectives import build_objective, training_masks
from fasttta_jax.parallel.compile import (
    Compiled,
    Program,
    abstract_state,
    compile_init,
    compile_train_step,
)
from fasttta_jax.parallel.mesh import check_batch_size, make_mesh
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.performance.flops import StepFlops, training_step_flops
from fasttta_jax.performance.timing import MIN_REPEATS, Timing, time_in_turns
from fasttta_jax.report.text_table import format_table
from fasttta_jax.text import TextEncoder, abstract_text_encoder
from fasttta_jax.training import programs
from fasttta_jax.training import step as training_step
from fasttta_jax.training.step import Batch, StepContext
from fasttta_jax.typing import Key, Metrics, Params

Encoder = Literal["gathered", "full_length"]
COLUMNS = (
    "model",
    "encoder",
    "clips",
    "compile s",
    "median ms",
    "p10..p90 ms",
    "clips/s",
    "s of audio/s",
    "GFLOP/clip",
    "of it padding",
    "GFLOP/s",
    "MiB",
)
SPLIT_COLUMNS = ("model", "forward ms", "backward ms", "update ms")


class Results(NamedTuple):
    """What goes into the JSON file.

    Attributes:
      rows: a step of each model and encoder.
      splits: where the time of a gathered step goes.
      comparisons: gathered against full length.
    """

    rows: list[dict[str, Any]]
    splits: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]


def synthetic_batch(run: RunConfig, text: TextEncoder, mesh: Mesh) -> Batch:
    """Gaussian tokens and the text encoder's stand-in arrays, split over the mesh."""
    size, model = run.data.batch_size, run.model
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {
        "tokens": rng.standard_normal((size, model.num_tokens, model.token_dim), np.float32),
        "weight": np.ones(size, np.float32),
        "text": text.tokenize(["a caption"] * size),
    }
    if build_objective(run).wants_pairs:
        batch[NOISE_SEEDS] = np.arange(size, dtype=np.uint32)
    return jax.device_put(batch, batch_sharding(mesh))


def step_context(run: RunConfig, encoder: Encoder) -> StepContext:
    """The context of a run, with the encoder that is timed."""
    context = programs.default_context(run, abstract_text_encoder(run.model.text))
    if encoder == "gathered":
        return context
    teacher = None if context.teacher is None else full_length(context.teacher)
    return programs.make_context(run, full_length(context.model), teacher)


def loss_of(context: StepContext) -> Callable[[Params, Params, Batch, Key], jax.Array]:
    """The training loss of (params, frozen, batch, key), a pure function."""

    def loss(params: Params, frozen: Params, batch: Batch, key: Key) -> jax.Array:
        others = {"frozen": frozen, "average": params, "target": None}
        return training_step.loss(context, params, batch, key, **others, train=True)[0]

    return loss


class Training:
    """One model in training; all its programs share its state, batch and frozen teacher.

    Args:
      label: the model's name in the tables.
      run: its config; the teacher of a student has fresh parameters.
      seconds: length of a clip.
      mesh: the devices.

    Raises:
      ConfigError: the batch cannot be split over the mesh.
    """

    def __init__(self, label: str, run: RunConfig, seconds: float, mesh: Mesh) -> None:
        check_batch_size(run.data.batch_size, mesh)
        self.label, self.run, self.seconds, self.mesh = label, run, seconds, mesh
        context = step_context(run, "gathered")

        fresh_state = programs.fresh_state(context)
        self.abstract = abstract_state(fresh_state, mesh)
        self.state = compile_init(fresh_state, self.abstract, mesh)(jax.random.key(0))
        self.frozen: Params = {}
        if context.teacher is not None:
            shapes = abstract_state(context.teacher.init, mesh)
            self.frozen = compile_init(context.teacher.init, shapes, mesh)(jax.random.key(1))
        self.batch = synthetic_batch(run, context.model.text, mesh)
        self._compiled: dict[str, Compiled[Any]] = {}

    def step(self, encoder: Encoder) -> Callable[[], Metrics]:
        """A call that does one optimizer step, after all others of this model."""
        context = step_context(self.run, encoder)
        program = compile_train_step(
            programs.train_step(context), self.abstract, self.frozen, self.mesh
        )

        def call() -> Metrics:
            self.state, metrics = self._run(encoder, program, self.state)
            return metrics

        return call

    def part(self, name: Literal["forward", "gradients"]) -> Callable[[], Any]:
        """A call that computes the loss alone, or its gradients."""
        loss = loss_of(step_context(self.run, "gathered"))
        function = loss if name == "forward" else jax.grad(loss)
        program = Program(jax.jit(function), self.mesh)
        return lambda: self._run(name, program, self.state.params)

    def _run(self, name: str, program: Program[Any], state: Any) -> Any:
        """Calls a program, compiled at its first call."""
        arguments = state, self.frozen, self.batch, jax.random.key(2)
        if name not in self._compiled:
            self._compiled[name] = program.compile(*arguments)
        return self._compiled[name](*arguments)

    def program(self, name: str) -> Compiled[Any]:
        """One that has run, by its encoder or part."""
        return self._compiled[name]

    def flops(self, encoder: Encoder) -> StepFlops:
        """Of one clip."""
        visible = self.run.model.num_tokens if encoder == "full_length" else None
        return training_step_flops(self.run, visible)

    def row(self, encoder: Encoder, timing: Timing) -> dict[str, Any]:
        """What was found for a step."""
        run, flops = self.run, self.flops(encoder)
        size = run.data.batch_size
        masks = training_masks(run, build_objective(run))
        visible = masks.mean_visible(run.model.num_tokens)
        return {
            "model": self.label,
            "objective": run.objective,
            "encoder": encoder,
            "batch_size": size,
            "dtype": run.model.dtype,
            "clip_seconds": self.seconds,
            **measure.timing_columns(timing, [self._compiled[encoder].report]),
            "clips_per_second": size / timing.median,
            "audio_seconds_per_second": size * self.seconds / timing.median,
            "forward_flops_per_clip": flops.forward,
            "flops_per_clip": flops.total,
            "unpadded_flops_per_clip": training_step_flops(run, visible).total,
            "flops_per_second": size * flops.total / timing.median,
        }


def encoders(run: RunConfig) -> tuple[Encoder, ...]:
    """Both, but for a backbone without an encoder, which always reads everything."""
    return ("gathered", "full_length") if run.model.backbone.encoder_depth else ("gathered",)


def benchmark(trainings: Sequence[Training], *, repeats: int, split: bool) -> Results:
    """Times the steps of all models in turns.

    Args:
      trainings: teachers and students; their states move on.
      repeats: warm calls of each case.
      split: also time the loss and the gradients alone.
    """
    cases: dict[str, Callable[[], Any]] = {}
    for one in trainings:
        for encoder in encoders(one.run):
            cases[f"{one.label} {encoder}"] = one.step(encoder)
        if split:
            cases[f"{one.label} forward"] = one.part("forward")
            cases[f"{one.label} gradients"] = one.part("gradients")
    timings = time_in_turns(cases, repeats)
    rows = [
        one.row(encoder, timings[f"{one.label} {encoder}"])
        for one in trainings
        for encoder in encoders(one.run)
    ]
    splits = []
    for one in trainings if split else ():
        forward, gradients, step = (
            timings[f"{one.label} {name}"].median for name in ("forward", "gradients", "gathered")
        )
        splits.append(
            {
                "model": one.label,
                "forward_seconds": forward,
                "backward_seconds": gradients - forward,
                "update_seconds": step - gradients,
            }
        )
    comparisons = [
        {
            "model": ours["model"],
            "faster": ours["encoder"],
            "than": theirs["encoder"],
            "allowed": theirs["flops_per_clip"] / ours["flops_per_clip"],
            "measured": theirs["median_seconds"] / ours["median_seconds"],
        }
        for ours in rows
        for theirs in rows
        if ours["model"] == theirs["model"]
        and (ours["encoder"], theirs["encoder"]) == ("gathered", "full_length")
    ]
    return Results(rows, splits, comparisons)


def as_cells(values: dict[str, Any]) -> list[str]:
    """A row of the main table."""
    padding = 1 - values["unpadded_flops_per_clip"] / values["flops_per_clip"]
    return [
        values["model"],
        values["encoder"],
        str(values["batch_size"]),
        f"{values['compile_seconds']:.1f}",
        f"{1e3 * values['median_seconds']:.1f}",
        f"{1e3 * values['p10_seconds']:.1f}..{1e3 * values['p90_seconds']:.1f}",
        f"{values['clips_per_second']:.2f}",
        f"{values['audio_seconds_per_second']:.1f}",
        f"{values['flops_per_clip'] / 1e9:.3f}",
        f"{padding:.0%}",
        f"{values['flops_per_second'] / 1e9:.1f}",
        f"{values['memory_bytes'] / 2**20:.1f}",
    ]


def report(results: Results) -> str:
    """The tables."""
    tables = [format_table(COLUMNS, [as_cells(row) for row in results.rows], num_names=2)]
    if results.splits:
        parts = ("forward_seconds", "backward_seconds", "update_seconds")
        rows = [
            [split["model"], *(f"{1e3 * split[part]:.1f}" for part in parts)]
            for split in results.splits
        ]
        tables.append(format_table(SPLIT_COLUMNS, rows))
    if results.comparisons:
        ratios = [
            [pair["model"], f"{pair['allowed']:.2f}", f"{pair['measured']:.2f}"]
            for pair in results.comparisons
        ]
        tables.append(format_table(("gathered is faster by", "by FLOPs", "measured"), ratios))
    return "\n\n".join(tables)


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_multi_string(
        "config",
        ["configs/tiny.py:teacher", "configs/tiny.py:student"],
        "A file of configs/, with :argument or not; give the flag once for each model.",
    )
    flags.DEFINE_integer(
        "batch_size", None, "Global batch size; left out: the config's data.batch_size.", 1
    )
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "Of the matrix products; left out: the config's."
    )
    flags.DEFINE_bool("split", True, "Also time the loss and its gradients alone.")
    flags.DEFINE_integer("repeats", 10, "Warm calls of every case.", MIN_REPEATS)
    flags.DEFINE_float(
        "seconds", None, "Length of a clip; left out: by the number of tokens, as in configs/.", 0
    )
    flags.DEFINE_string("out", None, "JSON file for the results.")


def in_one_part(run: RunConfig, batch_size: int | None) -> RunConfig:
    """`run` without accumulation, and with another batch size where one is given."""
    data = run.data if batch_size is None else dataclasses.replace(run.data, batch_size=batch_size)
    optimizer = dataclasses.replace(run.optimizer, accumulation_steps=1)
    return dataclasses.replace(run, data=data, optimizer=optimizer)


def main() -> None:
    """Runs the benchmark that the flags describe."""
    measure.measure_compilation()
    values = flags.FLAGS
    trainings = []
    for name in values.config:
        run = in_one_part(measure.load_run_config(name, values.dtype), values.batch_size)
        seconds = measure.clip_seconds(run.model.num_tokens, values.seconds)
        label = measure.model_label(name)
        trainings.append(Training(label, run, seconds, make_mesh(run.mesh)))
    results = benchmark(trainings, repeats=values.repeats, split=values.split)
    measure.finish(results._asdict(), report(results), values.out)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
