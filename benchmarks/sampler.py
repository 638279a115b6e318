"""How fast teacher and student make tokens, beside what the arithmetic allows.

    python -m benchmarks.sampler
    python -m benchmarks.sampler --config=configs/impact_base.py \\
        --config=configs/audiodear_base.py --batch_sizes=1,8 --num_iterations=16,64 \\
        --dtype=bfloat16 --out=sampler.json

Times the token sampler alone, without codec, on one device, with random weights, warm. `segments`
is the package's decoder. `full_length` gathers nothing and computes the states of all tokens.
`host_loop` is driven from Python, one program for each pass of the backbone and each diffusion
step. All cases take turns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
from absl import flags

from benchmarks import measure
from benchmarks.baselines import HostLoop, full_length
from fasttta_jax import cli
from fasttta_jax.config import MeshConfig, RunConfig
from fasttta_jax.decoding.loop import DecodeResult
from fasttta_jax.generation.sampler import Sampler
from fasttta_jax.parallel.compile import Compiled, Program
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance.flops import DecodeKind, sampling_flops
from fasttta_jax.performance.timing import MIN_REPEATS, Timing, time_in_turns
from fasttta_jax.report.text_table import format_table
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.typing import Params, Tokens

Decode = Literal["segments", "full_length", "host_loop"]
COLUMNS = (
    "model",
    "decode",
    "clips",
    "iterations",
    "compile s",
    "median ms",
    "p10..p90 ms",
    "clips/s",
    "s per s of audio",
    "GFLOP/clip",
    "of it padding",
    "GFLOP/s",
    "MiB",
)


class Model(NamedTuple):
    """A system to be timed.

    Attributes:
      label: its name in the tables.
      run: its config.
      seconds: length of a clip.
    """

    label: str
    run: RunConfig
    seconds: float


class Row(NamedTuple):
    """One case: what it is and what was found, as it goes into the JSON file."""

    name: str
    values: dict[str, Any]


def with_settings(
    run: RunConfig,
    *,
    num_iterations: int | None = None,
    max_segments: int | None = None,
    sampling_steps: int | None = None,
) -> RunConfig:
    """`run` with other settings of its sampler; None leaves the config's."""
    decode, diffusion = run.decode, run.diffusion
    if num_iterations is not None:
        decode = dataclasses.replace(decode, num_iterations=num_iterations)
    if max_segments is not None:
        decode = dataclasses.replace(decode, max_segments=max_segments)
    if sampling_steps is not None:
        diffusion = dataclasses.replace(diffusion, sampling_steps=sampling_steps)
    return dataclasses.replace(run, decode=decode, diffusion=diffusion)


