"""AdamW as MAR trains, weight averaging, and which parameters decay or stand still."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fasttta_jax.config import OptimizerConfig

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


def decay_mask(params: Any) -> Any:
    """True for matrices and embeddings of backbone and text; never for biases, norms, the head."""

    def decays(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        names = [entry.key for entry in path]
        is_small = names[-1] in ("bias", "scale")
        return names[0] != "head" and not is_small and leaf.ndim >= 2

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimizerConfig, num_steps: int, *, freeze_backbone: bool = False
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; with `freeze_backbone` only the head moves."""
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
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

    return optax.multi_transform({"moving": adamw, "still": optax.set_to_zero()}, labels)


def update_ema(config: OptimizerConfig, ema: Any, params: Any, step: jax.Array) -> Any:
    """ema + (1 - decay) (params - ema) in float32; `step` counts the updates done before."""
    decay = jnp.float32(config.ema_decay)
    if config.ema_warmup:
        done = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, params)
