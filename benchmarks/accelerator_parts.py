"""What `accelerator` measures, part by part: samplers, training steps, the front end, profiles.

All with random weights: times depend on shapes. A part is a name and a function that compiles one
program, times it until its time is over, and returns a row.
Dimensions: B clips, N tokens, T iterations.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from benchmarks import frontend, measure, sampler
from benchmarks.accelerator_profile import top_costs
from benchmarks.frontend_parts import SIZES as FRONTEND_SIZES
from benchmarks.frontend_parts import Part as FrontendPart
from benchmarks.frontend_parts import draw_inputs
from benchmarks.train_step import Training, in_one_part
from fasttta_jax.config import RunConfig
from fasttta_jax.parallel.compile import Compiled
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance.accelerators import peak_flops
from fasttta_jax.performance.flops import sampling_flops, training_step_flops
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder

SizeName = Literal["base", "tiny"]
Kind = Literal["sampler", "training", "front end", "profile"]
MOST_CALLS = 20
FRONTEND_PARTS = ("codec_encode", "codec_decode", "t5", "clap_text", "clap_audio")


class Size(NamedTuple):
    """The models that are measured.

    Attributes:
      teacher, student, guided: configs.
      seconds: length of a clip.
      divisor: of the iterations and of the diffusion steps, for models that have few tokens.
      batch_sizes: of the samplers.
      train_batch_size: clips of a training step.
      frontend: of the networks of the front end.
      frontend_batch_size: its clips.
    """

    teacher: str
    student: str
    guided: str
    seconds: float
    divisor: int
    batch_sizes: tuple[int, ...]
    train_batch_size: int
    frontend: str
    frontend_batch_size: int


SIZES: Mapping[SizeName, Size] = {
    "base": Size(
        "configs/impact_base.py",
        "configs/audiodear_base.py",
        "configs/audiodear_base_guided.py",
        10.24,
        divisor=1,
        batch_sizes=(1, 8, 64),
        train_batch_size=64,
        frontend="published",
        frontend_batch_size=8,
    ),
    "tiny": Size(
        "configs/tiny.py:teacher",
        "configs/tiny.py:student",
        "configs/tiny.py:guided",
        2.56,
        divisor=8,
        batch_sizes=(1, 2),
        train_batch_size=2,
        frontend="small",
        frontend_batch_size=1,
    ),
}


class Program(NamedTuple):
    """A sampler.

    Attributes:
      run: with its settings of decoding.
      model: the run whose parameters it has, with settings of its own.
    """

    run: RunConfig
    model: RunConfig


class Part(NamedTuple):
    """One measurement.

    Attributes:
      name: unique.
      kind: which table it is a row of.
      measure: gives the row, in about so many seconds beside compiling.
    """

    name: str
    kind: Kind
    measure: Callable[[float], dict[str, Any]]


def programs(size: Size, dtype: str) -> dict[str, Program]:
    """The ten samplers of the frontier, by name.

    "doubled" runs the backbone with and without text; "single" once, being told the strength.
    """
    teacher = measure.load_run_config(size.teacher, dtype)
    student = measure.load_run_config(size.student, dtype)
    guided = measure.load_run_config(size.guided, dtype)
    backbone = guided.model.backbone

    def with_decode(model: RunConfig, iterations: int, **changes: Any) -> Program:
        settings = {"guidance_scale": 5.0, "max_segments": 4, **changes}
        number = max(2, iterations // size.divisor)
        decode = dataclasses.replace(model.decode, num_iterations=number, **settings)
        return Program(dataclasses.replace(model, decode=decode), model)

    def taught(iterations: int, steps: int) -> Program:
        run, model = with_decode(teacher, iterations)
        steps = max(2, steps // size.divisor)
        return Program(sampler.with_settings(run, sampling_steps=steps), model)

    half = dataclasses.replace(
        backbone,
        encoder_depth=max(1, backbone.encoder_depth // 2),
        decoder_depth=max(1, backbone.decoder_depth // 2),
    )
    shallow = dataclasses.replace(guided, model=dataclasses.replace(guided.model, backbone=half))
    return {
        "teacher 64 x 100": taught(64, 100),
        "teacher 32 x 20": taught(32, 20),
        **{f"student {number} doubled": with_decode(student, number) for number in (64, 32, 16)},
        **{f"student {number} single": with_decode(guided, number) for number in (32, 18, 16)},
        "student 32 single, half depth": with_decode(shallow, 32),
        "student 16 exponential, guided late": with_decode(
            student, 16, counts="exponential", guided=(0.1, 0.3 if size.divisor == 1 else 1.0)
        ),
    }


def parts(size: Size, dtype: str) -> list[Part]:
    """All of them, what tells most first: training, then samplers from the smallest batch."""
    runs = {"teacher": size.teacher, "student": size.student}
    found = [
        Part(f"training {name}", "training", functools.partial(_training, size, dtype, config))
        for name, config in runs.items()
    ]
    samplers = programs(size, dtype)
    for batch_size in size.batch_sizes:
        for name, program in samplers.items():
            found.append(
                Part(
                    f"{name} x {batch_size}",
                    "sampler",
                    functools.partial(_sampler, size, name, program, batch_size),
                )
            )
    found += [
        Part(name, "front end", functools.partial(_front_end, size, dtype, name))
        for name in FRONTEND_PARTS
    ]
    name, largest = "student 16 single", size.batch_sizes[-1]
    profiled = functools.partial(_profiled_sampler, size, name, samplers[name], largest)
    found.append(Part(f"profile of {name} x {largest}", "profile", profiled))
    profiled = functools.partial(_profiled_training, size, dtype)
    found.append(Part("profile of training student", "profile", profiled))
    return found


def timed(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """First call, and warm calls: one at least, then as long as there is time for another."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    calls: list[float] = []
    end = time.perf_counter() + seconds
    while not calls or (len(calls) < MOST_CALLS and time.perf_counter() + max(calls) < end):
        start = time.perf_counter()
        jax.block_until_ready(call())
        calls.append(time.perf_counter() - start)
    low, median, high = np.percentile(calls, (10, 50, 90)).tolist()
    return {
        "first_call_seconds": first,
        "median_seconds": median,
        "p10_seconds": low,
        "p90_seconds": high,
        "repeats": len(calls),
    }