class Case:
    """One sampler on one batch.

    Args:
      model: what is timed.
      decode: how it is driven.
      batch_size: clips.
      params: the model's parameters.
    """

    def __init__(self, model: Model, decode: Decode, batch_size: int, params: Params) -> None:
        self.model, self.decode, self.batch_size = model, decode, batch_size
        run = model.run
        self.name = f"{model.label} {decode} {batch_size} x {run.decode.num_iterations}"
        system = build_model(run, abstract_text_encoder(run.model.text))
        text = jax.device_put(system.text.tokenize(["a caption"] * batch_size))
        keys = jax.random.split(jax.random.key(0), batch_size)
        if decode == "host_loop":
            self._sampler: HostLoop | Program[DecodeResult] = HostLoop(system, run.decode)
            self._inputs: tuple[Any, ...] = params, text, keys
        else:
            system = full_length(system) if decode == "full_length" else system
            mesh = make_mesh(MeshConfig(), jax.devices()[:1])
            # The grid of an order by bisection decides which positions come when, and no size.
            sampler = Sampler(system, run.decode, mesh, batch_size, tokens_per_column=1)
            self._sampler = sampler.program
            _, start = sampler.inputs(["a caption"] * batch_size, range(batch_size))
            self._inputs = params, text, start._replace(keys=keys)

    @functools.cached_property
    def _compiled(self) -> HostLoop | Compiled[DecodeResult]:
        """The sampler for this batch; a loop on the host compiles its parts when it meets them."""
        sampler = self._sampler
        return sampler if isinstance(sampler, HostLoop) else sampler.compile(*self._inputs)

    @property
    def program(self) -> Compiled[DecodeResult]:
        """The one that makes a batch; a loop on the host has several, and none of them does."""
        assert not isinstance(self._compiled, HostLoop), "a loop on the host is not one program"
        return self._compiled

    def __call__(self) -> Tokens:
        """Tokens, float32 [B, N, C], not waited for."""
        found = self._compiled(*self._inputs)
        return found.tokens if isinstance(found, DecodeResult) else found

    def row(self, timing: Timing) -> Row:
        """What was found."""
        run, sampler = self.model.run, self._compiled
        reports = sampler.reports if isinstance(sampler, HostLoop) else [sampler.report]
        kind: DecodeKind = "full_length" if self.decode == "full_length" else "segments"
        flops = sampling_flops(run, kind)
        values = {
            "model": self.model.label,
            "objective": run.objective,
            "decode": self.decode,
            "batch_size": self.batch_size,
            "num_iterations": run.decode.num_iterations,
            "sampling_steps": run.diffusion.sampling_steps if run.objective == "diffusion" else 1,
            "guidance_scale": run.decode.guidance_scale,
            "dtype": run.model.dtype,
            "clip_seconds": self.model.seconds,
            **measure.timing_columns(timing, reports),
            "clips_per_second": self.batch_size / timing.median,
            "real_time_factor": timing.median / (self.batch_size * self.model.seconds),
            "backbone_flops_per_clip": flops.backbone,
            "head_flops_per_clip": flops.head,
            "flops_per_clip": flops.total,
            "unpadded_flops_per_clip": sampling_flops(run, "unpadded").total,
            "flops_per_second": self.batch_size * flops.total / timing.median,
        }
        return Row(self.name, values)


def build_cases(
    models: Sequence[Model],
    *,
    batch_sizes: Sequence[int],
    num_iterations: Sequence[int],
    decodes: Sequence[Decode],
) -> list[Case]:
    """Every model at every batch size and number of iterations, driven in every way.

    Args:
      models: teachers and students; each has one set of parameters for all its cases.
      batch_sizes: clips.
      num_iterations: decoding iterations; none means those of each config.
      decodes: ways to drive the sampler.

    Raises:
      ConfigError: more iterations than tokens.
    """
    cases = []
    for model in models:
        system = build_model(model.run, abstract_text_encoder(model.run.model.text))
        params = measure.random_params(system.init)
        for iterations in num_iterations or [model.run.decode.num_iterations]:
            run = with_settings(model.run, num_iterations=iterations)
            for batch_size in batch_sizes:
                for decode in decodes:
                    cases.append(Case(model._replace(run=run), decode, batch_size, params))
    return cases


