"""All calls of `jax.jit` with shardings: state birth, training step, evaluation and sampling.

This is today's pjit: `jax.jit` with in_shardings and out_shardings under `jax.set_mesh`. Knows
trees and functions, not models. One function on one mesh with the same shardings is one program:
whoever asks again gets what is compiled already. Functions that are equal by value count as one.
What has been compiled is forgotten, and compiled again where it is still asked for, before a
process runs out of memory mappings (`parallel.mappings`), as one would that trains many runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from jax.sharding import Mesh

from fasttta_jax.parallel.mappings import share_of_mappings
from fasttta_jax.parallel.mesh import AnyMesh
from fasttta_jax.parallel.sharding import Rule, batch_sharding, infer_shardings, replicated

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_PROGRAMS = 64
"""Programs that a process keeps, the most recently used ones."""
FULL = 1 / 2
"""Share of its memory mappings at which a process keeps none."""


class CompileReport(NamedTuple):
    """How a program was compiled, and what it needs on each device, as XLA plans it.

    Attributes:
      seconds: tracing, lowering and compiling, or reading from the compilation cache.
      argument_bytes: state, frozen parameters, batch.
      temporary_bytes: activations, gradients and what else lives within one run.
      output_bytes: results that do not lie where arguments were.
    """

    seconds: float
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything that lives on a device while the program runs."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes

    def __str__(self) -> str:
        gib = [f"{number / 2**30:.2f}" for number in self[1:]]
        return (
            f"compiled in {self.seconds:.1f} s; GiB on each device: {gib[0]} of arguments, "
            f"{gib[1]} of temporaries, {gib[2]} of results"
        )


class Compiled(Generic[T]):
    """A program of one set of shapes, types and layouts, compiled ahead of its first call.

    It takes these alone: others are an error where they would quietly be another compilation.

    Args:
      program: what is compiled.
      arguments: arrays, or shapes with shardings.

    Attributes:
      report: how it was compiled.
    """

    def __init__(self, program: Program[T], arguments: Sequence[Any]) -> None:
        make_room()
        start = time.perf_counter()
        self._program = program
        self._compiled = program.lower(*arguments).compile()
        seconds = time.perf_counter() - start
        sizes = self._compiled.memory_analysis()
        bytes_of = (0, 0, 0)
        if sizes is not None:
            bytes_of = (
                sizes.argument_size_in_bytes,
                sizes.temp_size_in_bytes,
                sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
            )
        self.report = CompileReport(seconds, *bytes_of)

    def __call__(self, *arguments: Any) -> T:
        with self._program.current():
            return self._compiled(*arguments)

    def as_text(self) -> str:
        """The optimised HLO."""
        return self._compiled.as_text()


class Program(Generic[T]):
    """A jitted function that is traced, lowered and run with its mesh as the current one.

    Args:
      jitted: what `jax.jit` returned.
      mesh: devices, or an abstract mesh, on which it can only be traced; None leaves the current
        one.
    """

    def __init__(self, jitted: Any, mesh: AnyMesh | None = None) -> None:
        self.jitted = jitted
        self.mesh = mesh
        self._compiled: dict[Hashable, Compiled[T]] = {}

    def __call__(self, *arguments: Any) -> T:
        with self.current():
            return self.jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As `jax.jit(...).lower`; arrays or their shapes."""
        with self.current():
            return self.jitted.lower(*arguments)

    def trace(self, *arguments: Any) -> Any:
        """As `jax.jit(...).trace`; arrays or their shapes."""
        with self.current():
            return self.jitted.trace(*arguments)

    def current(self) -> AbstractContextManager[Any]:
        """A context in which the mesh is the current one."""
        if self.mesh is None:
            return contextlib.nullcontext()
        if isinstance(self.mesh, Mesh):
            return jax.set_mesh(self.mesh)
        return jax.sharding.use_abstract_mesh(self.mesh)

    def compile(self, *arguments: Any) -> Compiled[T]:
        """The program of these arrays, or shapes with shardings; the same ones compile once."""
        signature = _signature(arguments)
        if signature not in self._compiled:
            self._compiled[signature] = Compiled(self, arguments)
        return self._compiled[signature]


