"""Iterative parallel decoding: T passes of the backbone reveal all N tokens, a few more each time.

Source: MAR's sampler. The schedule is known before tracing, so the iterations are grouped into a
few segments, each a `lax.scan` with its own static number of visible tokens for the encoder and of
revealed tokens, the only ones that the last block and the head compute. Guidance runs the backbone
once on a doubled batch and is skipped at scale 1. Tokens may be given from the start: then the
schedule runs over the others alone, which fills gaps or continues a clip.
Dimensions: B clips, N tokens, C channels, D width, T iterations, Q tokens revealed at once
(padded).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, NamedTuple, Protocol, overload, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.config import DecodeConfig
from fasttta_jax.masking import decode_counts, guidance_scales, sample_orders
from fasttta_jax.randomness import fold_in_each
from fasttta_jax.typing import Conditioning, Key, Masked, Params, Tokens, unconditional


@runtime_checkable
class Decodable(Protocol):
    """A backbone and a token sampler."""

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        masked: Masked,
        conditioning: Conditioning,
        *,
        num_visible: int | None = None,
        positions: Int[Array, "B Q"] | None = None,
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
    """Tokens that are given and come back unchanged.

    Attributes:
      tokens: float32 latents; what stands where nothing is given is ignored.
      mask: True where the token is given.
    """

    tokens: Tokens
    mask: Bool[Array, "B N"]


class DecodeState(NamedTuple):
    """What travels from one iteration to the next.

    Attributes:
      tokens: latents, zero where nothing is revealed yet.
      masked: True where nothing is revealed yet.
    """

    tokens: Tokens
    masked: Masked


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive iterations that share static sizes.

    Attributes:
      first: number of the first iteration.
      starts: tokens revealed before each iteration.
      counts: tokens revealed by each iteration.
      num_visible: most tokens visible in any of them.
      num_revealed: most tokens revealed by any of them.
    """

    first: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def num_visible(self) -> int:
        return self.starts[-1]

    @property
    def num_revealed(self) -> int:
        return max(self.counts)


