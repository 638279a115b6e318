"""How long sampling takes: the compiled token sampler alone, warm, without the codec.

All samplers are compiled and warmed first; then they take turns, so that whatever else the machine
does meanwhile slows all of them alike.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from fasttta_jax.generation.sampler import Sampler
from fasttta_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class SamplingTime:
    """What was measured for one sampler.

    Attributes:
      batch_size: clips computed together.
      clip_seconds: length of a clip.
      first_call: seconds of the first call, tracing and compilation included.
      calls: seconds of each warm call.
    """

    batch_size: int
    clip_seconds: float
    first_call: float
    calls: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds for a batch."""
        return statistics.median(self.calls)

    @property
    def clips_per_second(self) -> float:
        return self.batch_size / self.median

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for each second of audio; below 1 is faster than real time."""
        return self.median / (self.batch_size * self.clip_seconds)

    def to_json(self) -> dict[str, Any]:
        """Times in milliseconds for a batch, except for the first call."""
        return {
            "batch_size": self.batch_size,
            "median_ms": 1000 * self.median,
            "fastest_ms": 1000 * min(self.calls),
            "slowest_ms": 1000 * max(self.calls),
            "num_calls": len(self.calls),
            "first_call_seconds": self.first_call,
            "clips_per_second": self.clips_per_second,
            "real_time_factor": self.real_time_factor,
        }


def time_samplers(
    samplers: Mapping[str, tuple[Sampler, Params]],
    prompts: Sequence[str],
    *,
    clip_seconds: float,
    num_calls: int = 5,
) -> dict[str, SamplingTime]:
    """Times samplers that have not run yet, in turns.

    Args:
      samplers: for each name a sampler of one batch size, and its parameters.
      prompts: captions that fill a batch, repeated if there are fewer.
      clip_seconds: length of a clip.
      num_calls: warm calls of each sampler.

    Raises:
      ValueError: fewer than three calls, whose median would mean little.
    """
    if num_calls < 3:
        raise ValueError(f"num_calls is {num_calls}; allowed: 3 or more")
    inputs = {}
    first_calls = {}
    calls: dict[str, list[float]] = {name: [] for name in samplers}

    def call(name: str) -> float:
        sampler, params = samplers[name]
        start = time.perf_counter()
        jax.block_until_ready(sampler.program(params, *inputs[name]))
        return time.perf_counter() - start

    with tqdm(total=len(samplers) * (num_calls + 2), desc="timing", unit="call") as progress:
        for name, (sampler, _) in samplers.items():
            size = sampler.batch_size
            filled = [prompts[index % len(prompts)] for index in range(size)]
            inputs[name] = sampler.inputs(filled, range(size))
            first_calls[name] = call(name)
            call(name)
            progress.update(2)
        for _ in range(num_calls):
            for name in samplers:
                calls[name].append(call(name))
                progress.update()
    return {
        name: SamplingTime(sampler.batch_size, clip_seconds, first_calls[name], tuple(calls[name]))
        for name, (sampler, _) in samplers.items()
    }
