"""How fast a run trains: clips and seconds of audio a second, data wait, MFU, memory.

Model FLOPs utilisation (MFU) is the share of the devices' peak that the operations of the model
take: counted by formula (`metrics.flops`), without what rematerialisation does again, and with the
frozen teacher's forward pass.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from fasttta_jax.config import ModelConfig, RunConfig
from fasttta_jax.performance import compilations
from fasttta_jax.performance.accelerators import peak_flops
from fasttta_jax.performance.flops import training_step_flops

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Means over the steps of one window.

    Attributes:
      step_seconds: from one step to the next, without evaluations and checkpoints.
      clips_per_second: of the global batch.
      audio_seconds_per_second: their length.
      data_wait: share of the time in which the loop waited for a batch.
      mfu: share of the peak of all devices; None where the peak is not known.
      memory_gib: most memory that a device of this host, or on CPU this process, has held.
      compilations: programs compiled in the window; 0 after the start, unless something is wrong.
    """

    step_seconds: float
    clips_per_second: float
    audio_seconds_per_second: float
    data_wait: float
    mfu: float | None
    memory_gib: float
    compilations: int

    def scalars(self) -> dict[str, float]:
        """For the metrics: what is not known is left out."""
        values = dataclasses.asdict(self).items()
        return {f"throughput/{name}": float(x) for name, x in values if x is not None}

    def __str__(self) -> str:
        parts = [
            f"{self.step_seconds:.3g} s/step",
            f"{self.clips_per_second:.3g} clips/s",
            f"{self.audio_seconds_per_second:.3g} s of audio/s",
            f"data wait {self.data_wait:.1%}",
        ]
        if self.mfu is not None:
            parts.append(f"MFU {self.mfu:.1%}")
        parts.append(f"{self.memory_gib:.3g} GiB")
        if self.compilations:
            parts.append(f"{self.compilations} programs compiled")
        return ", ".join(parts)


def peak_memory() -> float:
    """GiB: the most that any device of this host has held; on CPU, that this process has."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    if peaks:
        return max(peaks) / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class Meter:
    """Measures a run window by window; what happens between `pause` and `resume` does not count.

    Args:
      config: the run.
      clip_seconds: length of a clip.
      devices: those that it trains on; None for all of the job.
      teacher: sizes of its teacher; None for those of the run.
    """

    def __init__(
        self,
        config: RunConfig,
        clip_seconds: float,
        devices: Sequence[Any] | None = None,
        *,
        teacher: ModelConfig | None = None,
    ) -> None:
        devices = jax.devices() if devices is None else devices
        self._batch_size = config.data.batch_size
        self._clip_seconds = clip_seconds
        self._flops = training_step_flops(config, teacher=teacher).total * self._batch_size
        peak = peak_flops(devices[0].device_kind, config.model.dtype)
        self._peak = None if peak is None else peak * len(devices)
        self._steps = 0
        self._seconds = self._waited_before = 0.0
        self._running_since: float | None = None
        self._compiled = compilations.count()

    def resume(self) -> None:
        """Time counts from now on."""
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def pause(self) -> None:
        """Time does not count until `resume`."""
        if self._running_since is not None:
            self._seconds += time.perf_counter() - self._running_since
            self._running_since = None

    def step(self) -> None:
        """One more step is done."""
        self._steps += 1

    def window(self, waited: float) -> Throughput | None:
        """What was measured since the last call; None where no step was.

        Args:
          waited: seconds that the loop has waited for data since the run began.
        """
        running = self._running_since is not None
        self.pause()
        compiled = compilations.count()
        result = None
        if self._steps and self._seconds > 0:
            rate = self._steps / self._seconds
            result = Throughput(
                step_seconds=1 / rate,
                clips_per_second=rate * self._batch_size,
                audio_seconds_per_second=rate * self._batch_size * self._clip_seconds,
                data_wait=min(1.0, (waited - self._waited_before) / self._seconds),
                mfu=None if self._peak is None else rate * self._flops / self._peak,
                memory_gib=peak_memory(),
                compilations=compiled.since(self._compiled).programs,
            )
        self._steps, self._seconds = 0, 0.0
        self._waited_before, self._compiled = waited, compiled
        if running:
            self.resume()
        return result
