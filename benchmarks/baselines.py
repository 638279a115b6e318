"""What the sampler and the training step are measured against.

* Full length: no gathering. The encoder reads all N positions with the masked ones hidden as keys,
  and the last block computes every position. Same tokens and losses, more operations.
* Host loop: Python drives the iterations and every step of the diffusion chain, each a jitted
  program of its own, as eager implementations do. Same tokens and operations, more dispatches.

Dimensions: B clips, N tokens, C channels, D width, Q tokens revealed at once (padded).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.loop import (
    DecodeState,
    next_positions,
    repeat_rows,
    reveal,
    rows_of,
    with_unconditional,
)
from fasttta_jax.decoding.plan import Segment, plan_segments
from fasttta_jax.diffusion.sampler import first_noise, reverse_step
from fasttta_jax.masking import order_stages, sample_orders
from fasttta_jax.objectives import Diffusion
from fasttta_jax.parallel.compile import Compiled, CompileReport, Program
from fasttta_jax.randomness import fold_in_each
from fasttta_jax.systems import System, TextToAudio
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Conditioning, Hidden, Key, Masked, Params, Tokens


class FullLength(TextToAudio):
    """Ignores the bound on visible tokens, and computes all states before it picks some."""

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        masked: Masked,
        conditioning: Conditioning,
        *,
        num_visible: int | None = None,
        positions: Int[Array, "B Q"] | None = None,
        strength: Float[Array, " B"] | None = None,
        dropout_key: Key | None = None,
    ) -> Hidden:
        del num_visible
        states = super().hidden(
            params, tokens, masked, conditioning, strength=strength, dropout_key=dropout_key
        )
        if positions is None:
            return states
        return jnp.take_along_axis(states, positions[..., None], axis=1)


def masked_system(model: System) -> TextToAudio:
    """The system, which must have a masked network: the others are decoded in one way alone.

    Raises:
      ValueError: it has another one.
    """
    if not isinstance(model, TextToAudio):
        raise ValueError("model.network is not 'masked', which is what the baselines decode")
    return model


def full_length(model: System) -> FullLength:
    """The same system, with the same parameters, over all positions.

    Raises:
      ValueError: see `masked_system`.
    """
    model = masked_system(model)
    return FullLength(model.config, model.text, model.objective)


class HostLoop:
    """`decoding.loop.parallel_decode` driven from Python, with the same segments, keys and result.

    Args:
      model: of any objective; the chain of "diffusion" is driven step by step.
      config: iterations, guidance, temperature.
    """

    def __init__(self, model: System, config: DecodeConfig) -> None:
        self._model = masked_system(model)
        self._config = config
        self._segments = plan_segments(config, model.config.num_tokens)
        self._compiled: dict[tuple[str, tuple[int, ...]], Compiled[Any]] = {}

    @property
    def reports(self) -> list[CompileReport]:
        """Of everything that has been compiled so far."""
        return [compiled.report for compiled in self._compiled.values()]

    def __call__(self, params: Params, text: TextBatch, keys: Key) -> Tokens:
        """Tokens, float32 [B, N, C]; `keys` is one a clip."""
        branches, order, state = self._run(self._begin, (), params, text, keys)
        for segment in self._segments:
            for index, start in enumerate(segment.starts):
                iteration = segment.first + index
                places = np.int32(start), np.int32(segment.counts[index])
                scale = np.float32(segment.guidance_scales[index])
                streams = branches[self._num_rows(segment) - 1]
                positions, hidden = self._run(
                    functools.partial(self._read, segment),
                    (segment.first,),
                    *(params, streams, order, state, *places, scale),
                )
                new = self._sample(params, hidden, keys, iteration, scale, segment)
                state = self._run(self._write, (segment.num_revealed,), state, positions, new)
        return state.tokens

    def _num_rows(self, segment: Segment) -> int:
        return 1 if self._model.guides_itself else segment.branches

    def _run(self, function: Callable[..., Any], sizes: tuple[int, ...], *arguments: Any) -> Any:
        name = getattr(function, "func", function).__name__
        if (name, sizes) not in self._compiled:
            self._compiled[name, sizes] = Program(jax.jit(function)).compile(*arguments)
        return self._compiled[name, sizes](*arguments)

    def _begin(
        self, params: Params, text: TextBatch, keys: Key
    ) -> tuple[tuple[Conditioning, Conditioning], Int[Array, "B N"], DecodeState]:
        """Streams of one branch and of two, the order, and the state that decoding starts from."""
        model, shape = self._model, (keys.shape[0], self._model.config.num_tokens)
        conditioning = model.condition(params, text)
        tokens = jnp.zeros((*shape, model.config.token_dim), jnp.float32)
        stages = order_stages(self._config, shape[1], tokens_per_column=1)
        order = sample_orders(fold_in_each(keys, self._config.num_iterations), shape[1], stages)
        branches = conditioning, with_unconditional(conditioning)
        return branches, order, DecodeState(tokens, jnp.ones(shape, jnp.bool_))

    def _read(
        self,
        segment: Segment,
        params: Params,
        conditioning: Conditioning,
        order: Int[Array, "B N"],
        state: DecodeState,
        start: jax.Array,
        count: jax.Array,
        scale: jax.Array,
    ) -> tuple[Int[Array, "B Q"], Float[Array, "B Q D"]]:
        """Positions to reveal, N where padded, and the backbone's states there."""
        num_rows = self._num_rows(segment)
        told = jnp.full(order.shape[:1], scale) if self._model.guides_itself else None
        positions = next_positions(order, start, count, segment.num_revealed)
        hidden = self._model.hidden(
            params,
            repeat_rows(state.tokens, num_rows),
            repeat_rows(state.masked, num_rows),
            conditioning,
            num_visible=segment.num_visible,
            positions=repeat_rows(jnp.minimum(positions, order.shape[1] - 1), num_rows),
            strength=told,
        )
        return positions, hidden

    def _write(
        self, state: DecodeState, positions: Int[Array, "B Q"], new: Float[Array, "B Q C"]
    ) -> DecodeState:
        return reveal(state, positions, new)

    def _sample(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        keys: Key,
        iteration: int,
        scale: np.float32,
        segment: Segment,
    ) -> Float[Array, "B Q C"]:
        number, width = np.int32(iteration), segment.num_revealed
        sizes = width, self._num_rows(segment)
        objective = self._model.objective
        if not isinstance(objective, Diffusion):
            return self._run(self._draw, sizes, params, hidden, keys, number, scale)
        start = functools.partial(self._start_chain, objective, width)
        keys, x_t = self._run(start, (width,), keys, number)
        denoise = functools.partial(self._denoise, objective)
        for index in reversed(range(objective.config.sampling_steps)):
            step = np.int32(index)
            x_t = self._run(denoise, sizes, params, hidden, x_t, keys, step, scale)
        return x_t

    def _halves(self, hidden: jax.Array, num_clips: int) -> tuple[jax.Array, jax.Array | None]:
        """States with text and without, the latter only under guidance."""
        if hidden.shape[0] == num_clips:
            return hidden, None
        with_text, without = rows_of(hidden, 2)
        return with_text, without

    def _draw(
        self, params: Params, hidden: jax.Array, keys: Key, iteration: jax.Array, scale: jax.Array
    ) -> Float[Array, "B Q C"]:
        """The tokens of an iteration, in one program."""
        keys, temperature = fold_in_each(keys, iteration), jnp.float32(self._config.temperature)
        states = self._halves(hidden, keys.shape[0])
        return self._model.sample_tokens(params, *states, scale, keys, temperature)

    def _start_chain(
        self, objective: Diffusion, width: int, keys: Key, iteration: jax.Array
    ) -> tuple[Key, Float[Array, "B Q C"]]:
        """Keys of this iteration and the noise that its chain starts from."""
        keys = fold_in_each(keys, iteration)
        shape = (width, self._model.config.token_dim)
        return keys, first_noise(keys, shape, objective.sampling_schedule)

    def _denoise(
        self,
        objective: Diffusion,
        params: Params,
        hidden: jax.Array,
        x_t: Float[Array, "B Q C"],
        keys: Key,
        index: jax.Array,
        scale: jax.Array,
    ) -> Float[Array, "B Q C"]:
        """One step of the chain, as a program of its own."""
        return reverse_step(
            objective.guided_denoiser(params["head"], *self._halves(hidden, keys.shape[0]), scale),
            x_t,
            index,
            keys,
            schedule=objective.sampling_schedule,
            prediction=objective.config.prediction,
            temperature=jnp.float32(self._config.temperature),
        )
