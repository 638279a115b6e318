"""AdamW as MAR trains, weight averaging, and which parameters decay or stand still."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fasttta_jax.config import OptimizerConfig
from fasttta_jax.models.stacking import STACKS

FROZEN_WITH_BACKBONE = ("text", "backbone")


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up, a plateau, and a cosine descent to zero over the last `decay_steps`."""
    plateau_end = num_steps - config.decay_steps

    def schedule(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, step / max(config.warmup_steps, 1)) if config.warmup_steps else 1.0
        descent = jnp.clip((step - plateau_end) / max(config.decay_steps, 1), 0.0, 1.0)
        tail = 0.5 * (1.0 + jnp.cos(jnp.pi * descent)) if config.decay_steps else 1.0
        return jnp.float32(config.learning_rate) * warm * tail

    return schedule


def _names(path: tuple[Any, ...]) -> list[str]:
    return [entry.key for entry in path]


def _is_matrix(names: list[str], leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    own_axes = leaf.ndim - any(name in STACKS for name in names)
    return names[-1] not in ("bias", "scale") and own_axes >= 2


def decay_mask(params: Any) -> Any:
    """True for matrices and embeddings of backbone and text; never for biases, norms, the head.

    A stack's leading axis does not make a matrix: stacked blocks decay as blocks apart do.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _names(path)[0] != "head" and _is_matrix(_names(path), leaf), params
    )


def rate_groups(params: Any) -> Any:
    """ "head_matrix" for the head's matrices, "rest" for everything else, by name."""

    def group(path: tuple[Any, ...], leaf: jax.Array | jax.ShapeDtypeStruct) -> str:
        names = _names(path)
        return "head_matrix" if names[0] == "head" and _is_matrix(names, leaf) else "rest"

    return jax.tree_util.tree_map_with_path(group, params)


def make_optimizer(
    config: OptimizerConfig, num_steps: int, *, freeze_backbone: bool = False
) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decay, then the rate of each group.

    A group's factor comes after Adam, which would undo a factor on the gradients.

    Args:
      config: rates, decay, clipping.
      num_steps: length of the run, for the rate's schedule.
      freeze_backbone: only the head moves.
    """
    scaling = optax.partition(
        {
            "head_matrix": optax.scale(config.head_learning_rate_scale),
            "rest": optax.identity(),
        },
        rate_groups,
    )
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
        scaling,
    )
    if not freeze_backbone:
        return adamw

    def labels(params: Any) -> Any:
        return {
            name: jax.tree.map(
                lambda _, name=name: "still" if name in FROZEN_WITH_BACKBONE else "moving", tree
            )
            for name, tree in params.items()
        }

    return optax.partition({"moving": adamw, "still": optax.set_to_zero()}, labels)


def update_ema(config: OptimizerConfig, ema: Any, params: Any, step: jax.Array) -> Any:
    """The average of the config's decay; `step` counts the updates done before."""
    decay = jnp.float32(config.ema_decay)
    if config.ema_warmup:
        done = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return move_average(ema, params, decay)


def move_average(average: Any, params: Any, decay: ArrayLike) -> Any:
    """average + (1 - decay) (params - average), in float32."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, params)
