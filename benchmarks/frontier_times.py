"""How long a sampler takes at a batch size, where that fits: compiled, then called warm.

Rows are timed one after the other, so that each is kept at once; a machine that is busy meanwhile
spoils them. Seconds are for a batch, without the codec.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.measure import compiling_anew
from fasttta_jax.generation.sampler import Sampler
from fasttta_jax.performance.timing import MIN_REPEATS, Timing
from fasttta_jax.typing import Params

Cell = dict[str, Any]
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much is measured.

    Attributes:
      repeats: most warm calls of a cell.
      seconds: after which a cell has enough of them; below three only where one alone takes longer.
      longest_call: seconds; a batch that would take longer is left out.
    """

    repeats: int = 10
    seconds: float = 5.0
    longest_call: float = 20.0


class Rate:
    """The highest rate of operations so far, which tells what will not fit."""

    def __init__(self) -> None:
        self._best = 0.0

    def saw(self, flops: float, seconds: float) -> None:
        """Notes a measurement."""
        self._best = max(self._best, flops / seconds)

    def seconds(self, flops: float) -> float:
        """What so many operations take at least; 0 where nothing is known."""
        return flops / self._best if self._best else 0.0


def warm_calls(call: Callable[[], Any], limits: Limits) -> Timing:
    """Times a call that is compiled already; its first call warms it, and counts if it is long."""

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    first = seconds()
    if first > limits.seconds:
        return Timing(first, (first,))
    number = int(np.clip(limits.seconds / first, MIN_REPEATS, limits.repeats))
    return Timing(first, tuple(seconds() for _ in range(number)))


def time_cell(
    sampler: Sampler,
    params: Params,
    prompts: Sequence[str],
    *,
    limits: Limits,
    flops: float,
    rate: Rate,
    anew: bool,
) -> Cell:
    """One cell of the table, as it goes into the JSON file; it says why where it is left out.

    Args:
      sampler: of one batch size.
      params: of its model.
      prompts: captions that fill a batch, repeated if there are fewer.
      limits: how much is measured.
      flops: operations of a batch.
      rate: of the cells before; learns of this one.
      anew: whether the time of compiling is that without a cache.
    """
    expected = rate.seconds(flops)
    if expected > limits.longest_call:
        return {"left_out": f"about {expected:.0f} s a call"}
    size = sampler.batch_size
    inputs = sampler.inputs([prompts[index % len(prompts)] for index in range(size)], range(size))
    try:
        with compiling_anew() if anew else contextlib.nullcontext():
            compiled = sampler.program.compile(params, *inputs)
        timing = warm_calls(lambda: compiled(params, *inputs), limits)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return {"left_out": "more memory than there is"}
    rate.saw(flops, timing.median)
    return {
        "seconds": timing.median,
        "low": timing.low,
        "high": timing.high,
        "calls": len(timing.calls),
        "compile_seconds": compiled.report.seconds if anew else None,
        "memory_bytes": compiled.report.total_bytes,
    }
