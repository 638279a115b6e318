"""How a run decodes: how many tokens an iteration reveals, which ones, and how they are guided.

Dimensions: N tokens, T iterations.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from fasttta_jax.config.checks import NOT_NEGATIVE, check, check_fields, check_name
from fasttta_jax.config.values import read_numbers
from fasttta_jax.schedules import (
    GUIDANCE_SCHEDULES,
    MASK_SCHEDULES,
    ORDERS,
    guided_iterations,
)

Counts = str | tuple[int, ...]
Order = str | tuple[int | tuple[int, ...], ...]
EVERYWHERE = (0.0, 1.0)


def stages_of(order: tuple[int | tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The positions of every stage of an order that names them."""
    return tuple(stage if isinstance(stage, tuple) else (stage,) for stage in order)


MOST_ITERATIONS = 4096
"""Far beyond any use; grouping them into segments takes their square."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Iterative parallel decoding.

    Attributes:
      num_iterations: T, from 1 to num_tokens.
      counts: how many tokens the iterations reveal, a name in `schedules.MASK_SCHEDULES`: "cosine"
        begins with few (MAR), "exponential" with fewer (eMIGM), "linear" reveals as many in each,
        "bisection" goes with the order of that name; or T numbers whose sum is N. Where tokens are
        known, the others are revealed in the same proportions.
      order: which tokens come first, a name in `schedules.ORDERS`: "random" (MAR), "bisection" of
        the grid of times and bands (GtR), or "forward" in time; or every position once, some of
        them in tuples, whose positions come in random order. Known tokens are left out.
      guidance_scale: strength of classifier-free guidance; 1 is none.
      guidance_schedule: a name in `schedules.GUIDANCE_SCHEDULES`: "linear" rises with the share of
        revealed tokens (MAR); "constant" stays; "cosine_up" and "cosine_down" rise and fall with
        the iterations, by a quarter cosine.
      guided: the interval (lo, hi] of time left, from 1 before the first iteration to 1 / T before
        the last, in which iterations are guided (eMIGM). The others read the text alone, which
        takes half the operations.
      temperature: below 1 narrows the samples: for objective "diffusion" a factor on the noise that
        the chain injects, for "energy" on the head's noise, or where energy.roles is
        "context_stream" on the shifts that the noise makes (EAR).
      max_segments: how many differently padded programs the iterations are grouped into; an
        interval of guidance has up to three whatever this says.
    """

    num_iterations: int = 64
    counts: Counts = "cosine"
    order: Order = "random"
    guidance_scale: float = 5.0
    guidance_schedule: str = "linear"
    guided: tuple[float, float] = EVERYWHERE
    temperature: float = 1.0
    max_segments: int = 4

    def __post_init__(self) -> None:
        check(
            1 <= self.num_iterations <= MOST_ITERATIONS,
            "decode.num_iterations",
            self.num_iterations,
            f"from 1 to the number of tokens, and to {MOST_ITERATIONS}",
        )
        self._check_counts()
        self._check_order()
        check_fields(self, "decode.", NOT_NEGATIVE, "guidance_scale")
        check_name("decode.guidance_schedule", self.guidance_schedule, GUIDANCE_SCHEDULES)
        self._check_guided()
        check_fields(self, "decode.", NOT_NEGATIVE, "temperature")
        check(self.max_segments >= 1, "decode.max_segments", self.max_segments, "1 or more")

    def _check_counts(self) -> None:
        if isinstance(self.counts, str):
            names = ", ".join(map(repr, MASK_SCHEDULES))
            allowed = f"one of {names}, or a number of tokens for each iteration, such as (1, 2, 5)"
            check(self.counts in MASK_SCHEDULES, "decode.counts", self.counts, allowed)
            return
        check(
            isinstance(self.counts, tuple)
            and len(self.counts) == self.num_iterations
            and all(type(count) is int and count >= 1 for count in self.counts),
            "decode.counts",
            self.counts,
            f"{self.num_iterations} whole numbers above 0, one for each of decode.num_iterations",
        )

    def _check_order(self) -> None:
        if isinstance(self.order, str):
            names = ", ".join(map(repr, ORDERS))
            allowed = f"one of {names}, or all positions, such as (3, (0, 2), 1)"
            check(self.order in ORDERS, "decode.order", self.order, allowed)
            return
        stages = stages_of(self.order) if isinstance(self.order, tuple) else ()
        positions = list(itertools.chain(*stages))
        check(
            bool(positions)
            and all(type(position) is int for position in positions)
            and sorted(positions) == list(range(len(positions))),
            "decode.order",
            self.order,
            "a permutation: each position from 0 on once, alone or in a tuple of several",
        )

    def _check_guided(self) -> None:
        number = self.num_iterations
        check(
            isinstance(self.guided, tuple)
            and len(self.guided) == 2
            and all(type(end) in (int, float) and math.isfinite(end) for end in self.guided)
            and 0 <= self.guided[0] < self.guided[1] <= 1
            and any(guided_iterations(self.guided, number)),
            "decode.guided",
            self.guided,
            "(lo, hi) with 0 <= lo < hi <= 1, and the time left before one of the "
            f"{number} iterations, 1/{number} to 1, above lo and at most hi",
        )

    def check_tokens(self, num_tokens: int) -> None:
        """Raises ConfigError where counts or order are those of another number of tokens."""
        if not isinstance(self.counts, str):
            check(
                sum(self.counts) == num_tokens,
                "decode.counts",
                self.counts,
                f"a sum of {num_tokens}, the number of tokens; found {sum(self.counts)}",
            )
        if not isinstance(self.order, str):
            found = sum(map(len, stages_of(self.order)))
            check(
                found == num_tokens,
                "decode.order",
                self.order,
                f"a permutation of {num_tokens} positions, the number of tokens; found {found}",
            )

    def check_jumps(self) -> None:
        """Raises ConfigError where settings are of iterations that reveal tokens, not of jumps that
        move all of them.
        """
        default, why = DecodeConfig(), "where model.network is 'latent', which reveals no tokens"
        for field in ("counts", "order", "guided"):
            value, allowed = getattr(self, field), getattr(default, field)
            check(value == allowed, f"decode.{field}", value, f"{allowed!r} {why}")
        schedule = self.guidance_schedule
        check(schedule == "constant", "decode.guidance_schedule", schedule, f"'constant' {why}")

    def changed(self, **changes: Any) -> DecodeConfig:
        """These settings with others; counts that are numbers say how many iterations there are.

        Args:
          changes: fields; numbers may be text or lists, as `values.read_numbers` reads them.

        Raises:
          ConfigError: a value is not allowed, or does not fit the others.
        """
        changes = {
            name: read_numbers(value) if name in ("counts", "order", "guided") else value
            for name, value in changes.items()
        }
        if isinstance(counts := changes.get("counts"), tuple):
            changes.setdefault("num_iterations", len(counts))
        return dataclasses.replace(self, **changes)

    def at_most(self, num_tokens: int) -> DecodeConfig:
        """These settings for so few tokens that are left to generate.

        Where there are fewer tokens than iterations, every token has an iteration of its own; if
        none of those lies in the interval of guidance, all are guided.
        """
        if self.num_iterations <= num_tokens:
            return self
        inside = any(guided_iterations(self.guided, num_tokens))
        return dataclasses.replace(
            self,
            num_iterations=num_tokens,
            counts=self.counts if isinstance(self.counts, str) else "linear",
            guided=self.guided if inside else EVERYWHERE,
        )
