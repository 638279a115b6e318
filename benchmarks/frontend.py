"""How fast clips and captions pass the front end, beside torch on the same machine.

    python -m benchmarks.frontend
    python -m benchmarks.frontend --parts=codec_encode,t5 --batch_sizes=32 --dtype=bfloat16 \\
        --out=frontend.json

Times the log-mel spectrogram, the VAE's two halves, the vocoder, the codec they make together, and
the encoders of text and audio, each as one compiled function with random weights, warm. A clip is
10.24 s at 16 kHz, for CLAP 10 s at 48 kHz, and for the text encoders one caption. Where torch,
diffusers and transformers are installed and JAX runs on a CPU, their implementations of the same
networks run in turns with ours, call by call, on as many threads.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from benchmarks import measure
from benchmarks.frontend_parts import (
    PARTS,
    SIZES,
    TEXT_PARTS,
    Part,
    Sizes,
    check_parts,
    draw_inputs,
)
from fasttta_jax import cli
from fasttta_jax.performance.timing import MIN_REPEATS, Timing, time_in_turns
from fasttta_jax.report.text_table import format_table

TORCH_PACKAGES = ("torch", "diffusers", "transformers")
MOST_REPEATS = 50
"""Of a case that takes no longer than `SHORT_SECONDS` all together."""
SHORT_SECONDS = 1.0
NUM_CLIPS = 50_000
"""Of AudioCaps, which the derived lines speak of."""
WHOLE_PARTS = {"codec_encode": "encode", "codec_decode": "decode"}
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


class Case(NamedTuple):
    """What is timed.

    Attributes:
      part: of `PARTS`.
      batch_size: clips.
      text_length: tokens of a caption, for the text encoders.
    """

    part: str
    batch_size: int
    text_length: int

    @property
    def name(self) -> str:
        length = f" {self.text_length}" if self.part in TEXT_PARTS else ""
        return f"{self.part}{length} x {self.batch_size}"


def build_cases(
    parts: Sequence[str], batch_sizes: Sequence[int], text_lengths: Sequence[int]
) -> list[Case]:
    """Every part at every batch size; text encoders at every length, too.

    Raises:
      ValueError: a part is not known, or something is asked for twice.
    """
    cases = [
        Case(part, batch_size, length)
        for part in check_parts(parts)
        for length in (text_lengths if part in TEXT_PARTS else text_lengths[:1])
        for batch_size in batch_sizes
    ]
    twice = sorted({case.name for case in cases if cases.count(case) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} is asked for more than once; allowed: every case once")
    return cases


def run_case(
    case: Case, sizes: Sizes, *, dtype: str, repeats: int, with_torch: bool
) -> dict[str, Any]:
    """Builds one case, times it in turns with torch's, and lets go of both.

    Args:
      case: what is timed.
      sizes: of the networks.
      dtype: of our matrix products; torch's are in float32.
      repeats: warm calls of each, at least; short ones are repeated more often.
      with_torch: whether torch takes turns with us.

    Returns:
      A row of the results; the columns of torch are there where it ran.

    Raises:
      ValueError: too few repeats, or a caption longer than an encoder allows.
    """
    shape, arrays = draw_inputs(case.part, sizes, case.batch_size, case.text_length)
    part = Part(case.part, sizes, arrays, dtype)
    calls: dict[str, Callable[[], Any]] = {case.name: part}
    torch_name = f"{case.name} in torch"
    if with_torch:
        from benchmarks.frontend_torch import TorchPart

        calls[torch_name] = TorchPart(case.part, sizes, arrays)
    timings = time_in_turns(calls, _enough_repeats(part, repeats))
    ours = timings[case.name]
    row = {
        "part": case.part,
        "input": shape,
        "batch_size": case.batch_size,
        "dtype": dtype,
        **measure.timing_columns(ours, [part.compiled.report]),
        **_per_clip(ours, case.batch_size),
    }
    if with_torch:
        row["torch"] = _per_clip(timings[torch_name], case.batch_size)
        row["faster_than_torch"] = timings[torch_name].median / ours.median
    return row


def _enough_repeats(part: Part, at_least: int) -> int:
    """As many as fit into `SHORT_SECONDS`, up to `MOST_REPEATS`; compiles the part."""
    _ = part.compiled
    start = time.perf_counter()
    jax.block_until_ready(part())
    seconds = time.perf_counter() - start
    return max(at_least, min(MOST_REPEATS, int(SHORT_SECONDS / seconds)))


def _per_clip(timing: Timing, batch_size: int) -> dict[str, float]:
    return {
        "seconds_per_clip": timing.median / batch_size,
        "p10_seconds_per_clip": timing.low / batch_size,
        "p90_seconds_per_clip": timing.high / batch_size,
        "clips_per_second": batch_size / timing.median,
    }


def whole_dataset(rows: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Minutes that the codec would take for as many clips as AudioCaps has, at the measured rates.

    Args:
      rows: as `run_case` gives them.
      seconds: length of a clip.
    """
    found = []
    for row in rows:
        if row["part"] in WHOLE_PARTS:
            entry = {
                "num_clips": NUM_CLIPS,
                "clip_seconds": seconds,
                "part": row["part"],
                "batch_size": row["batch_size"],
                "minutes": NUM_CLIPS / row["clips_per_second"] / 60,
            }
            if "torch" in row:
                entry["torch_minutes"] = NUM_CLIPS / row["torch"]["clips_per_second"] / 60
            found.append(entry)
    return found


