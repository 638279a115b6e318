"""Iterative parallel decoding: T passes of the backbone reveal all N tokens, a few more each time.

Source: MAR's sampler. The schedule is known before tracing, so the iterations are grouped into a
few segments, each a `lax.scan` with its own static number of visible tokens for the encoder and of
revealed tokens for the head. Guidance runs the backbone once on a doubled batch and is skipped at
scale 1.
Dimensions: B clips, N tokens, C channels, D width, T iterations, Q tokens revealed at once
(padded).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fasttta_jax.config import DecodeConfig
from fasttta_jax.masking import decode_counts, guidance_scales, sample_orders
from fasttta_jax.models.mar import unconditional
from fasttta_jax.typing import Conditioning, Hidden, Key, Masked, Params, Tokens


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
    ) -> Hidden: ...

    def sample_tokens(
        self,
        params: Params,
        hidden: Float[Array, "B Q D"],
        hidden_unconditional: Float[Array, "B Q D"] | None,
        guidance_scale: jax.Array,
        keys: Key,
        temperature: jax.Array,
    ) -> Float[Array, "B Q C"]: ...


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


def parallel_decode(
    apply: Decodable,
    params: Params,
    conditioning: Conditioning,
    key: Key,
    config: DecodeConfig,
    *,
    num_tokens: int,
    token_dim: int,
) -> Tokens:
    """Generates the latents of a batch; a pure function to be jitted as a whole.

    Args:
      apply: backbone and token sampler.
      params: their parameters.
      conditioning: text streams [B, ...].
      key: one key per clip, [B]: a clip depends on its own key and text, not on its neighbours.
      config: iterations, guidance, temperature.
      num_tokens: N.
      token_dim: C.

    Returns:
      float32 [B, N, C].

    Raises:
      ValueError: more iterations than tokens.
    """
    batch_size = key.shape[0]
    counts = decode_counts(num_tokens, config.num_iterations)
    scales = guidance_scales(counts, config.guidance_scale, config.guidance_schedule)
    guided = config.guidance_scale != 1.0
    temperature = jnp.float32(config.temperature)
    if guided:
        conditioning = jax.tree.map(
            lambda with_text, without: jnp.concatenate([with_text, without]),
            conditioning,
            unconditional(conditioning),
        )
    order_keys = jax.vmap(lambda one: jax.random.fold_in(one, config.num_iterations))(key)
    order = sample_orders(order_keys, num_tokens)
    rows = jnp.arange(batch_size)[:, None]
    state = DecodeState(
        jnp.zeros((batch_size, num_tokens, token_dim), jnp.float32),
        jnp.ones((batch_size, num_tokens), jnp.bool_),
    )

    def double(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, x]) if guided else x

    for segment in plan_segments(counts, config.max_segments):
        width = segment.num_revealed
        padded_order = jnp.pad(order, ((0, 0), (0, width)), constant_values=num_tokens)

        def iterate(
            state: DecodeState,
            step: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
            segment: Segment = segment,
            padded_order: Int[Array, "B P"] = padded_order,
            width: int = width,
        ) -> tuple[DecodeState, None]:
            iteration, start, count, scale = step
            hidden = apply.hidden(
                params,
                double(state.tokens),
                double(state.masked),
                conditioning,
                num_visible=segment.num_visible,
            )
            chosen = jax.lax.dynamic_slice_in_dim(padded_order, start, width, axis=1)
            is_real = (jnp.arange(width) < count)[None, :]
            positions = jnp.where(is_real, chosen, num_tokens)
            readable = jnp.minimum(positions, num_tokens - 1)
            asked = jnp.take_along_axis(hidden, double(readable)[..., None], axis=1)
            new = apply.sample_tokens(
                params,
                asked[:batch_size],
                asked[batch_size:] if guided else None,
                scale,
                jax.vmap(lambda one: jax.random.fold_in(one, iteration))(key),
                temperature,
            )
            return (
                DecodeState(
                    state.tokens.at[rows, positions].set(new.astype(jnp.float32), mode="drop"),
                    state.masked.at[rows, positions].set(False, mode="drop"),
                ),
                None,
            )

        iterations = range(segment.first, segment.first + len(segment.counts))
        steps = (
            jnp.asarray(iterations, jnp.int32),
            jnp.asarray(segment.starts, jnp.int32),
            jnp.asarray(segment.counts, jnp.int32),
            jnp.asarray([scales[iteration] for iteration in iterations], jnp.float32),
        )
        state, _ = jax.lax.scan(iterate, state, steps)
    return state.tokens
