"""Our programs timed in turns with torch's, for the benchmarks of the front end and of evaluation.

Both run on as many threads, call by call, so that noise of the machine hits both alike.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import measure
from fasttta_jax.parallel.compile import Compiled, Program
from fasttta_jax.performance.timing import MIN_REPEATS, Timing, time_in_turns
from fasttta_jax.report.text_table import format_table

TORCH_PACKAGES = ("torch", "diffusers", "transformers")
MOST_REPEATS = 50
"""Of a case that takes no longer than `SHORT_SECONDS` all together."""
SHORT_SECONDS = 1.0
COLUMNS = (
    "part",
    "input",
    "clips",
    "compile s",
    "ms/clip",
    "p10..p90",
    "clips/s",
    "MiB",
)
TORCH_COLUMNS = ("torch ms/clip", "p10..p90", "clips/s", "ours is faster by")


class OurProgram:
    """A function with random parameters on one batch; compiled when it first runs.

    Args:
      init: (key, *inputs) to parameters.
      function: (parameters, *inputs) to what is timed.
      inputs: arrays, the clips on the first axis.
    """

    def __init__(
        self, init: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[np.ndarray]
    ) -> None:
        params = measure.random_params(lambda key: init(key, *inputs))
        self._arguments = params, *jax.device_put(tuple(inputs))
        self._program = Program(jax.jit(function))

    @functools.cached_property
    def compiled(self) -> Compiled[Any]:
        """The program for this batch."""
        return self._program.compile(*self._arguments)

    def __call__(self) -> Any:
        """What the function computes, not waited for."""
        return self.compiled(*self._arguments)


def time_row(
    name: str,
    ours: OurProgram,
    theirs: Callable[[], Any] | None,
    *,
    batch_size: int,
    repeats: int,
) -> dict[str, Any]:
    """Times of one case, ours and torch's in turns.

    Args:
      name: of the case.
      ours: our program.
      theirs: torch's, where it runs.
      batch_size: clips of a call.
      repeats: warm calls of each, at least; short ones are repeated more often.

    Returns:
      The columns of times of a row; those of torch are there where it ran.

    Raises:
      ValueError: too few repeats.
    """
    calls: dict[str, Callable[[], Any]] = {name: ours}
    torch_name = f"{name} in torch"
    if theirs is not None:
        calls[torch_name] = theirs
    timings = time_in_turns(calls, _enough_repeats(ours, repeats))
    row = {
        **measure.timing_columns(timings[name], [ours.compiled.report]),
        **_per_clip(timings[name], batch_size),
    }
    if theirs is not None:
        row["torch"] = _per_clip(timings[torch_name], batch_size)
        row["faster_than_torch"] = timings[torch_name].median / timings[name].median
    return row


def _enough_repeats(ours: OurProgram, at_least: int) -> int:
    """As many as fit into `SHORT_SECONDS`, up to `MOST_REPEATS`; compiles the program."""
    _ = ours.compiled
    start = time.perf_counter()
    jax.block_until_ready(ours())
    seconds = time.perf_counter() - start
    return max(at_least, min(MOST_REPEATS, int(SHORT_SECONDS / seconds)))


def _per_clip(timing: Timing, batch_size: int) -> dict[str, float]:
    return {
        "seconds_per_clip": timing.median / batch_size,
        "p10_seconds_per_clip": timing.low / batch_size,
        "p90_seconds_per_clip": timing.high / batch_size,
        "clips_per_second": batch_size / timing.median,
    }


def _time_cells(values: Mapping[str, float]) -> list[str]:
    low, high = values["p10_seconds_per_clip"], values["p90_seconds_per_clip"]
    return [
        f"{1e3 * values['seconds_per_clip']:.2f}",
        f"{1e3 * low:.2f}..{1e3 * high:.2f}",
        f"{values['clips_per_second']:.2f}",
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with "part", "input", "batch_size" and the columns of `time_row`, as text."""
    with_torch = any("torch" in row for row in rows)
    cells = []
    for row in rows:
        line = [row["part"], row["input"], str(row["batch_size"]), f"{row['compile_seconds']:.1f}"]
        line += [*_time_cells(row), f"{row['memory_bytes'] / 2**20:.1f}"]
        if with_torch:
            line += [*_time_cells(row["torch"]), f"{row['faster_than_torch']:.2f}"]
        cells.append(line)
    return format_table(COLUMNS + (TORCH_COLUMNS if with_torch else ()), cells, num_names=2)


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """Threads, versions and the load of the machine, as text."""
    before, after = (
        " ".join(f"{value:.1f}" for value in conditions[name])
        for name in ("load_before", "load_after")
    )
    versions = ", ".join(" ".join(pair) for pair in conditions["torch_versions"].items())
    return (
        f"{conditions['num_threads']} threads each for XLA"
        + (f" and {versions}" * bool(versions))
        + f"\nLoad of the machine over 1, 5, 15 minutes: {before} before, {after} after"
    )


