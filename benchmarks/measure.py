"""What the benchmarks share: configs by name, random parameters, the machine, results as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from fasttta_jax.config import ConfigError, RunConfig, from_config_dict
from fasttta_jax.parallel.compile import CompileReport
from fasttta_jax.performance.timing import Timing
from fasttta_jax.storage.files import write_json
from fasttta_jax.typing import Key

PARAMETER_SCALE = 0.02
CLIP_SECONDS = {32: 2.56, 64: 5.12, 256: 10.24}
"""Length of a clip by its number of tokens, for the datasets that `configs/` are made for."""


def timing_columns(timing: Timing, reports: Sequence[CompileReport]) -> dict[str, Any]:
    """The part of a row that every benchmark has, as it goes into the JSON file."""
    return {
        "compile_seconds": sum(report.seconds for report in reports),
        "median_seconds": timing.median,
        "p10_seconds": timing.low,
        "p90_seconds": timing.high,
        "repeats": len(timing.calls),
        "memory_bytes": max(report.total_bytes for report in reports),
    }


def load_run_config(name: str, dtype: str | None = None) -> RunConfig:
    """The run of "configs/FILE.py" or "configs/FILE.py:argument".

    Args:
      name: as for train.py's --config.
      dtype: replaces the config's `model.dtype`.

    Raises:
      ConfigError: there is no such file, or it has no `get_config`.
    """
    path, _, argument = name.partition(":")
    if not pathlib.Path(path).is_file():
        raise ConfigError(
            f"--config is {name!r}; allowed: a file of configs/, with :argument or not"
        )
    module = runpy.run_path(path)
    if "get_config" not in module:
        raise ConfigError(f"--config is {name!r}, which has no get_config()")
    config = from_config_dict(module["get_config"](*([argument] if argument else [])))
    if dtype is None:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def model_label(name: str) -> str:
    """ "configs/tiny.py:student" as "tiny:student"."""
    path, colon, argument = name.partition(":")
    return pathlib.Path(path).stem + colon + argument


def clip_seconds(num_tokens: int, given: float | None) -> float:
    """Length of a clip: as given, or that of the dataset with so many tokens in a clip.

    Raises:
      ValueError: neither is there.
    """
    if given is not None:
        return given
    if num_tokens not in CLIP_SECONDS:
        raise ValueError(
            f"--seconds is missing; it may be left out for {sorted(CLIP_SECONDS)} tokens a clip, "
            f"and the config has {num_tokens}"
        )
    return CLIP_SECONDS[num_tokens]


def random_params(init: Callable[[Key], Any], seed: int = 0) -> Any:
    """Small normal values in the shapes of `init`: no zeros, infinities or denormal numbers.

    Fresh parameters would not do: heads start with zeros, and a denoiser that predicts zero sends
    the chain far out. Times do not depend on the values as long as they stay ordinary.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(PARAMETER_SCALE * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0)))


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor, devices and versions that a result belongs to."""
    devices = jax.devices()
    usable = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return {
        "processor": _processor(),
        "usable_cores": len(usable),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def peak_device_bytes() -> int | None:
    """Most memory that this process ever held on the first device, where the device counts it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def describe_machine(found: Mapping[str, Any]) -> str:
    """One line for above a table."""
    text = f"{found['processor']}, {found['usable_cores']} usable cores"
    if found["platform"] != "cpu":
        text += f"; {found['num_devices']} x {found['device']}"
    elif found["num_devices"] > 1:
        text += f" as {found['num_devices']} devices"
    return f"{text}; jax {found['jax']}, jaxlib {found['jaxlib']}, Python {found['python']}"


def measure_compilation() -> None:
    """Turns the compilation cache off, so that a compile time is that of compiling."""
    jax.config.update("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """The same for a while; the cache is as it was afterwards."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which asks for the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def positive_integers(flag: str, values: Sequence[str]) -> list[int]:
    """The numbers of a comma-separated flag.

    Raises:
      ValueError: one is not a whole number above 0.
    """
    for value in values:
        if not value.isdecimal() or int(value) == 0:
            raise ValueError(f"--{flag} holds {value!r}; allowed: whole numbers above 0")
    return [int(value) for value in values]


def finish(results: Mapping[str, Any], text: str, out: str | None) -> None:
    """Prints the machine and the tables, and writes both as JSON where a file is named."""
    found, peak = machine(), peak_device_bytes()
    print(describe_machine(found), text, sep="\n\n")
    if peak is not None:
        print(f"\nMost memory held on a device: {peak / 2**20:,.1f} MiB, all cases together")
    if out is not None:
        document = {"machine": found | {"peak_device_bytes": peak}, **results}
        write_json(pathlib.Path(out), document)
