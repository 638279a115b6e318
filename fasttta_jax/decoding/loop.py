"""Iterative parallel decoding: T passes of the backbone reveal all N tokens, a few more each time.

Source: MAR's sampler. The iterations are grouped into the segments of `plan`, each a `lax.scan`
with its own static sizes. Guidance runs the backbone once on a doubled batch, whose other half
reads a negative text or none; outside of its interval, and where the config's scale is 1, there is
no other half. Tokens may be given from the start: then the schedule runs over the others
alone, which fills gaps or continues a clip. A clip may have several texts: the backbone runs once
for each, and a position takes the weighted mean of their states.
Dimensions: B clips, N tokens, C channels, D width, T iterations, Q tokens revealed at once
(padded), X texts of a clip, R = X + 1 rows of a guided clip, X of another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decoding.plan import Segment, plan_segments
from fasttta_jax.masking import order_stages, sample_orders
from fasttta_jax.randomness import fold_in_each
from fasttta_jax.typing import Conditioning, Key, Masked, Params, Tokens, unconditional


@runtime_checkable
class Decodable(Protocol):
    """A backbone and a token sampler.

    Attributes:
      guides_itself: whether `hidden` is told a strength of guidance, and needs no second pass.
    """

    @property
    def guides_itself(self) -> bool: ...

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
    ) -> Float[Array, "B Q D"]: ...

    def sample_tokens(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]: ...


class Known(NamedTuple):
    """Tokens that are given and come back unchanged; arrays of NumPy or of jax.

    Attributes:
      tokens: float32 latents; what stands where nothing is given is ignored.
      mask: True where the token is given.
    """

    tokens: Float[Array | np.ndarray, "B N C"]
    mask: Bool[Array | np.ndarray, "B N"]


class Guidance(NamedTuple):
    """Guidance of every clip; without it, all have the config's, away from no text.

    Attributes:
      scales: float32 strength in each iteration; 1 is none.
      negative: text streams that guidance leads away from; None where the backbone is told the
        strength, and guides in the one pass that reads the text.
    """

    scales: Float[Array, "B T"]
    negative: Conditioning | None


class DecodeState(NamedTuple):
    """What travels from one iteration to the next; in a `DecodeResult`, one for each iteration.

    Attributes:
      tokens: latents [..., N, C], zero where nothing is revealed yet.
      masked: [..., N], True where nothing is revealed yet.
    """

    tokens: Float[Array, "... N C"]
    masked: Bool[Array, "... N"]


class DecodeResult(NamedTuple):
    """What `parallel_decode` returns.

    Attributes:
      tokens: float32 latents [B, N, C].
      states: those after every iteration, [T, B, N, C] and [T, B, N], where they were asked for;
        the last is the result.
    """

    tokens: Tokens
    states: DecodeState | None


def parallel_decode(
    model: Decodable,
    params: Params,
    conditioning: Conditioning,
    key: Key,
    config: DecodeConfig,
    *,
    num_tokens: int,
    token_dim: int,
    tokens_per_column: int | None = None,
    known: Known | None = None,
    num_known: int = 0,
    guidance: Guidance | None = None,
    weights: Float[Array, "B N X"] | None = None,
    return_states: bool = False,
) -> DecodeResult:
    """Generates the latents of a batch; a pure function to be jitted as a whole.

    A clip depends on its own key, texts, guidance and known tokens, not on its neighbours.

    Args:
      model: backbone and token sampler.
      params: their parameters.
      conditioning: text streams [B, ...], or [B * X, ...] with those of one clip side by side.
      key: one key per clip, [B].
      config: iterations, counts, order, guidance, temperature; what is guided at all.
      num_tokens: N.
      token_dim: C.
      tokens_per_column: of the codec; needed where the order is that of a grid.
      known: tokens that are given; their places may differ from clip to clip.
      num_known: how many are given, the same number in every clip; the caller guarantees it.
      guidance: of each clip; None for the config's scale and no negative text.
      weights: of each clip's texts at each position, with a sum of 1; None where it has one text.
      return_states: also return the state after every iteration.

    Raises:
      ValueError: more iterations than tokens to generate, counts or an order of other tokens, or
        `known` and `num_known` disagree.
    """
    segments = plan_segments(config, num_tokens, num_known)
    stages = order_stages(config, num_tokens, tokens_per_column)
    temperature = jnp.float32(config.temperature)
    num_texts = 1 if weights is None else weights.shape[2]
    if all(segment.branches == 1 for segment in segments):
        guidance = None
    elif guidance is None:
        negative = None if model.guides_itself else _without_text(conditioning, num_texts)
        guidance = Guidance(_common_scales(segments, key.shape[0]), negative)
    scales, streams = None, {1: conditioning}
    if guidance is not None:
        scales = guidance.scales
        if guidance.negative is not None:
            with_negative = functools.partial(_with_last, num_rows=num_texts + 1)
            streams[2] = jax.tree.map(with_negative, conditioning, guidance.negative)
    told = scales is not None and 2 not in streams
    state = _first_state((key.shape[0], num_tokens, token_dim), known, num_known)
    order = _reveal_order(fold_in_each(key, config.num_iterations), state.masked, stages)

    history = []
    for segment in segments:

        def iterate(
            state: DecodeState,
            step: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None],
            segment: Segment = segment,
        ) -> tuple[DecodeState, DecodeState | None]:
            iteration, start, count, scale = step
            positions = next_positions(order, start, count, segment.num_revealed)
            places = jnp.minimum(positions, num_tokens - 1)
            guided = segment.branches == 2 and not told
            num_rows = num_texts + 1 if guided else num_texts
            strength = repeat_rows(scale, num_rows) if told and scale is not None else None
            rows = model.hidden(
                params,
                repeat_rows(state.tokens, num_rows),
                repeat_rows(state.masked, num_rows),
                streams[2 if guided else 1],
                num_visible=segment.num_visible,
                positions=repeat_rows(places, num_rows),
                strength=strength,
            )
            hidden = rows_of(rows, num_rows)
            new = model.sample_tokens(
                params,
                _mixed(hidden[:num_texts], weights, places),
                hidden[-1] if guided else None,
                scale[:, None, None] if guided and scale is not None else jnp.float32(1),
                fold_in_each(key, iteration),
                temperature,
            )
            state = reveal(state, positions, new)
            return state, state if return_states else None

        iterations = range(segment.first, segment.first + len(segment.counts))
        steps = (
            jnp.asarray(iterations, jnp.int32),
            jnp.asarray(segment.starts, jnp.int32),
            jnp.asarray(segment.counts, jnp.int32),
            None if scales is None else scales[:, segment.first : iterations.stop].T,
        )
        state, states = jax.lax.scan(iterate, state, steps)
        history.append(states)
    states = jax.tree.map(lambda *parts: jnp.concatenate(parts), *history)
    return DecodeResult(state.tokens, states)


def interleave(*parts: jax.Array) -> jax.Array:
    """Rows [B, ...] of R arrays as [B * R, ...], those of one clip side by side.

    The halves of a guided batch lie so, and not one behind the other, because a device then keeps
    both of each of its clips.
    """
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def repeat_rows(x: jax.Array, number: int) -> jax.Array:
    """Every row of [B, ...] so often: what the rows of a clip have in common."""
    return x if number == 1 else interleave(*[x] * number)


def rows_of(x: jax.Array, number: int) -> tuple[jax.Array, ...]:
    """The arrays [B, ...] that `interleave` put together."""
    if number == 1:
        return (x,)
    parts = x.reshape(-1, number, *x.shape[1:])
    return tuple(parts[:, index] for index in range(number))


def with_unconditional(conditioning: Conditioning) -> Conditioning:
    """Streams of a doubled batch for guidance: each clip's with text, then without."""
    return jax.tree.map(interleave, conditioning, unconditional(conditioning))


