"""How long sampling takes: the compiled token sampler alone, warm, without the codec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from fasttta_jax.config import RunConfig
from fasttta_jax.generation.sampler import Sampler
from fasttta_jax.performance.flops import sampling_flops
from fasttta_jax.performance.timing import Timing, time_in_turns
from fasttta_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class SamplingTime:
    """What was measured for one sampler.

    Attributes:
      batch_size: clips computed together.
      clip_seconds: length of a clip.
      timing: of its calls.
    """

    batch_size: int
    clip_seconds: float
    timing: Timing

    @property
    def median(self) -> float:
        """Seconds for a batch."""
        return self.timing.median

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
            "fastest_ms": 1000 * min(self.timing.calls),
            "slowest_ms": 1000 * max(self.timing.calls),
            "num_calls": len(self.timing.calls),
            "first_call_seconds": self.timing.first,
            "clips_per_second": self.clips_per_second,
            "real_time_factor": self.real_time_factor,
        }


def quickest(runs: Mapping[str, RunConfig]) -> str | None:
    """The run whose sampling takes the fewest operations, by its name; the first of equals.

    None where all take the same, so that their times would tell nothing of the method.
    """
    costs = {name: sampling_flops(config).total for name, config in runs.items()}
    if len(set(costs.values())) < 2:
        return None
    return min(costs, key=costs.__getitem__)


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
    cases = {}
    for name, (sampler, params) in samplers.items():
        filled = [prompts[index % len(prompts)] for index in range(sampler.batch_size)]
        inputs = sampler.inputs(filled, range(sampler.batch_size))
        cases[name] = functools.partial(sampler.program, params, *inputs)
    timings = time_in_turns(cases, num_calls)
    return {
        name: SamplingTime(sampler.batch_size, clip_seconds, timings[name])
        for name, (sampler, _) in samplers.items()
    }
