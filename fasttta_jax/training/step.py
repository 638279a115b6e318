"""One optimizer step of any objective, as a pure function; `parallel.compile` jits it.

What all systems share stands here: streams of keys, masks, dropped captions, a frozen teacher in
the same program, alignment with its features, the masked mean, the update and the averages. What a
network makes of its clips is the system's.
Dimensions: B clips, N tokens, C channels, L text positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fasttta_jax.config import AlignPositions, OptimizerConfig
from fasttta_jax.input_pipeline.pairs import NOISE_SEEDS
from fasttta_jax.losses.align import feature_mse
from fasttta_jax.masking import MaskDistribution
from fasttta_jax.objectives import ALIGNMENT
from fasttta_jax.parallel.sharding import constrain
from fasttta_jax.randomness import stream
from fasttta_jax.systems import Clips, Others, System
from fasttta_jax.text.learned import sample_hidden_tokens
from fasttta_jax.training.optimizer import make_optimizer, move_average, update_ema
from fasttta_jax.training.state import TrainState
from fasttta_jax.typing import Key, Metrics, Params, PerToken, Tokens

Batch = Mapping[str, Any]
"""tokens [B, N, C], weight [B] (0 for padding), text: the text encoder's arrays; and where clips
are pairs, noise_seeds [B]."""


@dataclasses.dataclass(frozen=True)
class StepContext:
    """Everything static that a step reads, equal by value: equal contexts are one program.

    Attributes:
      model: the system that trains.
      optimizer: rates, decay, clipping, averages.
      masks: their distribution.
      visible_noise: greatest standard deviation of noise on visible tokens, in training.
      num_steps: length of the run where the learning rate falls at its end; otherwise 0.
      align_weight: factor of the distance to the teacher's features.
      align_positions: the tokens that count in it.
      freeze_backbone: whether the head alone trains.
      teacher: the system whose frozen parameters the step is given, if any.
    """

    model: System
    optimizer: OptimizerConfig
    masks: MaskDistribution
    visible_noise: float = 0.0
    num_steps: int = 0
    align_weight: float = 0.0
    align_positions: AlignPositions = "all"
    freeze_backbone: bool = False
    teacher: System | None = None

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The optimizer of optax."""
        return make_optimizer(self.optimizer, self.num_steps, freeze_backbone=self.freeze_backbone)


def draw_clips(context: StepContext, batch: Batch, key: Key, *, train: bool) -> Clips:
    """The batch with its masks and, in training, which clips lose their caption, which words hide
    and the noise on visible tokens.
    """
    tokens = visible = batch["tokens"]
    batch_size, num_tokens = tokens.shape[:2]
    masked = context.masks.sample(stream(key, "mask"), batch_size, num_tokens)
    keep_text, hidden = jnp.ones((batch_size,), jnp.bool_), None
    if train:
        text = context.model.config.text
        keep_text = ~jax.random.bernoulli(stream(key, "drop"), text.drop_rate, (batch_size,))
        if text.token_dropout > 0:
            mask = batch["text"]["mask"]
            hidden = sample_hidden_tokens(stream(key, "hide"), mask, text.token_dropout)
        if context.visible_noise > 0:
            visible = with_noise(stream(key, "visible"), tokens, context.visible_noise)
    return Clips(
        tokens=tokens,
        visible=visible,
        text=batch["text"],
        keep_text=keep_text,
        hidden_tokens=hidden,
        masked=constrain(masked, "batch", None),
        num_visible=context.masks.max_visible(num_tokens),
        noise_seeds=batch.get(NOISE_SEEDS),
    )


def with_noise(key: Key, tokens: Tokens, greatest: float) -> Tokens:
    """Tokens with Gaussian noise; its standard deviation is uniform from 0, and each clip's own."""
    level_key, noise_key = jax.random.split(key)
    levels = jax.random.uniform(level_key, (len(tokens), 1, 1), maxval=greatest)
    noise = constrain(jax.random.normal(noise_key, tokens.shape), "batch", None, None)
    return tokens + levels * noise