def benchmark(cases: Sequence[Case], repeats: int) -> list[Row]:
    """Times all cases in turns, `repeats` warm calls of each.

    Raises:
      ValueError: two cases are the same.
    """
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is asked for more than once; allowed: every case once")
    timings = time_in_turns({case.name: case for case in cases}, repeats)
    return [case.row(timings[case.name]) for case in cases]


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Pairs of rows with the same batch: how much faster the first is, and might be.

    The package's decoder against the others, and each student against each teacher at as many
    iterations. `allowed` is the ratio of operations, `measured` the ratio of times.
    """
    found = []
    for row in rows:
        for other in rows:
            ours, theirs = row.values, other.values
            same = all(ours[key] == theirs[key] for key in ("batch_size", "num_iterations"))
            is_decoder = ours["decode"] == "segments" and ours["model"] == theirs["model"]
            is_student = theirs["objective"] == "diffusion" != ours["objective"]
            same_decode = ours["decode"] == theirs["decode"] == "segments"
            if not same or row is other or not (is_decoder or (is_student and same_decode)):
                continue
            found.append(
                {
                    "faster": row.name,
                    "than": other.name,
                    "allowed": theirs["flops_per_clip"] / ours["flops_per_clip"],
                    "measured": theirs["median_seconds"] / ours["median_seconds"],
                }
            )
    return found


def as_cells(values: dict[str, Any]) -> list[str]:
    """A row of the main table."""
    padding = 1 - values["unpadded_flops_per_clip"] / values["flops_per_clip"]
    return [
        values["model"],
        values["decode"],
        str(values["batch_size"]),
        str(values["num_iterations"]),
        f"{values['compile_seconds']:.1f}",
        f"{1e3 * values['median_seconds']:.2f}",
        f"{1e3 * values['p10_seconds']:.2f}..{1e3 * values['p90_seconds']:.2f}",
        f"{values['clips_per_second']:.2f}",
        f"{values['real_time_factor']:.4f}",
        f"{values['flops_per_clip'] / 1e9:.3f}",
        f"{padding:.0%}",
        f"{values['flops_per_second'] / 1e9:.1f}",
        f"{values['memory_bytes'] / 2**20:.1f}",
    ]


def report(rows: Sequence[Row], comparisons: Sequence[dict[str, Any]]) -> str:
    """Both tables."""
    text = format_table(COLUMNS, [as_cells(row.values) for row in rows], num_names=2)
    if not comparisons:
        return text
    ratios = [
        [pair["faster"], pair["than"], f"{pair['allowed']:.2f}", f"{pair['measured']:.2f}"]
        for pair in comparisons
    ]
    columns = ("how much faster is", "than", "by FLOPs", "measured")
    return f"{text}\n\n{format_table(columns, ratios, num_names=2)}"


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_multi_string(
        "config",
        ["configs/tiny.py:teacher", "configs/tiny.py:student"],
        "A file of configs/, with :argument or not; give the flag once for each model.",
    )
    flags.DEFINE_list("batch_sizes", ["1", "8"], "Clips that are made together.")
    flags.DEFINE_list("num_iterations", [], "Decoding iterations; left out: the config's.")
    flags.DEFINE_integer(
        "max_segments", None, "Groups of iterations of one size; left out: the config's.", 1
    )
    flags.DEFINE_integer(
        "sampling_steps", None, "Diffusion steps of a teacher; left out: the config's.", 2
    )
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "Of the matrix products; left out: the config's."
    )
    flags.DEFINE_bool("full_length", True, "Also time the decoder without gathering.")
    flags.DEFINE_bool("host_loop", True, "Also time the decoder driven from Python.")
    flags.DEFINE_integer("repeats", 10, "Warm calls of every case.", MIN_REPEATS)
    flags.DEFINE_float(
        "seconds", None, "Length of a clip; left out: by the number of tokens, as in configs/.", 0
    )
    flags.DEFINE_string("out", None, "JSON file for the results.")


def main() -> None:
    """Runs the benchmark that the flags describe."""
    measure.measure_compilation()
    values = flags.FLAGS
    models = []
    for name in values.config:
        run = measure.load_run_config(name, values.dtype)
        run = with_settings(
            run, max_segments=values.max_segments, sampling_steps=values.sampling_steps
        )
        seconds = measure.clip_seconds(run.model.num_tokens, values.seconds)
        models.append(Model(measure.model_label(name), run, seconds))
    decodes: list[Decode] = ["segments"]
    if values.full_length:
        decodes.append("full_length")
    if values.host_loop:
        decodes.append("host_loop")
    cases = build_cases(
        models,
        batch_sizes=measure.positive_integers("batch_sizes", values.batch_sizes),
        num_iterations=measure.positive_integers("num_iterations", values.num_iterations),
        decodes=decodes,
    )
    rows = benchmark(cases, values.repeats)
    comparisons = compare(rows)
    measure.finish(
        {"rows": [row.values for row in rows], "comparisons": comparisons},
        report(rows, comparisons),
        values.out,
    )


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