def utilisation(flops_per_second: float, dtype: str) -> float | None:
    """Of the device's peak rate; None where that is not known."""
    peak = peak_flops(jax.devices()[0].device_kind, dtype)
    return None if peak is None else flops_per_second / peak


@functools.cache
def _params(run: RunConfig) -> Any:
    system = build_model(run, abstract_text_encoder(run.model.text))
    return measure.random_params(system.init)


def _case(size: Size, name: str, program: Program, batch_size: int) -> sampler.Case:
    model = sampler.Model(name, program.run, size.seconds)
    return sampler.Case(model, "segments", batch_size, _params(program.model))


def _rates(
    batch_size: int, clip_seconds: float, times: Mapping[str, Any], flops: float, dtype: str
) -> dict[str, Any]:
    rate = batch_size * flops / times["median_seconds"]
    return {
        "batch_size": batch_size,
        "dtype": dtype,
        **times,
        "clips_per_second": batch_size / times["median_seconds"],
        "real_time_factor": times["median_seconds"] / (batch_size * clip_seconds),
        "flops_per_clip": flops,
        "flops_per_second": rate,
        "utilisation": utilisation(rate, dtype),
    }


def _memory(program: Compiled[Any]) -> dict[str, Any]:
    return {
        "compile_seconds": program.report.seconds,
        "memory_bytes": program.report.total_bytes,
        "peak_device_bytes": measure.peak_device_bytes(),
    }


def _sampler(
    size: Size, name: str, program: Program, batch_size: int, seconds: float
) -> dict[str, Any]:
    case, run = _case(size, name, program, batch_size), program.run
    times = timed(case, seconds)
    flops = sampling_flops(run).total
    rates = _rates(batch_size, size.seconds, times, flops, run.model.dtype)
    return {"program": name, **rates, **_memory(case.program)}


def _train(size: Size, dtype: str, config: str) -> Training:
    run = in_one_part(measure.load_run_config(config, dtype), size.train_batch_size)
    mesh = make_mesh(run.mesh, jax.devices()[:1])
    return Training(measure.model_label(config), run, size.seconds, mesh)


def _training(size: Size, dtype: str, config: str, seconds: float) -> dict[str, Any]:
    training = _train(size, dtype, config)
    times = timed(training.step("gathered"), seconds)
    flops = training_step_flops(training.run).total
    rates = _rates(size.train_batch_size, size.seconds, times, flops, dtype)
    return {"program": training.label, **rates, **_memory(training.program("gathered"))}


def _front_end(size: Size, dtype: str, name: str, seconds: float) -> dict[str, Any]:
    sizes, number = FRONTEND_SIZES[size.frontend], size.frontend_batch_size
    case = frontend.build_cases([name], [number], [32])[0]
    shape, arrays = draw_inputs(case.part, sizes, case.batch_size, case.text_length)
    part = FrontendPart(case.part, sizes, arrays, dtype)
    times = timed(part, seconds)
    return {
        "program": name,
        "input": shape,
        "batch_size": number,
        "dtype": dtype,
        **times,
        "clips_per_second": number / times["median_seconds"],
        **_memory(part.compiled),
    }


def _profiled_sampler(
    size: Size, name: str, program: Program, batch_size: int, seconds: float
) -> dict[str, Any]:
    del seconds
    case = _case(size, name, program, batch_size)
    jax.block_until_ready(case())
    return {"program": name, "costs": top_costs(case, case.program.as_text())}


def _profiled_training(size: Size, dtype: str, seconds: float) -> dict[str, Any]:
    del seconds
    training = _train(size, dtype, size.student)
    step = training.step("gathered")
    jax.block_until_ready(step())
    costs = top_costs(step, training.program("gathered").as_text())
    return {"program": f"training {training.label}", "costs": costs}
