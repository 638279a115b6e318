"""Compiles a run's programs for chips that are not there, for `aot_report` and the benchmarks.

A case is lowered as training and generation would run it, from shapes with shardings alone; what is
found goes into one dictionary, ready for JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from fasttta_jax.config import ConfigError, RunConfig
from fasttta_jax.generation.sampler import Sampler, Start, TextGuidance
from fasttta_jax.parallel.compile import Program, abstract_state, compile_train_step
from fasttta_jax.parallel.mesh import AXES, AnyMesh, check_batch_size, mesh_sizes
from fasttta_jax.parallel.sharding import batch_sharding, check_rules, layout_warnings, replicated
from fasttta_jax.performance import hlo, hlo_text
from fasttta_jax.performance import topology as topologies
from fasttta_jax.performance.flops import sampling_flops, training_step_flops
from fasttta_jax.performance.hlo import (
    Collective,
    find_collectives,
    summarize,
)
from fasttta_jax.performance.topology import Topology
from fasttta_jax.text import TextEncoder
from fasttta_jax.training import programs

ProgramName = Literal["train", "sampler"]
Effort = Literal["full", "low"]
PROGRAMS: tuple[ProgramName, ...] = ("train", "sampler")
EFFORTS: dict[Effort, int] = {"full": 0, "low": 9}
"""XLA's effort levels: its own choice, and O0, which compiles faster, overlaps and fuses less."""
OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED.*(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT]?)", re.DOTALL
)
COMPILED = (
    "compile_seconds",
    "memory",
    "fits",
    "instructions",
    "fingerprint",
    "effort",
    "libtpu",
)
"""Of a report, what only the compiler knows; None where nothing is compiled. A program that does
not fit has no "instructions", which are its collectives one by one, and of its memory only "peak",
what it would need."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile, and the chips to compile it for.

    Attributes:
      config: the run; its mesh must multiply to the chips.
      topology: chips.
      program: "train" is the optimizer's step, "sampler" one call of the token sampler.
      effort: of the compiler.
    """

    config: RunConfig
    topology: Topology
    program: ProgramName
    effort: Effort = "full"

    def check(self) -> None:
        """Raises ConfigError where mesh, batch and chips do not fit together."""
        mesh = self.abstract_mesh()
        parts = self.config.optimizer.accumulation_steps if self.program == "train" else 1
        check_batch_size(self.config.data.batch_size, mesh, parts=parts)
        data, slices = mesh.shape["data"], self.topology.num_slices
        if data % slices:
            raise ConfigError(
                f"mesh.data is {data}; allowed: multiples of {slices}, the slices of "
                f"{self.topology}: fsdp and tensor stay within a slice"
            )

    def abstract_mesh(self) -> AbstractMesh:
        """The mesh without devices."""
        sizes = mesh_sizes(self.config.mesh, self.topology.num_chips)
        return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


# ------------------------------------------------------------------------------------ programs


def build(case: Case, text: TextEncoder, mesh: AnyMesh) -> tuple[Program[Any], dict[str, Any]]:
    """The program as a run jits it, and its arguments by name as shapes with shardings.

    Raises:
      ConfigError: a sharding rule of the config does not fit.
    """
    config, rules = case.config, case.config.mesh.rules
    context = programs.default_context(config, text)
    state = abstract_state(programs.fresh_state(context), mesh, rules)
    check_rules(state.params, mesh, rules)
    batch = programs.abstract_batch(config, text, mesh)
    if case.program == "train":
        frozen = {} if context.teacher is None else abstract_state(context.teacher.init, mesh)
        key = _key((), replicated(mesh))
        arguments = {"state": state, "frozen": frozen, "batch": batch, "key": key}
        step = programs.train_step(context)
        return compile_train_step(step, state, frozen, mesh), arguments
    size = config.data.batch_size
    # The grid of an order by bisection decides which positions come when, and no size.
    sampler = Sampler(context.model, config.decode, mesh, size, tokens_per_column=1)
    rows = batch_sharding(mesh)
    start = Start(_key((size,), rows), None)
    if sampler.guided:
        shape = (size, config.decode.num_iterations)
        scales: Any = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        negative = None if context.model.guides_itself else batch["text"]
        start = start._replace(guidance=TextGuidance(scales, negative))
    return sampler.program, {"params": state.ema, "text": batch["text"], "start": start}


def _key(shape: tuple[int, ...], sharding: Any) -> Any:
    dtype = jax.eval_shape(lambda: jax.random.key(0)).dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def lower(program: Program[Any], arguments: Mapping[str, Any], mesh: AnyMesh) -> Any:
    """The program lowered for TPUs, for devices or for an abstract mesh."""
    if isinstance(mesh, Mesh):
        return program.lower(*arguments.values())
    with jax.sharding.use_abstract_mesh(mesh):
        traced = program.jitted.trace(*arguments.values())
        return traced.lower(lowering_platforms=("tpu",))


def chip_bytes(tree: Any) -> int:
    """What a tree of shapes with shardings takes on one chip.

    Raises:
      ValueError: an array cannot be split as its sharding says.
    """
    return sum(leaf.dtype.itemsize * _chip_size(leaf) for leaf in jax.tree.leaves(tree))