def _signature(tree: Any) -> Hashable:
    """Structure, shapes, types and layouts of a tree of arrays or of their shapes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (leaf.shape, str(leaf.dtype), getattr(leaf, "sharding", None)) for leaf in leaves
    )


def abstract_state(init: Callable[..., T], mesh: AnyMesh, rules: Sequence[Rule] = ()) -> T:
    """Shapes, dtypes and shardings of what `init(key)` returns, without computing it."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        infer_shardings(shapes, mesh, rules),
    )


def shardings_of(abstract: T) -> T:
    """The shardings alone of a tree of arrays, or of shapes with shardings."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def on_every_device(function: Callable[[], T], mesh: AnyMesh) -> T:
    """What `function()` computes, as arrays of which every device of the mesh has a copy."""
    return Program(jax.jit(function, out_shardings=replicated(mesh)), mesh)()


class _Frozen(NamedTuple):
    """A tree of shardings that can be hashed."""

    leaves: tuple[Hashable, ...]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> _Frozen:
        leaves, structure = jax.tree.flatten(tree)
        return cls(tuple(leaves), structure)

    def tree(self) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)


@functools.lru_cache(MAX_PROGRAMS)
def _program(
    function: Callable[..., T],
    mesh: AnyMesh,
    inputs: _Frozen | None,
    outputs: _Frozen,
    donated: tuple[int, ...] = (),
) -> Program[T]:
    make_room()
    shardings = {} if inputs is None else {"in_shardings": inputs.tree()}
    jitted = jax.jit(function, out_shardings=outputs.tree(), donate_argnums=donated, **shardings)
    return Program(jitted, mesh)


def make_room() -> None:
    """Forgets all programs but those that somebody holds compiled, if another could be too many."""
    if (share := share_of_mappings()) < FULL:
        return
    logger.info(
        "%.0f %% of this process's memory mappings are taken; forgetting compiled programs",
        100 * share,
    )
    _program.cache_clear()
    jax.clear_caches()
    gc.collect()


def compile_init(init: Callable[..., T], abstract: T, mesh: AnyMesh) -> Program[T]:
    """`init` jitted so that its result is born sharded."""
    return _program(init, mesh, None, _Frozen.of(shardings_of(abstract)))


def compile_train_step(
    step: Callable[..., tuple[T, Any]], abstract: T, frozen: Any, mesh: AnyMesh
) -> Program[tuple[T, Any]]:
    """step(state, frozen, batch, key) -> (state, metrics), the old state donated.

    Args:
      step: a pure function.
      abstract: the state's shapes and shardings.
      frozen: arrays, or shapes with shardings, that the step only reads.
      mesh: devices.
    """
    everywhere = replicated(mesh)
    state_shardings = shardings_of(abstract)
    inputs = (state_shardings, shardings_of(frozen), batch_sharding(mesh), everywhere)
    outputs = (state_shardings, everywhere)
    return _program(step, mesh, _Frozen.of(inputs), _Frozen.of(outputs), donated=(0,))


def compile_evaluate(evaluate: Callable[..., T], mesh: AnyMesh) -> Program[T]:
    """evaluate(params, frozen, batch, key) -> numbers, the same on every device."""
    return _program(evaluate, mesh, None, _Frozen.of(replicated(mesh)))


def compile_sampler(sample: Callable[..., T], mesh: AnyMesh) -> Program[T]:
    """sample(params, text, keys) -> rows; text, keys and result split like a batch."""
    rows = batch_sharding(mesh)
    return _program(sample, mesh, _Frozen.of((None, rows, rows)), _Frozen.of(rows))
