"""Where programs are jitted: state birth, training step, evaluation and sampling, with shardings.

This is today's pjit: `jax.jit` with in_shardings and out_shardings under `jax.set_mesh`. Knows
trees and functions, not models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from jax.sharding import Mesh

from fasttta_jax.parallel.mesh import AnyMesh
from fasttta_jax.parallel.sharding import Rule, batch_sharding, infer_shardings, replicated

T = TypeVar("T")


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

    def __str__(self) -> str:
        gib = [f"{number / 2**30:.2f}" for number in self[1:]]
        return (
            f"compiled in {self.seconds:.1f} s; GiB on each device: {gib[0]} of arguments, "
            f"{gib[1]} of temporaries, {gib[2]} of results"
        )


class Program(Generic[T]):
    """A jitted function that is traced, lowered and run with its mesh as the current one.

    Args:
      jitted: what `jax.jit` returned.
      mesh: devices, or an abstract mesh, on which it can only be traced.
    """

    def __init__(self, jitted: Any, mesh: AnyMesh) -> None:
        self.jitted = jitted
        self.mesh = mesh
        self._compiled: Callable[..., T] | None = None

    def __call__(self, *arguments: Any) -> T:
        with self._current():
            return (self._compiled or self.jitted)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As `jax.jit(...).lower`; arrays or their shapes."""
        with self._current():
            return self.jitted.lower(*arguments)

    def trace(self, *arguments: Any) -> Any:
        """As `jax.jit(...).trace`; arrays or their shapes."""
        with self._current():
            return self.jitted.trace(*arguments)

    def _current(self) -> AbstractContextManager[Any]:
        """A context in which the mesh is the current one."""
        if isinstance(self.mesh, Mesh):
            return jax.set_mesh(self.mesh)
        return jax.sharding.use_abstract_mesh(self.mesh)

    def compile(self, *arguments: Any) -> CompileReport:
        """Compiles for arrays or shapes with shardings, ahead of the first call.

        Calls take these shapes, types and layouts alone from then on: others are an error where
        they would quietly be another compilation.
        """
        started = time.perf_counter()
        compiled = self.lower(*arguments).compile()
        seconds = time.perf_counter() - started
        self._compiled = compiled
        sizes = compiled.memory_analysis()
        if sizes is None:
            return CompileReport(seconds, 0, 0, 0)
        return CompileReport(
            seconds,
            sizes.argument_size_in_bytes,
            sizes.temp_size_in_bytes,
            sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
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


def compile_init(init: Callable[..., T], abstract: T, mesh: AnyMesh) -> Program[T]:
    """`init` jitted so that its result is born sharded."""
    return Program(jax.jit(init, out_shardings=shardings_of(abstract)), mesh)


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
    return Program(
        jax.jit(
            step,
            in_shardings=(
                state_shardings,
                shardings_of(frozen),
                batch_sharding(mesh),
                everywhere,
            ),
            out_shardings=(state_shardings, everywhere),
            donate_argnums=0,
        ),
        mesh,
    )


def compile_evaluate(evaluate: Callable[..., T], mesh: AnyMesh) -> Program[T]:
    """evaluate(params, frozen, batch, key) -> numbers, the same on every device."""
    return Program(jax.jit(evaluate, out_shardings=replicated(mesh)), mesh)


def compile_sampler(sample: Callable[..., T], mesh: AnyMesh) -> Program[T]:
    """sample(params, text, keys) -> rows; text, keys and result split like a batch."""
    rows = batch_sharding(mesh)
    return Program(jax.jit(sample, in_shardings=(None, rows, rows), out_shardings=rows), mesh)
