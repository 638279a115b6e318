"""How decoding changes from one iteration to the next: what stays masked, how strong guidance is.

A schedule is a function with a name in one of the tables, from which a run's config chooses.
Sources: MAR, MaskGIT (Chang et al., 2022, section 3.3), IMPACT, eMIGM (You et al., 2025), GtR (Yan
et al., 2025, generation then reconstruction). Dimensions: N tokens, T iterations, P token columns
in time, G tokens per column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

MaskSchedule = Callable[[int, int], float | Fraction]
"""The share of tokens still masked after t of T iterations; `masking.decode_counts` rounds it."""
Stages = Callable[[int, int], Int[np.ndarray, "P G"]]
"""The stage, from 0, in which each position of P columns of G tokens is revealed."""
GuidanceSchedule = Callable[[tuple[int, ...], int], list[float]]
"""Heights of guidance, 1 at full strength, at the end of every iteration; of the tokens that each
iteration reveals and the number known from the start."""


def masked_cosine(iteration: int, num_iterations: int) -> float:
    """cos(pi t / 2T): few tokens at first, most at the end. MAR's."""
    return math.cos(math.pi / 2 * iteration / num_iterations)


def masked_linear(iteration: int, num_iterations: int) -> float:
    """1 - t / T: as many tokens in every iteration, up to rounding."""
    return (num_iterations - iteration) / num_iterations


def masked_exponential(iteration: int, num_iterations: int) -> float:
    """(1 - exp(-5 t)) / (1 - exp(-5)) of the time left t = 1 - iteration / T. eMIGM's.

    Fewer tokens at first and more at the end than the cosine.
    """
    return math.expm1(-5 * (1 - iteration / num_iterations)) / math.expm1(-5)


def masked_bisection(iteration: int, num_iterations: int) -> float:
    """A quarter of the tokens in 12 of 16 iterations, a quarter in 3, half of them in the last.

    GtR's, for the stages of `bisection_stages`: every iteration belongs to one stage.
    """
    last = max(1, round(num_iterations / 16))
    middle = max(0, min(max(1, round(3 * num_iterations / 16)), num_iterations - last - 1))
    ends = {0: 1.0, num_iterations - last - middle: 0.75, num_iterations - last: 0.5}
    ends[num_iterations] = 0.0
    return float(np.interp(iteration, list(ends), list(ends.values())))


MASK_SCHEDULES: Mapping[str, MaskSchedule] = {
    "cosine": masked_cosine,
    "exponential": masked_exponential,
    "linear": masked_linear,
    "bisection": masked_bisection,
}
"""By the names that `decode.counts` may have."""


def masked_as(counts: Sequence[int]) -> MaskSchedule:
    """The schedule that reveals so many tokens in each iteration, and of others as large a part."""

    def masked(iteration: int, num_iterations: int) -> Fraction:
        del num_iterations
        return Fraction(sum(counts[iteration:]), sum(counts))

    return masked


def bisection_stages(num_columns: int, tokens_per_column: int) -> Int[np.ndarray, "P G"]:
    """Ever finer checkerboards of (column + band): of four, first 0, then 2, then 1 and 3. GtR's.

    The last half of the positions has all its neighbours in time and band revealed.
    """
    diagonals = np.arange(num_columns)[:, None] + np.arange(tokens_per_column)
    return np.asarray([0, 2, 1, 2])[diagonals % 4]


def forward_stages(num_columns: int, tokens_per_column: int) -> Int[np.ndarray, "P G"]:
    """Column after column, as time goes: what unfolds goes on from what is there."""
    return np.tile(np.arange(num_columns)[:, None], (1, tokens_per_column))


ORDERS: Mapping[str, Stages | None] = {
    "random": None,
    "bisection": bisection_stages,
    "forward": forward_stages,
}
"""By the names that `decode.order` may have; None is one stage, of all positions."""


def guided_iterations(interval: tuple[float, float], num_iterations: int) -> tuple[bool, ...]:
    """Whether the time left before each iteration, 1, ..., 2 / T, 1 / T, lies in (lo, hi]."""
    low, high = interval
    return tuple(low < left / num_iterations <= high for left in range(num_iterations, 0, -1))


def guidance_constant(counts: tuple[int, ...], num_known: int) -> list[float]:
    """1 in every iteration."""
    del num_known
    return [1.0] * len(counts)


def guidance_linear(counts: tuple[int, ...], num_known: int) -> list[float]:
    """The share of tokens revealed, known ones included.

    MAR's; as there, the last iteration counts one token as still masked.
    """
    num_tokens = num_known + sum(counts)
    revealed = num_known + np.cumsum(counts)
    return (np.minimum(revealed, num_tokens - 1) / num_tokens).tolist()


def guidance_cosine_down(counts: tuple[int, ...], num_known: int) -> list[float]:
    """cos(pi t / 2T), as IMPACT prints it.

    Beside `masked_cosine` this is the share still masked, the complement of `guidance_linear` up to
    rounding. The last iteration is not guided.
    """
    del num_known
    quarter = math.pi / 2 / len(counts)
    return [math.cos(quarter * end) for end in range(1, len(counts) + 1)]


def guidance_cosine_up(counts: tuple[int, ...], num_known: int) -> list[float]:
    """The mirror image of `guidance_cosine_down`, cos(pi (T - t) / 2T), which ends at 1.

    IMPACT's figure rises.
    """
    del num_known
    quarter = math.pi / 2 / len(counts)
    return [math.cos(quarter * left) for left in reversed(range(len(counts)))]


GUIDANCE_SCHEDULES: Mapping[str, GuidanceSchedule] = {
    "constant": guidance_constant,
    "linear": guidance_linear,
    "cosine_up": guidance_cosine_up,
    "cosine_down": guidance_cosine_down,
}
"""By the names that `decode.guidance_schedule` may have."""
