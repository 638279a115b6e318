"""Timing of calls in turns.

All cases are called once, which compiles and warms them, before any is timed; then they take turns,
so that whatever else the machine does meanwhile slows all of them alike.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

MIN_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of the calls of one case.

    Attributes:
      first: of the first call, tracing and compilation included.
      calls: of each warm call.
    """

    first: float
    calls: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.calls))

    @property
    def low(self) -> float:
        """The 10th percentile."""
        return float(np.percentile(self.calls, 10))

    @property
    def high(self) -> float:
        """The 90th percentile."""
        return float(np.percentile(self.calls, 90))


def time_in_turns(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Times cases that have not run yet.

    Args:
      cases: by name, a call whose result is waited for.
      repeats: warm calls of each, after the first one.

    Raises:
      ValueError: fewer than three repeats, whose median would mean little.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats is {repeats}; allowed: {MIN_REPEATS} or more")

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    first: dict[str, float] = {}
    calls: dict[str, list[float]] = {name: [] for name in cases}
    with tqdm.tqdm(total=len(cases) * (repeats + 1), unit="call", mininterval=1.0) as progress:
        for name, call in cases.items():
            progress.set_description(f"compiling {name}")
            first[name] = seconds(call)
            progress.update()
        progress.set_description("timing in turns")
        for _ in range(repeats):
            for name, call in cases.items():
                calls[name].append(seconds(call))
                progress.update()
    return {name: Timing(first[name], tuple(calls[name])) for name in cases}
