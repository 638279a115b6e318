"""Which tokens are masked in training, and how many and which are revealed in each iteration.

Source: MAR (Li et al., 2024): the distribution of mask rates, how a mask schedule is rounded.
Dimensions: B clips, N tokens, T iterations.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.config import DecodeConfig, MaskingConfig
from fasttta_jax.config.checks import check
from fasttta_jax.config.decode import stages_of
from fasttta_jax.randomness import stream
from fasttta_jax.schedules import (
    GUIDANCE_SCHEDULES,
    MASK_SCHEDULES,
    ORDERS,
    MaskSchedule,
    Stages,
    forward_stages,
    guided_iterations,
    masked_as,
    masked_cosine,
)
from fasttta_jax.typing import Key


def sample_mask_rate(
    key: Key, shape: tuple[int, ...], *, minimum: float, mean: float = 1.0, std: float = 0.25
) -> Float[Array, " ..."]:
    """Share of tokens to mask: normal(mean, std) truncated to [minimum, 1], float32."""
    lower = (minimum - mean) / std
    upper = (1.0 - mean) / std
    draw = jax.random.truncated_normal(key, lower, upper, shape, jnp.float32)
    return jnp.clip(mean + std * draw, minimum, 1.0)


def sample_orders(
    keys: Key, num_tokens: int, stages: Int[np.ndarray, " N"] | None = None
) -> Int[Array, "B N"]:
    """An independent permutation of the token positions for every key in `keys[B]`.

    Uniform among those in which no position comes before one of an earlier stage.
    """
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_tokens))(keys).astype(jnp.int32)
    if stages is None:
        return orders
    stage_of = jnp.asarray(stages, jnp.int32)[orders]
    return jnp.take_along_axis(orders, jnp.argsort(stage_of, axis=1, stable=True), axis=1)


def order_stages(
    config: DecodeConfig, num_tokens: int, tokens_per_column: int | None
) -> Int[np.ndarray, " N"] | None:
    """The stage, from 0, in which each position is revealed; None where there is but one.

    Args:
      config: its order.
      num_tokens: N; the tokens of a column are side by side.
      tokens_per_column: of the codec; None where it is not known.

    Raises:
      ConfigError: the order needs a codec's grid and has none, or is that of other tokens.
    """
    config.check_tokens(num_tokens)
    order = config.order
    if isinstance(order, str):
        if (stages := ORDERS[order]) is None:
            return None
        field = "decode.order", order, "'random' or a permutation,"
        return _on_grid(stages, num_tokens, tokens_per_column, field)
    named = stages_of(order)
    found = np.zeros(num_tokens, int)
    for number, positions in enumerate(named):
        found[list(positions)] = number
    return found if len(named) > 1 else None


def _on_grid(
    stages: Stages, num_tokens: int, tokens_per_column: int | None, field: tuple[str, Any, str]
) -> Int[np.ndarray, " N"]:
    """Stages of the columns of a codec; `field` is what asks for them, its value, and what else
    it may be.
    """
    name, value, allowed = field
    whole = tokens_per_column is not None and num_tokens % tokens_per_column == 0
    check(whole, name, value, f"{allowed} where tokens_per_column is {tokens_per_column}")
    assert tokens_per_column is not None
    return stages(num_tokens // tokens_per_column, tokens_per_column).reshape(-1)


def sample_masks(
    key: Key, batch_size: int, num_tokens: int, *, minimum: float, mean: float, std: float
) -> Bool[Array, "B N"]:
    """Training masks: per clip, ceil(N * rate) positions chosen uniformly, at least one."""
    rate_key, order_key = jax.random.split(key)
    rate = sample_mask_rate(rate_key, (batch_size,), minimum=minimum, mean=mean, std=std)
    num_masked = jnp.clip(jnp.ceil(num_tokens * rate), 1, num_tokens).astype(jnp.int32)
    ranks = sample_orders(jax.random.split(order_key, batch_size), num_tokens)
    return ranks < num_masked[:, None]


def max_visible(num_tokens: int, minimum: float) -> int:
    """Most tokens that `sample_masks` can leave visible: the static size of the encoder's input."""
    smallest = np.float32(num_tokens) * np.float32(minimum)  # rounded as the traced product is
    return num_tokens - max(1, math.ceil(smallest))