def _chip_size(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


# -------------------------------------------------------------------------------------- reports


def flops_per_chip(case: Case) -> float:
    """Analytic operations of one call on one chip, a batch split evenly."""
    config = case.config
    per_clip = training_step_flops(config) if case.program == "train" else sampling_flops(config)
    return per_clip.total * config.data.batch_size / case.topology.num_chips


def _memory(compiled: Any) -> dict[str, int]:
    sizes = compiled.memory_analysis()
    return {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "aliased": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
        "peak": sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes,
    }


def traffic(
    instructions: Sequence[Mapping[str, Any]], topology: Topology, mesh: Mesh
) -> list[dict[str, Any]]:
    """Collectives by kind and axes, with the time that their bytes take between the chips.

    Args:
      instructions: as a report has them.
      topology: of the devices.
      mesh: over all of them.
    """
    single = [Collective(**{**one, "axes": tuple(one["axes"])}) for one in instructions]
    found = []
    for row in summarize(single):
        rate = topologies.axis_bandwidth(topology, mesh, row.axes)
        seconds = None if rate is None else row.sent_bytes / rate
        found.append({**row._asdict(), "axes": list(row.axes), "seconds": seconds})
    return found


def _compile(lowered: Any, case: Case, mesh: Mesh) -> dict[str, Any]:
    """Memory, time and instructions of a compiled program, as only the compiler knows them.

    Raises:
      jax.errors.JaxRuntimeError: it cannot compile the program, for want of something else than
        memory.
    """
    options = {"optimization_level": EFFORTS[case.effort]}
    start = time.perf_counter()
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        found = OUT_OF_MEMORY.search(str(error))
        if found is None:
            raise
        return {
            "compile_seconds": time.perf_counter() - start,
            "memory": {"peak": int(float(found[1]) * UNITS[found[2]])},
            "fits": False,
        }
    seconds = time.perf_counter() - start
    found = find_collectives(compiled.as_text(), mesh)
    return {
        "compile_seconds": seconds,
        "memory": _memory(compiled),
        "fits": True,
        "instructions": [{**dataclasses.asdict(one), "axes": list(one.axes)} for one in found],
    }


def _fingerprint(lowered: Any, case: Case, mesh: AnyMesh) -> str:
    """Equal where the same would be compiled again, and read in the same way."""
    parts = (lowered.as_text(), case.topology, dict(mesh.shape), case.effort)
    versions = jax.__version__, topologies.libtpu_version()
    readers = inspect.getsource(hlo), inspect.getsource(hlo_text)
    return hashlib.sha256(repr((*parts, *versions, *readers)).encode()).hexdigest()


def report(
    case: Case, text: TextEncoder, mesh: AnyMesh, known: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The report of one program, as it goes into the JSON file.

    Args:
      case: already checked.
      text: a text encoder of the run's shapes.
      mesh: over the topology's devices, or abstract; only for the first is anything compiled.
      known: earlier reports; one of the same program, compiler and chips is not compiled again.

    Raises:
      ConfigError: a sharding rule of the config does not fit.
      jax.errors.JaxRuntimeError: the program cannot be compiled, for want of something else than
        memory.
    """
    config, topology = case.config, case.topology
    program, arguments = build(case, text, mesh)
    params = arguments["state"].params if case.program == "train" else arguments["params"]
    start = time.perf_counter()
    lowered = lower(program, arguments, mesh)
    seconds = time.perf_counter() - start
    compiled: dict[str, Any] = dict.fromkeys(COMPILED)
    if isinstance(mesh, Mesh):
        fingerprint = _fingerprint(lowered, case, mesh)
        before = [one for one in known if one.get("fingerprint") == fingerprint]
        if before:
            compiled = {name: before[0][name] for name in COMPILED}
        else:
            compiled |= _compile(lowered, case, mesh)
            compiled |= {"fingerprint": fingerprint, "effort": case.effort}
            compiled["libtpu"] = topologies.libtpu_version()
    collectives = None
    if isinstance(mesh, Mesh) and compiled["instructions"] is not None:
        collectives = traffic(compiled["instructions"], topology, mesh)
    return {
        "objective": config.objective,
        "program": case.program,
        "topology": str(topology),
        "chips": topology.num_chips,
        "hosts": topology.num_hosts,
        "mesh": dict(mesh.shape),
        "batch_size": config.data.batch_size,
        "dtype": config.model.dtype,
        "scan_layers": config.model.backbone.scan_layers,
        "remat": config.model.backbone.remat,
        "accumulation_steps": config.optimizer.accumulation_steps,
        "num_iterations": config.decode.num_iterations,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "parameters_per_chip": sum(map(_chip_size, jax.tree.leaves(params))),
        "argument_bytes": {name: chip_bytes(tree) for name, tree in arguments.items()},
        "hbm_bytes": topology.accelerator.memory_bytes,
        "hbm_bandwidth": topology.accelerator.memory_bandwidth,
        "peak_flops": getattr(topology.accelerator, config.model.dtype),
        "flops_per_chip": flops_per_chip(case),
        "warnings": layout_warnings(params, mesh, config.mesh.rules),
        "collectives": collectives,
        "lower_seconds": seconds,
        "jax": jax.__version__,
        **compiled,
    }