def _time_cells(values: Mapping[str, float]) -> list[str]:
    low, high = values["p10_seconds_per_clip"], values["p90_seconds_per_clip"]
    return [
        f"{1e3 * values['seconds_per_clip']:.2f}",
        f"{1e3 * low:.2f}..{1e3 * high:.2f}",
        f"{values['clips_per_second']:.2f}",
    ]


def report(results: Mapping[str, Any]) -> str:
    """The table, what it says about a whole dataset, and the state of the machine."""
    rows, conditions = results["rows"], results["conditions"]
    with_torch = any("torch" in row for row in rows)
    cells = []
    for row in rows:
        line = [row["part"], row["input"], str(row["batch_size"]), f"{row['compile_seconds']:.1f}"]
        line += [*_time_cells(row), f"{row['memory_bytes'] / 2**20:.1f}"]
        if with_torch:
            line += [*_time_cells(row["torch"]), f"{row['faster_than_torch']:.2f}"]
        cells.append(line)
    columns = COLUMNS + (TORCH_COLUMNS if with_torch else ())
    lines = [
        f"{entry['num_clips']:,} clips of {entry['clip_seconds']:g} s, as many as AudioCaps has, "
        f"in batches of {entry['batch_size']}: {WHOLE_PARTS[entry['part']]} in "
        f"{entry['minutes']:,.1f} minutes"
        + (f"; torch in {entry['torch_minutes']:,.1f}" if "torch_minutes" in entry else "")
        for entry in results["whole_dataset"]
    ]
    before, after = (
        " ".join(f"{value:.1f}" for value in conditions[name])
        for name in ("load_before", "load_after")
    )
    versions = ", ".join(" ".join(pair) for pair in conditions["torch_versions"].items())
    lines.append(
        f"{conditions['num_threads']} threads each for XLA" + (f" and {versions}" * bool(versions))
    )
    lines.append(f"Load of the machine over 1, 5, 15 minutes: {before} before, {after} after")
    return "\n\n".join([format_table(columns, cells, num_names=2), "\n".join(lines)])


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


def benchmark(
    cases: Sequence[Case],
    sizes: Sizes,
    *,
    dtype: str,
    repeats: int,
    with_torch: bool,
    num_threads: int,
) -> dict[str, Any]:
    """Times all cases, one after the other.

    Args:
      cases: as `build_cases` gives them.
      sizes: of the networks.
      dtype: of our matrix products.
      repeats: as for `run_case`.
      with_torch: whether torch's implementation takes turns with ours.
      num_threads: of torch; those of XLA are its cores.

    Returns:
      What goes into the JSON file.
    """
    conditions: dict[str, Any] = {"num_threads": num_threads, "torch_versions": {}}
    if with_torch:
        import torch  # pyright: ignore[reportMissingImports]

        from benchmarks.frontend_torch import versions

        torch.set_num_threads(num_threads)
        conditions["torch_versions"] = versions()
    conditions["load_before"] = os.getloadavg()
    rows = [
        run_case(case, sizes, dtype=dtype, repeats=repeats, with_torch=with_torch) for case in cases
    ]
    conditions["load_after"] = os.getloadavg()
    derived = whole_dataset(rows, sizes.num_samples / sizes.mel.sample_rate)
    return {"rows": rows, "whole_dataset": derived, "conditions": conditions}


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_list("parts", list(PARTS), f"What is timed; of {', '.join(PARTS)}.")
    flags.DEFINE_list("batch_sizes", ["1"], "Clips, or captions, in a batch.")
    flags.DEFINE_list(
        "text_lengths",
        ["32", "77"],
        "Tokens of a caption; a usual one, and what captions are padded to.",
    )
    flags.DEFINE_enum(
        "size", "published", list(SIZES), "Published networks, or small ones to try things out."
    )
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


def main() -> None:
    """Runs the benchmark that the flags describe."""
    measure.measure_compilation()
    values = flags.FLAGS
    cases = build_cases(
        values.parts,
        measure.positive_integers("batch_sizes", values.batch_sizes),
        measure.positive_integers("text_lengths", values.text_lengths),
    )
    num_threads = bind_threads(values.threads)
    results = benchmark(
        cases,
        SIZES[values.size],
        dtype=values.dtype,
        repeats=values.repeats,
        with_torch=wants_torch(values.with_torch),
        num_threads=num_threads,
    )
    measure.finish(results, report(results), values.out)


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