@runtime_checkable
class MaskDistribution(Protocol):
    """Of training masks; frozen and equal by value."""

    def sample(self, key: Key, batch_size: int, num_tokens: int) -> Bool[Array, "B N"]:
        """A mask for every clip, True where the token is to be predicted."""
        ...

    def max_visible(self, num_tokens: int) -> int:
        """Most tokens that any mask leaves visible."""
        ...

    def mean_visible(self, num_tokens: int) -> float:
        """Expected number of visible tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class RandomMasks:
    """`sample_masks`, of a section `masking`; of a share of the clips the last tokens in time.

    Attributes:
      config: rates, and the share.
      tokens_per_column: of the codec, where the share is above 0.
    """

    config: MaskingConfig
    tokens_per_column: int | None = None

    def sample(self, key: Key, batch_size: int, num_tokens: int) -> Bool[Array, "B N"]:
        """See `MaskDistribution`."""
        config = self.config
        masks = sample_masks(key, batch_size, num_tokens, **config.rates)
        if config.forward_share == 0:
            return masks
        field = "masking.forward_share", config.forward_share, "0"
        stages = _on_grid(forward_stages, num_tokens, self.tokens_per_column, field)
        order_key, choice_key = jax.random.split(stream(key, "in order"))
        orders = sample_orders(jax.random.split(order_key, batch_size), num_tokens, stages)
        num_visible = num_tokens - jnp.sum(masks, axis=1, keepdims=True)
        forward = jax.random.bernoulli(choice_key, config.forward_share, (batch_size, 1))
        return jnp.where(forward, jnp.argsort(orders, axis=1) >= num_visible, masks)

    def max_visible(self, num_tokens: int) -> int:
        """See `MaskDistribution`."""
        return max_visible(num_tokens, self.config.minimum)

    def mean_visible(self, num_tokens: int) -> float:
        """N - E[ceil(N rate)]."""
        config = self.config
        if config.minimum == 1.0:
            return 0.0
        share_below = statistics.NormalDist(config.mean, config.std).cdf
        lowest, highest = share_below(config.minimum), share_below(1.0)
        # N - ceil(N r) is how many of 0, 1, ..., N - 1 are at least N r
        shares = (max(0.0, share_below(k / num_tokens) - lowest) for k in range(num_tokens))
        return math.fsum(shares) / (highest - lowest)


@dataclasses.dataclass(frozen=True)
class AllMasked:
    """Every token is to be predicted, as where a network reads all of them with noise."""

    def sample(self, key: Key, batch_size: int, num_tokens: int) -> Bool[Array, "B N"]:
        """See `MaskDistribution`."""
        del key
        return jnp.ones((batch_size, num_tokens), jnp.bool_)

    def max_visible(self, num_tokens: int) -> int:
        """See `MaskDistribution`."""
        del num_tokens
        return 0

    def mean_visible(self, num_tokens: int) -> float:
        """See `MaskDistribution`."""
        del num_tokens
        return 0.0


def decode_counts(
    num_tokens: int, num_iterations: int, schedule: MaskSchedule = masked_cosine
) -> tuple[int, ...]:
    """Tokens revealed in each iteration, as the schedule has it, rounded; every entry at least 1.

    Args:
      num_tokens: N.
      num_iterations: T, from 1 to N.
      schedule: share of tokens still masked after t of T iterations.

    Returns:
      T counts that sum to N.

    Raises:
      ValueError: `num_iterations` is out of range.
    """
    if not 1 <= num_iterations <= num_tokens:
        raise ValueError(
            f"num_iterations is {num_iterations}; allowed: 1 to the number of tokens, {num_tokens}"
        )
    counts = []
    masked = num_tokens
    for iteration in range(1, num_iterations):
        target = math.floor(num_tokens * schedule(iteration, num_iterations))
        remaining = max(num_iterations - iteration, min(masked - 1, target))
        counts.append(masked - remaining)
        masked = remaining
    counts.append(masked)
    return tuple(counts)


def reveal_counts(config: DecodeConfig, num_tokens: int, num_known: int = 0) -> tuple[int, ...]:
    """Tokens that each iteration reveals of those that are not known, as `config.counts` says.

    Raises:
      ValueError: the counts are those of another number of tokens, or more iterations than tokens
        are asked for.
    """
    config.check_tokens(num_tokens)
    counts = config.counts
    schedule = MASK_SCHEDULES[counts] if isinstance(counts, str) else masked_as(counts)
    return decode_counts(num_tokens - num_known, config.num_iterations, schedule)


@dataclasses.dataclass(frozen=True)
class DecodingMasks:
    """What parallel decoding reads: the masks before its iterations, each as often as the others.

    Attributes:
      config: iterations, counts and order.
      tokens_per_column: of the codec; None where only numbers of tokens are asked for.
    """

    config: DecodeConfig
    tokens_per_column: int | None = None

    def num_visible(self, num_tokens: int) -> tuple[int, ...]:
        """Tokens that each of the T iterations finds visible."""
        counts = reveal_counts(self.config, num_tokens)
        return tuple(itertools.accumulate(counts[:-1], initial=0))

    def sample(self, key: Key, batch_size: int, num_tokens: int) -> Bool[Array, "B N"]:
        """See `MaskDistribution`; the visible tokens are the first of an order of revealing."""
        iteration_key, order_key = jax.random.split(key)
        num_visible = jnp.asarray(self.num_visible(num_tokens), jnp.int32)
        iterations = jax.random.randint(iteration_key, (batch_size,), 0, len(num_visible))
        stages = order_stages(self.config, num_tokens, self.tokens_per_column)
        orders = sample_orders(jax.random.split(order_key, batch_size), num_tokens, stages)
        return jnp.argsort(orders, axis=1) >= num_visible[iterations][:, None]

    def max_visible(self, num_tokens: int) -> int:
        """See `MaskDistribution`."""
        return self.num_visible(num_tokens)[-1]

    def mean_visible(self, num_tokens: int) -> float:
        """See `MaskDistribution`."""
        return statistics.fmean(self.num_visible(num_tokens))


def guidance_scales(
    config: DecodeConfig, counts: tuple[int, ...], *, num_known: int = 0
) -> tuple[float, ...]:
    """Guidance strength 1 + (guidance_scale - 1) * shape of every iteration t = 1 ... T.

    The shape is one of `GUIDANCE_SCHEDULES`, taken at the end of the iteration, as `decode_counts`
    takes the mask. Outside of the interval `guided` the strength is 1, which is none.

    Args:
      config: the strength where the schedule is at its height, which schedule, and the interval.
      counts: tokens revealed per iteration.
      num_known: tokens given from the start.
    """
    shape = GUIDANCE_SCHEDULES[config.guidance_schedule](counts, num_known)
    inside = guided_iterations(config.guided, len(counts))
    return tuple(
        1.0 + (config.guidance_scale - 1.0) * height if guided else 1.0
        for height, guided in zip(shape, inside, strict=True)
    )
