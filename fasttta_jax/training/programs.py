"""The programs of a run as pure functions of one context: what training, benchmarks and reports of
compilation all jit through `parallel.compile`.

Dimensions: B clips, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fasttta_jax.config import RunConfig
from fasttta_jax.parallel.mesh import AnyMesh
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.systems import (
    Student,
    Teacher,
    build_model,
)
from fasttta_jax.text.base import TextEncoder
from fasttta_jax.training.optimizer import make_optimizer
from fasttta_jax.training.state import TrainState, new_state
from fasttta_jax.training.step import (
    Batch,
    StepContext,
    student_loss,
    student_step,
    teacher_loss,
    teacher_step,
)
from fasttta_jax.typing import Key, Metrics, Params

TrainStep = Callable[[TrainState, Params, Batch, Key], tuple[TrainState, Metrics]]


def follows_teacher(config: RunConfig) -> bool:
    """Whether a step of this run holds the forward pass of a frozen teacher."""
    return config.stage == "student" and config.distillation.weight > 0


def make_context(
    config: RunConfig, model: Teacher | Student, teacher: Teacher | None = None
) -> StepContext:
    """What is static in the programs of `config`.

    Args:
      config: the run.
      model: what trains.
      teacher: whose features a student follows; ignored where the run follows none.
    """
    freeze = config.stage == "student" and config.distillation.freeze_backbone
    optimizer = make_optimizer(config.optimizer, config.num_steps, freeze_backbone=freeze)
    return StepContext(config, model, optimizer, teacher if follows_teacher(config) else None)


def default_context(config: RunConfig, text: TextEncoder) -> StepContext:
    """The context of a run whose teacher has the run's own sizes, for programs without weights."""
    teacher = Teacher(config.model, text, config.diffusion)
    return make_context(config, build_model(config, text), teacher)


def fresh_state(context: StepContext) -> Callable[[Key], TrainState]:
    """key -> the state of a run from fresh parameters."""
    return lambda key: new_state(context.optimizer, context.model.init(key))


def train_step(context: StepContext) -> TrainStep:
    """(state, frozen, batch, root key) -> (state, metrics) of the context's stage."""

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: Key
    ) -> tuple[TrainState, Metrics]:
        if isinstance(context.model, Teacher):
            return teacher_step(state, batch, key, context=context)
        return student_step(state, frozen, batch, key, context=context)

    return step


def evaluate_step(context: StepContext) -> Callable[[Params, Params, Batch, Key], Metrics]:
    """(params, frozen, batch, key) -> losses without dropout, and "weight", the batch's clips."""

    def evaluate(params: Params, frozen: Params, batch: Batch, key: Key) -> Metrics:
        if isinstance(context.model, Teacher):
            metrics = teacher_loss(context, params, batch, key, train=False)[1]
        else:
            metrics = student_loss(context, params, frozen, batch, key, train=False)[1]
        return metrics | {"weight": jnp.sum(batch["weight"])}

    return evaluate


def abstract_batch(config: RunConfig, text: TextEncoder, mesh: AnyMesh) -> Batch:
    """Shapes, dtypes and shardings of a global training batch; nothing is allocated."""
    size, rows = config.data.batch_size, batch_sharding(mesh)
    shape = (size, config.model.num_tokens, config.model.token_dim)

    def as_rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    return {
        "tokens": as_rows(shape, jnp.float32),
        "weight": as_rows((size,), jnp.float32),
        "text": {
            name: as_rows((size, *values.shape[1:]), values.dtype)
            for name, values in text.tokenize([""]).items()
        },
    }
