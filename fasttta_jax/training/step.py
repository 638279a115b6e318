"""One optimizer step of teacher and student, as pure functions; `parallel.compile` jits them.

The student's step runs the frozen teacher on the same masked batch inside the same program.
Dimensions: B clips, N tokens, C channels, L text positions, M draws, R draws of (time, noise).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fasttta_jax.config import RunConfig
from fasttta_jax.diffusion.loss import diffusion_loss
from fasttta_jax.diffusion.schedule import corrupt, training_schedule
from fasttta_jax.losses.align import feature_mse
from fasttta_jax.losses.energy import energy_score
from fasttta_jax.masking import max_visible, sample_masks
from fasttta_jax.models.energy_head import sample_noise
from fasttta_jax.parallel.sharding import constrain
from fasttta_jax.systems import Student, Teacher
from fasttta_jax.text.learned import sample_hidden_tokens
from fasttta_jax.training.optimizer import update_ema
from fasttta_jax.training.state import TrainState
from fasttta_jax.typing import Conditioning, Key, Masked, Metrics, Params, PerToken

Batch = Mapping[str, Any]
"""tokens [B, N, C], weight [B] (0 for padding), text: the text encoder's arrays."""


class Streams(NamedTuple):
    """Independent keys of one step."""

    mask: Key
    drop: Key
    hide: Key
    dropout: Key
    head: Key


@dataclasses.dataclass(frozen=True, eq=False)
class StepContext:
    """Everything static that a step needs.

    Attributes:
      config: the run.
      model: the system that trains.
      optimizer: its gradient transformation.
      teacher: for a student, the system whose features it follows.
    """

    config: RunConfig
    model: Teacher | Student
    optimizer: optax.GradientTransformation
    teacher: Teacher | None = None


class Masking(NamedTuple):
    """A masked batch with its text switched off where labels are dropped."""

    masked: Masked
    keep_text: Bool[Array, " B"]
    hidden_tokens: Bool[Array, "B L"] | None


def mask_batch(config: RunConfig, batch: Batch, keys: Streams, *, train: bool) -> Masking:
    """Draws the masks and, in training, which clips lose their caption and which words hide."""
    batch_size, num_tokens = batch["tokens"].shape[:2]
    law = config.masking
    masked = sample_masks(
        keys.mask, batch_size, num_tokens, minimum=law.minimum, mean=law.mean, std=law.std
    )
    masked = constrain(masked, "batch", None)
    if not train:
        return Masking(masked, jnp.ones((batch_size,), jnp.bool_), None)
    text = config.model.text
    keep_text = ~jax.random.bernoulli(keys.drop, text.drop_rate, (batch_size,))
    hidden = None
    if text.token_dropout > 0:
        hidden = sample_hidden_tokens(keys.hide, batch["text"]["mask"], text.token_dropout)
    return Masking(masked, keep_text, hidden)


def condition(
    model: Teacher | Student, params: Params, batch: Batch, masking: Masking
) -> Conditioning:
    """Text streams, empty where the caption is dropped."""
    streams = model.condition(params, batch["text"], hidden_tokens=masking.hidden_tokens)
    return {
        name: stream._replace(mask=stream.mask & masking.keep_text[:, None])
        for name, stream in streams.items()
    }