def next_positions(
    order: Int[Array, "B N"], start: jax.Array, count: jax.Array, width: int
) -> Int[Array, "B Q"]:
    """The `count` positions from `start` on in each clip's order, padded with N to Q = `width`."""
    num_tokens = order.shape[1]
    padded = jnp.pad(order, ((0, 0), (0, width)), constant_values=num_tokens)
    chosen = jax.lax.dynamic_slice_in_dim(padded, start, width, axis=1)
    return jnp.where((jnp.arange(width) < count)[None], chosen, num_tokens)


def reveal(
    state: DecodeState, positions: Int[Array, "B Q"], tokens: Float[Array, "B Q C"]
) -> DecodeState:
    """The state with these tokens in their places; positions of N are nowhere."""

    def write(rows: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
        return rows.at[places].set(values, mode="drop")

    revealed = jnp.zeros(positions.shape, jnp.bool_)
    return DecodeState(
        jax.vmap(write)(state.tokens, positions, tokens.astype(jnp.float32)),
        jax.vmap(write)(state.masked, positions, revealed),
    )


def _with_last(x: jax.Array, last: jax.Array, num_rows: int) -> jax.Array:
    """Rows [B * (R - 1), ...] with one of [B, ...] behind those of every clip, [B * R, ...]."""
    return interleave(*rows_of(x, num_rows - 1), last)


def _common_scales(segments: Sequence[Segment], num_clips: int) -> Float[Array, "B T"]:
    """The config's scales, for all clips."""
    scales = [scale for segment in segments for scale in segment.guidance_scales]
    return jnp.broadcast_to(jnp.asarray(scales, jnp.float32), (num_clips, len(scales)))


def _without_text(conditioning: Conditioning, num_texts: int) -> Conditioning:
    """No text, for every clip."""
    return unconditional(jax.tree.map(lambda x: rows_of(x, num_texts)[0], conditioning))


def _mixed(
    hidden: tuple[jax.Array, ...],
    weights: Float[Array, "B N X"] | None,
    places: Int[Array, "B Q"],
) -> Float[Array, "B Q D"]:
    """The mean of the states of a clip's texts, by the weights of each place."""
    if weights is None:
        return hidden[0]
    here = jnp.take_along_axis(weights, places[..., None], axis=1)
    terms = [here[..., index, None] * state for index, state in enumerate(hidden)]
    return functools.reduce(jnp.add, terms)


def _first_state(shape: tuple[int, int, int], known: Known | None, num_known: int) -> DecodeState:
    if known is None:
        if num_known:
            raise ValueError(f"num_known is {num_known}, but no known tokens are given")
        return DecodeState(jnp.zeros(shape, jnp.float32), jnp.ones(shape[:2], jnp.bool_))
    if known.tokens.shape != shape or known.mask.shape != shape[:2]:
        raise ValueError(
            f"known has tokens {known.tokens.shape} and a mask {known.mask.shape}; "
            f"expected {shape} and {shape[:2]}"
        )
    tokens, mask = jnp.asarray(known.tokens, jnp.float32), jnp.asarray(known.mask)
    return DecodeState(jnp.where(mask[..., None], tokens, 0.0), ~mask)


def _reveal_order(
    keys: Key, masked: Masked, stages: Int[np.ndarray, " N"] | None
) -> Int[Array, "B N"]:
    """The known positions of every clip, then the masked ones by stage, at random within one."""
    order = sample_orders(keys, masked.shape[1], stages)
    is_masked = jnp.take_along_axis(masked, order, axis=1)
    return jnp.take_along_axis(order, jnp.argsort(is_masked, axis=1, stable=True), axis=1)
