"""The schedule of decoding, all of it known before tracing: iterations grouped into segments.

Each segment has its own static number of visible tokens for the encoder, of revealed tokens, the
only ones that the last block and the head compute, and of branches of guidance.
Dimensions: N tokens, T iterations.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from fasttta_jax.config import DecodeConfig
from fasttta_jax.masking import guidance_scales, reveal_counts
from fasttta_jax.schedules import guided_iterations


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive iterations that share static sizes.

    Attributes:
      first: number of the first iteration.
      starts: tokens visible before each iteration, known ones included.
      counts: tokens revealed by each iteration.
      guidance_scales: strength of guidance in each iteration.
      branches: passes that each iteration takes: 2 where it is guided, 1 where it is not.
      num_visible: most tokens visible in any of them.
      num_revealed: most tokens revealed by any of them.
    """

    first: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    guidance_scales: tuple[float, ...]
    branches: int

    @property
    def num_visible(self) -> int:
        return self.starts[-1]

    @property
    def num_revealed(self) -> int:
        return max(self.counts)


def plan_segments(config: DecodeConfig, num_tokens: int, num_known: int = 0) -> tuple[Segment, ...]:
    """The whole schedule of decoding: what each iteration reveals, and how they are grouped.

    Args:
      config: iterations, guidance, segments.
      num_tokens: N.
      num_known: tokens that are given from the start.

    Raises:
      ValueError: nothing is left to generate, more iterations are asked for than tokens, or counts
        or order are those of another number of tokens.
    """
    if not 0 <= num_known < num_tokens:
        raise ValueError(
            f"num_known is {num_known}; allowed: 0 to {num_tokens - 1}, one less than the tokens "
            "of a clip, so that something is left to generate"
        )
    num_unknown = num_tokens - num_known
    if num_known and config.num_iterations > num_unknown:
        raise ValueError(
            f"num_iterations is {config.num_iterations}; allowed: 1 to {num_unknown}, the tokens "
            f"left to generate where {num_known} of {num_tokens} are known"
        )
    counts = reveal_counts(config, num_tokens, num_known)
    starts = tuple(itertools.accumulate(counts[:-1], initial=num_known))
    scales = guidance_scales(config, counts, num_known=num_known)
    inside = guided_iterations(config.guided, config.num_iterations)
    branches = [2 if guided and config.guidance_scale != 1.0 else 1 for guided in inside]
    bounds = cheapest_bounds(starts, config.max_segments, branches)
    return tuple(
        Segment(begin, starts[begin:end], counts[begin:end], scales[begin:end], branches[begin])
        for begin, end in itertools.pairwise(bounds)
    )


def cheapest_bounds(
    num_visible: Sequence[int], max_segments: int, branches: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Splits iterations into runs so that the visible tokens, each run padded to its most, are few.

    Exact, by dynamic programming over (iterations covered, runs used), in T^2 * max_segments steps.

    Args:
      num_visible: tokens visible before each of T iterations, rising.
      max_segments: most runs, or as many as `branches` need.
      branches: passes of each iteration, the same within a run; None for one everywhere.

    Returns:
      0, where each further run begins, and T.
    """
    # Example: 4 iterations see 0, 2, 5 and 9 tokens, and two runs are allowed. A run costs its
    # length times what its last iteration sees:
    #   [0 | 2 5 9]  1 * 0 + 3 * 9 = 27
    #   [0 2 | 5 9]  2 * 2 + 2 * 9 = 22  the fewest: bounds 0, 2, 4
    #   [0 2 5 | 9]  3 * 5 + 1 * 9 = 24
    # costs[2, 4] = 22 is the least of costs[1, begin] + (4 - begin) * 9 over where the last run
    # begins; cuts[2, 4] = 2 keeps where, so that the bounds are read backwards from there.
    num_iterations = len(num_visible)
    passes = np.ones(num_iterations, int) if branches is None else np.asarray(branches)
    stretch = np.cumsum(np.diff(passes, prepend=passes[0]) != 0)
    limit = min(max(max_segments, stretch[-1] + 1), num_iterations)
    costs = np.full((limit + 1, num_iterations + 1), np.inf)
    cuts = np.zeros((limit + 1, num_iterations + 1), int)
    costs[0, 0] = 0
    for used in range(1, limit + 1):
        for end in range(1, num_iterations + 1):
            begins = np.arange(end)
            padded = passes[end - 1] * (end - begins) * num_visible[end - 1]
            candidates = costs[used - 1, :end] + padded
            candidates[stretch[:end] != stretch[end - 1]] = np.inf
            cuts[used, end] = int(np.argmin(candidates))
            costs[used, end] = candidates[cuts[used, end]]
    used = int(np.argmin(costs[:, num_iterations]))
    bounds = [num_iterations]
    while bounds[0] > 0:
        bounds.insert(0, int(cuts[used, bounds[0]]))
        used -= 1
    return tuple(bounds)
