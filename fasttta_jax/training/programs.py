"""The functions of a run that are compiled through `parallel.compile`, by training, benchmarks and
reports of compilation alike.

Each is made of one context, and equal contexts give the same function, so that its program is
compiled once a process.
Dimensions: B clips, N tokens, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fasttta_jax.config import RunConfig
from fasttta_jax.input_pipeline.pairs import NOISE_SEEDS
from fasttta_jax.objectives import Diffusion, build_objective, training_masks
from fasttta_jax.parallel.mesh import AnyMesh
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.systems import System, build_model
from fasttta_jax.text.base import TextEncoder
from fasttta_jax.training.initialization import Initialization
from fasttta_jax.training.state import TrainState, new_state
from fasttta_jax.training.step import Batch, StepContext, evaluate, step
from fasttta_jax.typing import Key, Metrics, Params

MAX_FUNCTIONS = 32
"""Functions of each kind that a process keeps, with what has been compiled of them."""


def has_teacher(config: RunConfig, model: System) -> bool:
    """Whether a step of this run holds the forward pass of a frozen teacher."""
    return config.distillation.weight > 0 or model.objective.needs_teacher


def make_context(
    config: RunConfig,
    model: System,
    teacher: System | None = None,
    *,
    tokens_per_column: int | None = None,
) -> StepContext:
    """What is static in the programs of `config`, and nothing that they do not read.

    Args:
      config: the run.
      model: what trains.
      teacher: whose parameters the step is given; ignored where it needs none.
      tokens_per_column: of the codec, for masks in an order of its grid.
    """
    return StepContext(
        model,
        dataclasses.replace(config.optimizer, max_skipped_steps=0),
        training_masks(config, model.objective, tokens_per_column),
        visible_noise=config.masking.visible_noise,
        num_steps=config.num_steps if config.optimizer.decay_steps else 0,
        align_weight=config.distillation.weight,
        align_positions=config.distillation.positions,
        freeze_backbone=config.distillation.freeze_backbone,
        teacher=teacher if has_teacher(config, model) else None,
    )


def default_context(config: RunConfig, text: TextEncoder) -> StepContext:
    """The context of a run whose teacher has the run's own sizes and the diffusion of its config,
    or the objective that it must have, for programs without weights. The grid of its codec decides
    which tokens are masked, and no size.
    """
    model, teacher = build_model(config, text), None
    if has_teacher(config, model):
        taught_by = model.objective.taught_by or Diffusion(config.model, config.diffusion)
        teacher = dataclasses.replace(model, objective=taught_by)
    return make_context(config, model, teacher, tokens_per_column=1)


@functools.lru_cache(MAX_FUNCTIONS)
def first_state(
    context: StepContext, initialization: Initialization
) -> Callable[[Key, Params], TrainState]:
    """(key, source's parameters) -> the state of a run before its first step."""

    def first(key: Key, source: Params) -> TrainState:
        model, params = context.model, initialization(key, source)
        has_target = model.objective.target_decay is not None
        target = model.target_part(params) if has_target else None
        return new_state(context.transformation, params, target)

    return first


@functools.lru_cache(MAX_FUNCTIONS)
def fresh_state(context: StepContext) -> Callable[[Key], TrainState]:
    """key -> the state of a run from fresh parameters."""
    first = first_state(context, Initialization(context.model))
    return lambda key: first(key, {})


@functools.lru_cache(MAX_FUNCTIONS)
def train_step(
    context: StepContext,
) -> Callable[[TrainState, Params, Batch, Key], tuple[TrainState, Metrics]]:
    """(state, frozen, batch, root key) -> (state, metrics)."""
    return functools.partial(step, context)


@functools.lru_cache(MAX_FUNCTIONS)
def evaluate_step(context: StepContext) -> Callable[[Params, Params, Batch, Key], Metrics]:
    """(params, frozen, batch, key) -> losses without dropout, and "weight", the batch's clips."""
    return functools.partial(evaluate, context)


def abstract_batch(config: RunConfig, text: TextEncoder, mesh: AnyMesh) -> Batch:
    """Shapes, dtypes and shardings of a global training batch; nothing is allocated."""
    size, rows = config.data.batch_size, batch_sharding(mesh)
    shape = (size, config.model.num_tokens, config.model.token_dim)

    def as_rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    batch = {
        "tokens": as_rows(shape, jnp.float32),
        "weight": as_rows((size,), jnp.float32),
        "text": {
            name: as_rows((size, *values.shape[1:]), values.dtype)
            for name, values in text.tokenize([""]).items()
        },
    }
    seeds = {NOISE_SEEDS: as_rows((size,), jnp.uint32)}
    return batch | (seeds if build_objective(config).wants_pairs else {})