def plan_segments(counts: tuple[int, ...], max_segments: int) -> tuple[Segment, ...]:
    """Splits the iterations so that the padded visible tokens, summed over iterations, are fewest.

    Exact, by dynamic programming over (iterations covered, segments used), in T^2 * max_segments
    steps.
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    num_iterations = len(counts)
    limit = min(max_segments, num_iterations)
    costs = np.full((limit + 1, num_iterations + 1), np.inf)
    cuts = np.zeros((limit + 1, num_iterations + 1), int)
    costs[0, 0] = 0
    for used in range(1, limit + 1):
        for end in range(1, num_iterations + 1):
            begins = np.arange(end)
            candidates = costs[used - 1, :end] + (end - begins) * starts[end - 1]
            cuts[used, end] = int(np.argmin(candidates))
            costs[used, end] = candidates[cuts[used, end]]
    used = int(np.argmin(costs[:, num_iterations]))
    end, bounds = num_iterations, [num_iterations]
    while end > 0:
        end = int(cuts[used, end])
        used -= 1
        bounds.append(end)
    bounds.reverse()
    return tuple(
        Segment(begin, tuple(map(int, starts[begin:end])), tuple(counts[begin:end]))
        for begin, end in itertools.pairwise(bounds)
    )


@overload
def parallel_decode(
    apply: Decodable,
    params: Params,
    conditioning: Conditioning,
    key: Key,
    config: DecodeConfig,
    *,
    num_tokens: int,
    token_dim: int,
    known: Known | None = None,
    num_known: int = 0,
    return_states: Literal[False] = False,
) -> Tokens: ...


@overload
def parallel_decode(
    apply: Decodable,
    params: Params,
    conditioning: Conditioning,
    key: Key,
    config: DecodeConfig,
    *,
    num_tokens: int,
    token_dim: int,
    known: Known | None = None,
    num_known: int = 0,
    return_states: Literal[True],
) -> tuple[Tokens, DecodeState]: ...


def parallel_decode(
    apply: Decodable,
    params: Params,
    conditioning: Conditioning,
    key: Key,
    config: DecodeConfig,
    *,
    num_tokens: int,
    token_dim: int,
    known: Known | None = None,
    num_known: int = 0,
    return_states: bool = False,
) -> Tokens | tuple[Tokens, DecodeState]:
    """Generates the latents of a batch; a pure function to be jitted as a whole.

    A clip depends on its own key, text and known tokens, not on its neighbours.

    Args:
      apply: backbone and token sampler.
      params: their parameters.
      conditioning: text streams [B, ...].
      key: one key per clip, [B].
      config: iterations, guidance, temperature.
      num_tokens: N.
      token_dim: C.
      known: tokens that are given; their places may differ from clip to clip.
      num_known: how many are given, the same number in every clip; the caller guarantees it.
      return_states: also return the state after every iteration.

    Returns:
      float32 [B, N, C]; with `return_states` also a `DecodeState` of [T, B, N, C] and [T, B, N],
      of which the last entry is the result.

    Raises:
      ValueError: more iterations than tokens to generate, or `known` and `num_known` disagree.
    """
    batch_size = key.shape[0]
    counts = reveal_counts(num_tokens, num_known, config.num_iterations)
    scales = guidance_scales(
        counts, config.guidance_scale, config.guidance_schedule, num_known=num_known
    )
    guided = config.guidance_scale != 1.0
    temperature = jnp.float32(config.temperature)
    if guided:
        conditioning = with_unconditional(conditioning)
    state = _first_state((batch_size, num_tokens, token_dim), known, num_known)
    order = _reveal_order(fold_in_each(key, config.num_iterations), state.masked)
    double = twice if guided else lambda x: x

    history = []
    for segment in plan_segments(counts, config.max_segments):

        def iterate(
            state: DecodeState,
            step: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
            segment: Segment = segment,
        ) -> tuple[DecodeState, DecodeState | None]:
            iteration, start, count, scale = step
            positions = next_positions(order, start, count, segment.num_revealed)
            hidden = apply.hidden(
                params,
                double(state.tokens),
                double(state.masked),
                conditioning,
                num_visible=num_known + segment.num_visible,
                positions=double(jnp.minimum(positions, num_tokens - 1)),
            )
            new = apply.sample_tokens(
                params,
                *(both(hidden) if guided else (hidden, None)),
                scale,
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
            jnp.asarray([scales[iteration] for iteration in iterations], jnp.float32),
        )
        state, states = jax.lax.scan(iterate, state, steps)
        history.append(states)
    if return_states:
        return state.tokens, jax.tree.map(lambda *parts: jnp.concatenate(parts), *history)
    return state.tokens


def interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Rows [B, ...] of two arrays as [2B, ...], those of one clip side by side.

    The halves of a guided batch lie so, and not one behind the other, because a device then keeps
    both of each of its clips.
    """
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def twice(x: jax.Array) -> jax.Array:
    """Every row of [B, ...] twice: the doubled batch of guidance."""
    return interleave(x, x)


def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two arrays [B, ...] that `interleave` put together."""
    pairs = x.reshape(-1, 2, *x.shape[1:])
    return pairs[:, 0], pairs[:, 1]


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


def reveal_counts(num_tokens: int, num_known: int, num_iterations: int) -> tuple[int, ...]:
    """`decode_counts` of the tokens that are not given.

    Raises:
      ValueError: nothing is left to generate, or more iterations are asked for than tokens.
    """
    if not 0 <= num_known < num_tokens:
        raise ValueError(
            f"num_known is {num_known}; allowed: 0 to {num_tokens - 1}, one less than the tokens "
            "of a clip, so that something is left to generate"
        )
    num_unknown = num_tokens - num_known
    if num_known and num_iterations > num_unknown:
        raise ValueError(
            f"num_iterations is {num_iterations}; allowed: 1 to {num_unknown}, the tokens left to "
            f"generate where {num_known} of {num_tokens} are known"
        )
    return decode_counts(num_unknown, num_iterations)


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
    given = known.tokens.astype(jnp.float32)
    return DecodeState(jnp.where(known.mask[..., None], given, 0.0), ~known.mask)


def _reveal_order(keys: Key, masked: Masked) -> Int[Array, "B N"]:
    """A random order of the masked positions of every clip; the others come behind them."""
    order = sample_orders(keys, masked.shape[1])
    is_known = ~jnp.take_along_axis(masked, order, axis=1)
    return jnp.take_along_axis(order, jnp.argsort(is_known, axis=1, stable=True), axis=1)