def masked_mean(values: PerToken, weights: Float[Array, "B N"]) -> jax.Array:
    """Weighted mean over all tokens of the global batch."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def loss(
    context: StepContext,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    frozen: Params,
    average: Params,
    target: Params | None,
    train: bool,
) -> tuple[jax.Array, Metrics]:
    """The objective's terms on masked tokens plus lambda times the distance to teacher's features.

    Gradients reach `params` alone.

    Args:
      context: static parts.
      params: of the model.
      batch: global batch.
      key: of this loss alone.
      frozen: the teacher's averaged parameters; {} without one.
      average: the model's averaged parameters.
      target: what `Objective.target_decay` averages, if it does.
      train: with dropout, dropped captions and hidden words.

    Returns:
      The loss, and by name the loss, each term and diagnostic and, where a teacher is followed, the
      alignment.
    """
    clips = draw_clips(context, batch, key, train=train)
    others = Others(context.teacher, frozen, average, target)
    freeze = context.freeze_backbone
    found = context.model.losses(params, clips, key, others, freeze=freeze, train=train)
    weights = clips.masked * batch["weight"][:, None]
    metrics = {name: masked_mean(values, weights) for name, values in found.values.items()}
    terms = (metrics[name] for name in context.model.objective.terms)
    total = sum(terms, jnp.float32(0))
    if context.align_weight > 0 and found.features is not None:
        everywhere = jnp.broadcast_to(batch["weight"][:, None], weights.shape)
        counted = weights if context.align_positions == "masked" else everywhere
        metrics[ALIGNMENT] = masked_mean(feature_mse(*found.features), counted)
        total = total + context.align_weight * metrics[ALIGNMENT]
    return total, {"loss": total, **metrics}


Loss = Callable[[Params, Batch, Key], tuple[jax.Array, Metrics]]


def split_batch(batch: Batch, parts: int) -> Batch:
    """Leading axis [B] as [parts, B / parts]; every device keeps its own clips."""
    return jax.tree.map(
        lambda rows: jnp.moveaxis(
            rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 1, 0
        ),
        batch,
    )


def accumulated_gradients(
    loss: Loss, params: Params, batch: Batch, key: Key, parts: int
) -> tuple[Params, Metrics]:
    """Gradients and metrics of `loss`, averaged over `parts` of the batch, one after the other.

    Every part draws its own masks and noise and counts the same, as the ranks and micro-batches of
    MAR and EAR do.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch, key)

    def add(total: Any, part: tuple[Batch, Key]) -> tuple[Any, None]:
        clips = jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), part[0])
        return jax.tree.map(jnp.add, total, gradient(params, clips, part[1])), None

    rows = split_batch(batch, parts)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (rows, jax.random.split(key, parts)))
    return jax.tree.map(lambda leaf: leaf / parts, total)


def step(
    context: StepContext, state: TrainState, frozen: Params, batch: Batch, key: Key
) -> tuple[TrainState, Metrics]:
    """Loss, gradients, clipping, update and averages.

    Where loss or gradients are not finite, nothing but the step count changes.

    Args:
      context: static parts.
      state: what trains.
      frozen: the teacher's averaged parameters, or an empty tree where there is none.
      batch: global batch.
      key: the run's root key.
    """
    config, transformation = context.optimizer, context.transformation

    def loss_of(params: Params, rows: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        others = {"frozen": frozen, "average": state.ema, "target": state.target}
        return loss(context, params, rows, key, **others, train=True)

    key = jax.random.fold_in(key, state.step)
    gradients, metrics = accumulated_gradients(
        loss_of, state.params, batch, key, config.accumulation_steps
    )
    updates, opt_state = transformation.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"])
    model, target = context.model, state.target
    if (decay := model.objective.target_decay) is not None:
        target = move_average(target, model.target_part(params), decay)  # type: ignore[arg-type]
    new = TrainState(
        step=state.step + 1,
        params=params,
        ema=update_ema(config, state.ema, params, state.step),
        opt_state=opt_state,
        target=target,
    )
    kept = dataclasses.replace(state, step=new.step)  # data and draws move on all the same
    return jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, kept), metrics


def evaluate(
    context: StepContext, params: Params, frozen: Params, batch: Batch, key: Key
) -> Metrics:
    """Losses of averaged parameters without dropout, and "weight", the batch's clips.

    The averages stand for themselves and for a target network.
    """
    model = context.model
    target = None if model.objective.target_decay is None else model.target_part(params)
    others = {"frozen": frozen, "average": params, "target": target}
    metrics = loss(context, params, batch, key, **others, train=False)[1]
    return metrics | {"weight": jnp.sum(batch["weight"])}