def run_rows(
    rows: Callable[[], list[dict[str, Any]]], *, with_torch: bool, num_threads: int
) -> dict[str, Any]:
    """Measures rows, and the conditions under which they were measured.

    Args:
      rows: measures them.
      with_torch: whether torch takes part.
      num_threads: of torch; those of XLA are the process's cores.
    """
    conditions: dict[str, Any] = {"num_threads": num_threads, "torch_versions": {}}
    if with_torch:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(num_threads)
        conditions["torch_versions"] = {
            name: importlib.metadata.version(name) for name in TORCH_PACKAGES
        }
    conditions["load_before"] = os.getloadavg()
    measured = rows()
    conditions["load_after"] = os.getloadavg()
    return {"rows": measured, "conditions": conditions}


def minutes_for(row: Mapping[str, Any], num_clips: int) -> dict[str, Any]:
    """Minutes that a row's part would take for so many clips, ours and torch's."""
    found = {
        "num_clips": num_clips,
        "part": row["part"],
        "batch_size": row["batch_size"],
        "minutes": num_clips / row["clips_per_second"] / 60,
    }
    if "torch" in row:
        found["torch_minutes"] = num_clips / row["torch"]["clips_per_second"] / 60
    return found


def describe_minutes(entry: Mapping[str, Any], clips: str, what: str) -> str:
    """A line about what `minutes_for` gave: which clips, and what is done to them."""
    line = f"{entry['num_clips']:,} {clips}, in batches of {entry['batch_size']}: {what} in "
    line += f"{entry['minutes']:,.1f} minutes"
    if "torch_minutes" in entry:
        line += f"; torch in {entry['torch_minutes']:,.1f}"
    return line


def bind_threads(num_threads: int | None) -> int:
    """Gives this process so many cores, before JAX makes its thread pools.

    Args:
      num_threads: cores; None leaves all that it has.

    Returns:
      The number of cores.

    Raises:
      ValueError: there are fewer, or the operating system cannot bind.
    """
    if not hasattr(os, "sched_setaffinity"):
        if num_threads is not None:
            raise ValueError(f"--threads is {num_threads}; allowed here: to leave it out")
        return os.cpu_count() or 1
    usable = sorted(os.sched_getaffinity(0))
    if num_threads is None:
        return len(usable)
    if num_threads > len(usable):
        raise ValueError(f"--threads is {num_threads}; allowed: 1 to {len(usable)}")
    os.sched_setaffinity(0, usable[:num_threads])
    return num_threads


def wants_torch(choice: str) -> bool:
    """Whether torch takes part.

    Args:
      choice: "yes", "no", or "auto": if it is installed and JAX, like it, runs on a CPU.

    Raises:
      ValueError: "yes", but a package is missing.
    """
    missing = [name for name in TORCH_PACKAGES if importlib.util.find_spec(name) is None]
    if choice == "yes" and missing:
        raise ValueError(
            f"--with_torch is 'yes'; it needs {', '.join(missing)}, which is not installed"
        )
    if choice == "auto":
        return not missing and jax.default_backend() == "cpu"
    return choice == "yes"


def define_flags() -> None:
    """Those that both benchmarks have; called once by the program, not at import."""
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Of our matrix products; torch: float32."
    )
    flags.DEFINE_integer("repeats", 5, "Least number of warm calls of a case.", MIN_REPEATS)
    flags.DEFINE_enum(
        "with_torch",
        "auto",
        ["auto", "yes", "no"],
        "Time torch, diffusers and transformers, too, on the CPU; auto: where they are installed "
        "and JAX runs on the CPU.",
    )
    flags.DEFINE_integer(
        "threads",
        None,
        "Cores for XLA, to which the process is bound, and threads of torch; left out: all.",
        1,
    )
    flags.DEFINE_string("out", None, "JSON file for the results.")
