"""What a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Step count, parameters, their running averages and the optimizer's state; nothing random.

    Attributes:
      step: updates done, int32.
      params: float32 tree.
      ema: averaged parameters, float32, same tree; these generate.
      opt_state: optax state.
      target: the average that an objective with a `target_decay` compares with, or None.

    Shapes and shardings stand in the same form in place of arrays.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    target: Any = None


def new_state(
    optimizer: optax.GradientTransformation, params: Any, target: Any = None
) -> TrainState:
    """The state before the first step; averages start as copies of the parameters.

    Args:
      optimizer: of optax.
      params: first parameters.
      target: those of them that `TrainState.target` averages, or None.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        target=None if target is None else jax.tree.map(jnp.copy, target),
    )


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as the named trees of a checkpoint; works on arrays and on shapes alike."""
    rest = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    if state.target is not None:
        rest["target"] = state.target
    return {"rest": rest, "ema": state.ema}


def from_items(items: dict[str, Any]) -> TrainState:
    """The inverse of `to_items`."""
    return TrainState(ema=items["ema"], **items["rest"])
