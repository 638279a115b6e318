"""What settings of sampling take on this machine, and the best of them that fits a wait.

`python -m benchmarks.frontier --this_machine` measures them, from prompts to sound, and keeps them
in the user's cache: for a model, by the hash of its parameters, and for what else times depend on.
Which is best is known where a frontier of the model was made; otherwise more iterations are better.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fasttta_jax.config import DecodeConfig
from fasttta_jax.config.values import as_tuples
from fasttta_jax.parallel.compilation_cache import processor_folder
from fasttta_jax.storage.files import write_json
from fasttta_jax.storage.user_cache import user_cache
from fasttta_jax.version import __version__

TIMES, QUALITY = "times", "quality"
UNSAID = ("num_iterations", "max_segments")
"""Fields of DecodeConfig that a setting says first, or that change no sound."""
COMMAND = "python -m benchmarks.frontier --this_machine"


class TimeBudgetError(ValueError):
    """A wait that no measured setting fits, or nothing that was measured."""


@dataclasses.dataclass(frozen=True)
class MeasuredSetting:
    """A way of sampling and what it takes here.

    Attributes:
      decode: in place of the run's.
      sampling_steps: diffusion steps of a teacher; None for a student.
      seconds: that nine of ten batches take at most once compiled, from prompts to sound, by the
        number of clips.
      quality: its figure on the model's frontier, turned so that higher is better; None where it is
        not on one.
    """

    decode: DecodeConfig
    sampling_steps: int | None
    seconds: Mapping[int, float]
    quality: float | None = None

    def seconds_for(self, batch_size: int) -> float | None:
        """For so many clips, or the next more that were measured; None where fewer were."""
        sizes = [size for size in self.seconds if size >= batch_size]
        return self.seconds[min(sizes)] if sizes else None

    def __str__(self) -> str:
        words = [f"{self.decode.num_iterations} iterations"]
        if self.sampling_steps is not None:
            words.append(f"{self.sampling_steps} diffusion steps")
        default = DecodeConfig()
        for field in dataclasses.fields(DecodeConfig):
            value = getattr(self.decode, field.name)
            if field.name not in UNSAID and value != getattr(default, field.name):
                words.append(f"{field.name} {value}")
        return ", ".join(words)


def check_wait(max_seconds: float, others: Mapping[str, object] | None = None) -> None:
    """Raises TimeBudgetError where a wait is none, or goes with what times were not measured for.

    Args:
      max_seconds: the wait.
      others: by name, what chooses iterations, lengths or edits; None and False are nothing.
    """
    if not (max_seconds > 0 and math.isfinite(max_seconds)):
        raise TimeBudgetError(f"max_seconds is {max_seconds}; allowed: above 0")
    for name, value in (others or {}).items():
        if value is not None and value is not False:
            raise TimeBudgetError(
                f"max_seconds and {name} do not go together: max_seconds chooses the iterations, "
                "by times of clips of the model's length that are made as a whole"
            )


def best_within(
    settings: Sequence[MeasuredSetting], max_seconds: float, batch_size: int
) -> MeasuredSetting:
    """The best setting that takes no longer for a batch.

    Args:
      settings: that were measured.
      max_seconds: how long one may wait.
      batch_size: clips.

    Raises:
      TimeBudgetError: nothing was measured for so many clips, or all of it takes longer.
    """
    check_wait(max_seconds)
    timed = [(one, seconds) for one in settings if (seconds := one.seconds_for(batch_size))]
    if not timed:
        sizes = sorted({size for one in settings for size in one.seconds})
        found = f"batches of {', '.join(map(str, sizes))} were" if sizes else "nothing was"
        raise TimeBudgetError(
            f"max_seconds needs what settings take here for a batch of {batch_size}, and {found} "
            f"measured for this model on this machine: `{COMMAND} --workdir=WORKDIR "
            f"--batch_sizes={batch_size}` measures it"
        )
    fastest, least = min(timed, key=lambda pair: pair[1])
    if max_seconds < least:
        raise TimeBudgetError(
            f"max_seconds is {max_seconds:g}; allowed: {least:.3g} or more, which the fastest "
            f"setting takes for a batch of {batch_size}: {fastest}"
        )
    return max((pair for pair in timed if pair[1] <= max_seconds), key=lambda pair: _rank(*pair))[0]


def _rank(setting: MeasuredSetting, seconds: float) -> tuple[float, ...]:
    known = setting.quality is not None
    quality = setting.quality if setting.quality is not None else 0.0
    steps = setting.sampling_steps or 0
    return known, quality, setting.decode.num_iterations, steps, -seconds


@dataclasses.dataclass(frozen=True)
class MeasuredTimes:
    """What was measured of a model on some devices, and where that is kept.

    Attributes:
      model: hash of its parameters.
      mesh: the devices.
    """

    model: str
    mesh: Mesh

    @property
    def machine(self) -> dict[str, Any]:
        """What times depend on beside the model and the settings."""
        return {
            "device": self.mesh.devices.flat[0].device_kind,
            "num_devices": self.mesh.size,
            "processor": processor_folder(),
            "usable_cores": _usable_cores(),
            "jax": jax.__version__,
            "fasttta_jax": __version__,
        }

    @property
    def path(self) -> pathlib.Path:
        """The file of the times."""
        words = json.dumps(self.machine, sort_keys=True)
        digest = hashlib.sha256(words.encode()).hexdigest()
        return user_cache(TIMES) / f"{self.model[:16]}-{digest[:8]}.json"

    def read(self) -> list[MeasuredSetting]:
        """The settings, with their quality where a frontier is known.

        Raises:
          TimeBudgetError: a file of the cache is damaged.
        """
        found, quality = _read(self.path), read_quality(self.model)
        if not found or found["model"] != self.model or found["machine"] != self.machine:
            return []
        return [
            MeasuredSetting(
                decode := _decode(one["decode"]),
                one["sampling_steps"],
                {int(size): seconds for size, seconds in one["seconds"].items()},
                quality.get((decode, one["sampling_steps"])),
            )
            for one in found["settings"]
        ]

    def write(self, settings: Iterable[MeasuredSetting]) -> None:
        """Keeps the settings in place of those that are there.

        Raises:
          OSError: the cache cannot be written.
        """
        rows = [
            {
                "decode": dataclasses.asdict(one.decode),
                "sampling_steps": one.sampling_steps,
                "seconds": {str(size): seconds for size, seconds in one.seconds.items()},
            }
            for one in settings
        ]
        document = {"model": self.model, "machine": self.machine, "settings": rows}
        write_json(self.path, document)


def read_quality(model: str) -> dict[tuple[DecodeConfig, int | None], float]:
    """The figures of a model's frontier by its settings, higher for better; empty without one.

    Args:
      model: hash of its parameters.

    Raises:
      TimeBudgetError: the file is damaged.
    """
    found = _read(_quality_file(model))
    rows = found["settings"] if found and found["model"] == model else []
    return {(_decode(one["decode"]), one["sampling_steps"]): one["quality"] for one in rows}


def write_quality(
    model: str, figure: str, settings: Mapping[tuple[DecodeConfig, int | None], float]
) -> None:
    """Keeps a model's frontier in place of the one that is there.

    Args:
      model: hash of its parameters.
      figure: name of what was judged by.
      settings: figures as `read_quality` gives them.

    Raises:
      OSError: the cache cannot be written.
    """
    rows = [
        {"decode": dataclasses.asdict(decode), "sampling_steps": steps, "quality": quality}
        for (decode, steps), quality in settings.items()
    ]
    write_json(_quality_file(model), {"model": model, "figure": figure, "settings": rows})


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quality_file(model: str) -> pathlib.Path:
    return user_cache(QUALITY) / f"{model[:16]}.json"


def _decode(values: Mapping[str, Any]) -> DecodeConfig:
    return DecodeConfig(**{name: as_tuples(value) for name, value in values.items()})


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for one in found["settings"]:
            _decode(one["decode"])
        return found
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise TimeBudgetError(
            f"{path} cannot be read ({error}); remove it, and measure anew with `{COMMAND}`"
        ) from error