def masked_mean(values: PerToken, weights: Float[Array, "B N"]) -> jax.Array:
    """Weighted mean over all tokens of the global batch."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def for_head(x: Float[Array, "M B N ..."]) -> Float[Array, "M B N ..."]:
    """Draws of tokens or contexts as a head takes them: clips and token positions split.

    A head's parameters are not split over the tensor axis; its tokens are.
    """
    return constrain(x, None, "batch", "token", *[None] * (x.ndim - 3))


def teacher_loss(
    context: StepContext, params: Params, batch: Batch, key: Key, *, train: bool
) -> tuple[jax.Array, Metrics]:
    """Diffusion loss on masked tokens, R draws of time and noise each."""
    config, model = context.config, context.model
    assert isinstance(model, Teacher)
    keys = Streams(*jax.random.split(key, len(Streams._fields)))
    masking = mask_batch(config, batch, keys, train=train)
    hidden = model.hidden(
        params,
        batch["tokens"],
        masking.masked,
        condition(model, params, batch, masking),
        num_visible=max_visible(config.model.num_tokens, config.masking.minimum),
        dropout_key=keys.dropout if train else None,
    )
    schedule = training_schedule(config.diffusion.num_steps)
    time_key, noise_key = jax.random.split(keys.head)
    shape = (config.diffusion.batch_multiplier, *batch["tokens"].shape)
    time = jax.random.randint(time_key, shape[:-1], 0, schedule.num_steps)
    noise = for_head(jax.random.normal(noise_key, shape, jnp.float32))
    clean = for_head(jnp.broadcast_to(batch["tokens"][None], shape))
    noisy = corrupt(clean, time, noise, schedule)
    # One projection of the context for all draws.
    output = model.denoise(params, noisy, time, for_head(hidden[None]))
    terms = diffusion_loss(
        output, clean, noisy, time, noise, schedule=schedule, prediction=config.diffusion.prediction
    )
    weights = masking.masked * batch["weight"][:, None]
    metrics = {name: masked_mean(jnp.mean(term, axis=0), weights) for name, term in terms.items()}
    loss = metrics["mse"] + metrics["vb"]
    return loss, {"loss": loss, **metrics}


def student_loss(
    context: StepContext, params: Params, frozen: Params, batch: Batch, key: Key, *, train: bool
) -> tuple[jax.Array, Metrics]:
    """Energy distance on masked tokens plus lambda times the distance to the teacher's features.

    Teacher and student see the same masks, captions, dropped labels and hidden words; only the
    student has dropout.
    """
    config, model, teacher = context.config, context.model, context.teacher
    assert isinstance(model, Student)
    keys = Streams(*jax.random.split(key, len(Streams._fields)))
    masking = mask_batch(config, batch, keys, train=train)
    num_visible = max_visible(config.model.num_tokens, config.masking.minimum)
    hidden = model.hidden(
        params,
        batch["tokens"],
        masking.masked,
        condition(model, params, batch, masking),
        num_visible=num_visible,
        dropout_key=keys.dropout if train else None,
    )
    if config.distillation.freeze_backbone:
        hidden = jax.lax.stop_gradient(hidden)
    draws = config.energy.num_draws
    shape = (draws, *batch["tokens"].shape[:-1], config.model.head.noise_dim)
    noise = for_head(sample_noise(keys.head, shape, config.model.head))
    samples = model.draw(params, noise, for_head(hidden[None])[0])
    energy = energy_score(
        samples,
        batch["tokens"],
        alpha=config.energy.alpha,
        temperature=config.energy.temperature,
    )
    weights = masking.masked * batch["weight"][:, None]
    metrics = {"energy": masked_mean(energy, weights)}
    loss = metrics["energy"]
    if teacher is not None:
        target = teacher.hidden(
            frozen,
            batch["tokens"],
            masking.masked,
            condition(teacher, frozen, batch, masking),
            num_visible=num_visible,
        )
        everywhere = jnp.broadcast_to(batch["weight"][:, None], weights.shape)
        counted = weights if config.distillation.positions == "masked" else everywhere
        metrics["align"] = masked_mean(feature_mse(hidden, target), counted)
        loss = loss + config.distillation.weight * metrics["align"]
    return loss, {"loss": loss, **metrics}


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


def _update(
    context: StepContext, state: TrainState, batch: Batch, key: Key, loss: Loss
) -> tuple[TrainState, Metrics]:
    """One update; where loss or gradients are not finite, nothing but the step count changes."""
    config = context.config.optimizer
    gradients, metrics = accumulated_gradients(
        loss,
        state.params,
        batch,
        jax.random.fold_in(key, state.step),
        config.accumulation_steps,
    )
    updates, opt_state = context.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"])
    new = TrainState(
        step=state.step + 1,
        params=params,
        ema=update_ema(config, state.ema, params, state.step),
        opt_state=opt_state,
    )
    kept = dataclasses.replace(state, step=new.step)  # data and draws move on all the same
    return jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, kept), metrics


def teacher_step(
    state: TrainState, batch: Batch, key: Key, *, context: StepContext
) -> tuple[TrainState, Metrics]:
    """Masks, diffusion loss, gradients, clipping, update, average. `key` is the run's root key."""

    def loss(params: Params, rows: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        return teacher_loss(context, params, rows, key, train=True)

    return _update(context, state, batch, key, loss)


def student_step(
    state: TrainState, frozen: Params, batch: Batch, key: Key, *, context: StepContext
) -> tuple[TrainState, Metrics]:
    """As `teacher_step`, with the energy distance and the teacher's forward pass in one program.

    Args:
      state: the student.
      frozen: the teacher's averaged parameters, or an empty tree where no teacher is followed.
      batch: global batch.
      key: the run's root key.
      context: static parts.
    """

    def loss(params: Params, rows: Batch, key: Key) -> tuple[jax.Array, Metrics]:
        return student_loss(context, params, frozen, rows, key, train=True)

    return _update(context, state, batch, key, loss)
