"""Trains the tagger on real clips, against what generated audio must not be punished for.

Phase reconstruction smears a spectrogram a little, decoders blur it, and levels drift. Each
training spectrogram is therefore shifted in time, made louder or softer, blurred, made noisy, and
has one band and one stretch of time hidden (SpecAugment: Park et al., 2019, arXiv:1904.08779).
Changes stay small: loudness tells distance, and frequency tells pitch.

Dimensions: n clips, S samples, T frames, F mel bands, E events, A attribute axes.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from fasttta_jax.audio.mel import MelConfig, log_mel
from fasttta_jax.evaluation.labels import UNKNOWN
from fasttta_jax.evaluation.tagger import (
    PREDICT_BATCH,
    Tagger,
    TaggerNetwork,
    TaggerSpec,
    checked_audio,
    network_for,
    to_float,
)
from fasttta_jax.typing import Key, Params

MAX_GAIN_DB = 3.0
MAX_SHIFT_FRAMES = 16
MAX_NOISE = 0.3  # standard deviation, in nepers
MAX_HIDDEN_BANDS = 6
MAX_HIDDEN_FRAMES = 16

_OPTIMIZER = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-3))  # AdamW


class TaggerData(NamedTuple):
    """Clips and their labels; `labels.labels_to_arrays` makes the last two.

    Attributes:
      audio: int16, or floating in [-1, 1].
      events: which events are present.
      attributes: index of the value on each axis; UNKNOWN (-1) where it does not count.
    """

    audio: np.ndarray
    events: Bool[np.ndarray, "n E"]
    attributes: Int[np.ndarray, "n A"]


class _Batch(NamedTuple):
    spectrograms: Any  # [n, T, F], on the host before the step and on the device inside
    events: Any  # bool [n, E]
    attributes: Any  # int [n, A]


def train_tagger(
    clips: TaggerData,
    spec: TaggerSpec,
    *,
    seed: int = 0,
    num_steps: int = 600,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    augmented: bool = True,
    progress: bool = True,
) -> Tagger:
    """Trains a tagger with AdamW and a cosine schedule; the result is a function of the arguments.

    Args:
      clips: real clips of the training split.
      spec: what to listen for.
      seed: of weights, batches and augmentation.
      num_steps: updates.
      batch_size: clips in an update; at most the number of clips.
      learning_rate: at its peak, after a twentieth of the steps.
      augmented: whether clips are changed a little, which makes a tagger deaf to what generated
        clips must not be punished for; False where that is what it is to hear.
      progress: whether to show a bar.

    Raises:
      ValueError: the arrays of `clips` do not fit `spec` or one another, or `batch_size` is larger
        than the number of clips.
    """
    _check(clips, spec, batch_size)
    spectrograms = _spectrograms(clips.audio, spec, progress)
    mean = float(spectrograms.mean(dtype=np.float64))
    deviation = float(spectrograms.std(dtype=np.float64)) or 1.0
    scale = np.asarray([mean, deviation], np.float32)
    network = network_for(spec)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps=max(num_steps // 20, 1), decay_steps=max(num_steps, 2)
    )
    learning_rates = np.asarray(schedule(np.arange(1, num_steps + 1)), np.float32)
    key = jax.random.key(seed)
    params = _initial_params(jax.random.fold_in(key, 0), spectrograms.shape[1:], network)
    optimizer_state = _OPTIMIZER.init(params)
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    bar = tqdm(range(num_steps), desc="training the tagger", unit="step", disable=not progress)
    for index in bar:
        if len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(len(spectrograms))])
        rows, order = order[:batch_size], order[batch_size:]
        batch = _Batch(spectrograms[rows], clips.events[rows], clips.attributes[rows])
        step_key = jax.random.fold_in(key, 1 + index)
        params, optimizer_state, loss = _step(
            params,
            optimizer_state,
            batch,
            scale,
            learning_rates[index],
            step_key,
            network=network,
            floor=math.log(spec.mel.floor) if augmented else None,
        )
        if progress and index % 50 == 0:
            bar.set_postfix(loss=f"{float(loss):.3f}")
    return Tagger(spec, jax.tree.map(np.asarray, params), mean, deviation)


@functools.partial(jax.jit, static_argnames=("shape", "network"))
def _initial_params(key: Key, shape: tuple[int, int], network: TaggerNetwork) -> Params:
    return network.init(key, jnp.zeros((1, *shape), jnp.float32))["params"]


@functools.partial(
    jax.jit, static_argnames=("network", "floor"), donate_argnames=("params", "optimizer_state")
)
def _step(
    params: Params,
    optimizer_state: optax.OptState,
    batch: _Batch,
    scale: Float[Array, " 2"],
    learning_rate: Float[Array, ""],
    key: Key,
    *,
    network: TaggerNetwork,
    floor: float | None,
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    """One update; the clips are augmented where a floor is given."""
    spectrograms = batch.spectrograms.astype(jnp.float32)
    if floor is not None:
        spectrograms = augment(spectrograms, key, floor=floor)
    batch = batch._replace(spectrograms=(spectrograms - scale[0]) / scale[1])
    loss, gradients = jax.value_and_grad(_loss)(params, batch, network)
    directions, optimizer_state = _OPTIMIZER.update(gradients, optimizer_state, params)
    updates = jax.tree.map(lambda direction: -learning_rate * direction, directions)
    params = cast(Params, optax.apply_updates(params, updates))
    return params, optimizer_state, loss


def augment(
    spectrograms: Float[Array, "n T F"], key: Key, *, floor: float
) -> Float[Array, "n T F"]:
    """Changes each log-mel spectrogram a little, and differently.

    Args:
      spectrograms: natural-log mel magnitudes.
      key: of this batch.
      floor: the lowest value a spectrogram may hold.

    Returns:
      Spectrograms of the same shape, nowhere below `floor`.
    """
    gain_key, shift_key, blur_key, noise_key, level_key, band_key, frame_key = jax.random.split(
        key, 7
    )
    num, num_frames, num_bands = spectrograms.shape
    one_each = (num, 1, 1)
    gain = jax.random.uniform(gain_key, one_each, minval=-MAX_GAIN_DB, maxval=MAX_GAIN_DB)
    x = jnp.maximum(spectrograms + gain * (math.log(10) / 20), floor)
    x = _shift(x, shift_key)
    blurred = nn.avg_pool(x[..., None], (3, 3), padding="SAME", count_include_pad=False)[..., 0]
    x = x + jax.random.uniform(blur_key, one_each) * (blurred - x)
    noise_level = jax.random.uniform(level_key, one_each, maxval=MAX_NOISE)
    x = jnp.maximum(x + noise_level * jax.random.normal(noise_key, x.shape), floor)
    hidden_bands = _spans(band_key, num, num_bands, MAX_HIDDEN_BANDS)[:, None, :]
    hidden_frames = _spans(frame_key, num, num_frames, MAX_HIDDEN_FRAMES)[:, :, None]
    return jnp.where(hidden_bands | hidden_frames, x.mean(axis=(1, 2), keepdims=True), x)


def _shift(spectrograms: Float[Array, "n T F"], key: Key) -> Float[Array, "n T F"]:
    """Moves each spectrogram by up to MAX_SHIFT_FRAMES either way; its edge frame fills the gap."""
    num, num_frames, _ = spectrograms.shape
    shifts = jax.random.randint(key, (num, 1, 1), -MAX_SHIFT_FRAMES, MAX_SHIFT_FRAMES + 1)
    source = jnp.arange(num_frames)[None, :, None] + shifts
    return jnp.take_along_axis(spectrograms, jnp.clip(source, 0, num_frames - 1), axis=1)


def _spans(key: Key, num: int, length: int, max_width: int) -> Bool[Array, "n length"]:
    """One random span of 0 to `max_width` (at most a fourth of `length`) positions in each row."""
    width_key, start_key = jax.random.split(key)
    widths = jax.random.randint(width_key, (num, 1), 0, min(max_width, length // 4) + 1)
    starts = jax.random.randint(start_key, (num, 1), 0, length)
    positions = jnp.arange(length)[None, :]
    return (positions >= starts) & (positions < starts + widths)


def _loss(params: Params, batch: _Batch, network: TaggerNetwork) -> Float[Array, ""]:
    """Binary cross-entropy over events plus, for each axis, cross-entropy where it is known."""
    logits: Any = network.apply({"params": params}, batch.spectrograms)
    event_logits, axis_logits, _ = logits
    presence = batch.events.astype(jnp.float32)
    loss = optax.sigmoid_binary_cross_entropy(event_logits, presence).sum(axis=-1).mean()
    for column, values_logits in enumerate(axis_logits):
        values = batch.attributes[:, column]
        known = values != UNKNOWN
        entropy = optax.softmax_cross_entropy_with_integer_labels(
            values_logits, jnp.where(known, values, 0)
        )
        loss += jnp.where(known, entropy, 0.0).sum() / jnp.maximum(known.sum(), 1)
    return loss


@functools.partial(jax.jit, static_argnames="mel")
def _half_log_mel(audio: Float[Array, "n S"], mel: MelConfig) -> Float[Array, "n T F"]:
    return log_mel(audio, mel).astype(jnp.float16)


def _spectrograms(
    audio: np.ndarray, spec: TaggerSpec, progress: bool
) -> Float[np.ndarray, "n T F"]:
    """Log-mels of all clips in half precision, which is finer than their noise, to halve memory."""
    shape = (len(audio), spec.mel.num_frames(spec.num_samples), spec.mel.num_mels)
    spectrograms = np.empty(shape, np.float16)
    starts = range(0, len(audio), PREDICT_BATCH)
    for start in tqdm(starts, desc="log-mels for the tagger", unit="batch", disable=not progress):
        batch = to_float(audio[start : start + PREDICT_BATCH])
        padded = np.zeros((PREDICT_BATCH, spec.num_samples), np.float32)
        padded[: len(batch)] = batch
        spectrograms[start : start + len(batch)] = np.asarray(_half_log_mel(padded, spec.mel))[
            : len(batch)
        ]
    return spectrograms


def _check(clips: TaggerData, spec: TaggerSpec, batch_size: int) -> None:
    checked_audio(clips.audio, spec)
    num = len(clips.audio)
    if clips.events.shape != (num, len(spec.events)):
        raise ValueError(
            f"events has shape {clips.events.shape}; expected {(num, len(spec.events))}: "
            "one row for each clip, one column for each event of the spec"
        )
    if clips.attributes.shape != (num, len(spec.axes)):
        raise ValueError(
            f"attributes has shape {clips.attributes.shape}; expected {(num, len(spec.axes))}: "
            "one row for each clip, one column for each axis of the spec"
        )
    for column, (axis, values) in enumerate(spec.axes.items()):
        found = clips.attributes[:, column]
        if found.min() < UNKNOWN or found.max() >= len(values):
            raise ValueError(
                f"attributes of axis {axis!r} range from {found.min()} to {found.max()}; "
                f"allowed: {UNKNOWN} (unknown) to {len(values) - 1}"
            )
    if not 1 <= batch_size <= num:
        raise ValueError(f"batch_size is {batch_size}; allowed: 1 to the {num} clips there are")
