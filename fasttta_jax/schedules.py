"""How decoding changes from one iteration to the next: what stays masked, how strong guidance is.

A schedule is a function with a name in one of two tables, from which a run's config chooses.
Sources: MAR, MaskGIT (Chang et al., 2022, section 3.3), IMPACT. Dimensions: T iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

MaskSchedule = Callable[[int, int], float]
"""The share of tokens still masked after t of T iterations; `masking.decode_counts` rounds it."""
GuidanceSchedule = Callable[[tuple[int, ...], int], list[float]]
"""Heights of guidance, 1 at full strength, at the end of every iteration; of the tokens that each
iteration reveals and the number known from the start."""


def masked_cosine(iteration: int, num_iterations: int) -> float:
    """cos(pi t / 2T): few tokens at first, most at the end. MAR's."""
    return math.cos(math.pi / 2 * iteration / num_iterations)


def masked_linear(iteration: int, num_iterations: int) -> float:
    """1 - t / T: as many tokens in every iteration, up to rounding."""
    return (num_iterations - iteration) / num_iterations


MASK_SCHEDULES: Mapping[str, MaskSchedule] = {
    "cosine": masked_cosine,
    "linear": masked_linear,
}
"""By the names that `decode.mask_schedule` may have."""


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
