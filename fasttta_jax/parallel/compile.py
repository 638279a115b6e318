"""Where programs are jitted: state birth, training step, evaluation and sampling, with shardings.

This is today's pjit: `jax.jit` with in_shardings and out_shardings under `jax.set_mesh`. Knows
trees and functions, not models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from fasttta_jax.parallel.sharding import batch_sharding, infer_shardings, replicated

T = TypeVar("T")


def under_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """`function`, traced and run with `mesh` as the current one."""

    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call


def abstract_state(init: Callable[..., T], mesh: Mesh) -> T:
    """Shapes, dtypes and shardings of what `init(key)` returns, without computing it."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        infer_shardings(shapes, mesh),
    )


def shardings_of(abstract: T) -> T:
    """The shardings alone of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def compile_init(init: Callable[..., T], abstract: T, mesh: Mesh) -> Callable[..., T]:
    """`init` jitted so that its result is born sharded."""
    return under_mesh(mesh, jax.jit(init, out_shardings=shardings_of(abstract)))


def compile_train_step(
    step: Callable[..., tuple[T, Any]], abstract: T, frozen: Any, mesh: Mesh
) -> Callable[..., tuple[T, Any]]:
    """step(state, frozen, batch, key) -> (state, metrics), the old state donated."""
    everywhere = replicated(mesh)
    state_shardings = shardings_of(abstract)
    return under_mesh(
        mesh,
        jax.jit(
            step,
            in_shardings=(
                state_shardings,
                infer_shardings(frozen, mesh),
                batch_sharding(mesh),
                everywhere,
            ),
            out_shardings=(state_shardings, everywhere),
            donate_argnums=0,
        ),
    )


def compile_evaluate(evaluate: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """evaluate(params, frozen, batch, key) -> numbers, the same on every device."""
    return under_mesh(mesh, jax.jit(evaluate, out_shardings=replicated(mesh)))


def compile_sampler(sample: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """sample(params, text, keys) -> rows; text, keys and result split like a batch."""
    rows = batch_sharding(mesh)
    return under_mesh(mesh, jax.jit(sample, in_shardings=(None, rows, rows), out_shardings=rows))
