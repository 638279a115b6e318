"""Everything that is to be known of an accelerator, in minutes, from one command.

    python -m benchmarks.accelerator --minutes=8 --out=runs/accelerator
    python -m benchmarks.accelerator --minutes=2 --size=tiny --dtype=float32 --out=runs/try

In bfloat16, at the paper's base size, with random weights, on the first device: training steps of
teacher and student; ten samplers of the frontier at three batch sizes; the front end; and where the
time of a sampler and of a training step goes. OUT/parts has a file for each part as soon as it is
measured, and OUT/accelerator.json and accelerator.md are written anew with each. A part that takes
longer than its share of the time that is left is stopped, and the next one starts in a new process.
What stopped half-way is taken up again by the same command: parts that are there are not repeated.
"""

from __future__ import annotations

import json
import logging
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import measure
from benchmarks.accelerator_parts import SIZES, Part, parts
from benchmarks.accelerator_table import to_markdown
from benchmarks.rows import choose
from fasttta_jax import cli
from fasttta_jax.storage.files import write_atomically, write_json

logger = logging.getLogger("fasttta_jax.accelerator")

PARTS_FOLDER = "parts"
RESULT_FILE = "accelerator.json"
TABLE_FILE = "accelerator.md"
CALL_SECONDS = 3.0
"""Of a part's warm calls."""
MOST_SHARES = 4
"""How many times its even share of the time left a part may take."""
POLL_SECONDS = 0.1


def part_path(out: pathlib.Path, part: Part) -> pathlib.Path:
    """The file of a part's row."""
    return out / PARTS_FOLDER / (re.sub(r"[^\w]+", "_", part.name) + ".json")


def measure_parts(wanted: Sequence[Part], out: pathlib.Path) -> None:
    """Measures parts one after the other; each row is on the disk before the next part starts.

    What fails, for memory or otherwise, is a row that says so.
    """
    for part in wanted:
        logger.info("%s", part.name)
        try:
            row = part.measure(CALL_SECONDS)
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        head = {"name": part.name, "kind": part.kind, "machine": measure.machine()}
        write_json(part_path(out, part), {**head, **row})


def supervise(
    wanted: Sequence[Part], out: pathlib.Path, command: Sequence[str], seconds: float
) -> None:
    """Has parts measured by processes that are stopped when a part takes too long.

    A part may take `MOST_SHARES` times its even share of what is left, so that what others leave
    over goes to it. When the time is over, the parts that are missing say so.

    Args:
      wanted: parts without a row.
      out: folder of the rows.
      command: measures those that have none.
      seconds: for all.
    """
    end = time.monotonic() + seconds
    while missing := [part for part in wanted if not part_path(out, part).exists()]:
        left = end - time.monotonic()
        if left <= 0:
            for part in missing:
                _write_stopped(out, part, f"no time was left of {seconds / 60:g} minutes")
            return
        process = subprocess.Popen(command)
        try:
            _watch(process, missing, out, end)
        finally:
            process.kill()
            process.wait()


def _watch(
    process: subprocess.Popen[bytes], missing: Sequence[Part], out: pathlib.Path, end: float
) -> None:
    """Waits until all parts are there, or one has had its time or ended the process; says so."""
    for index, part in enumerate(missing):
        start = time.monotonic()
        limit = min(1.0, MOST_SHARES / (len(missing) - index)) * (end - start)
        while not part_path(out, part).exists():
            reason = ""
            if process.poll() is not None and not part_path(out, part).exists():
                reason = f"its process ended with exit code {process.returncode}"
            elif time.monotonic() - start >= limit:
                reason = f"stopped after {limit:.0f} s"
            if reason:
                logger.warning("%s: %s", part.name, reason)
                _write_stopped(out, part, reason)
                return
            time.sleep(POLL_SECONDS)


def _write_stopped(out: pathlib.Path, part: Part, reason: str) -> None:
    write_json(part_path(out, part), {"name": part.name, "kind": part.kind, "failed": reason})


def collect(wanted: Sequence[Part], out: pathlib.Path) -> dict[str, Any]:
    """The rows that are there, in their order, with the machine that they were measured on."""
    paths = [part_path(out, part) for part in wanted]
    rows = [json.loads(path.read_text()) for path in paths if path.exists()]
    machines = [row.pop("machine") for row in rows if "machine" in row]
    return {"machine": machines[0] if machines else None, "rows": rows}


def write_results(results: Mapping[str, Any], out: pathlib.Path) -> str:
    """Writes JSON and tables; returns the tables."""
    text = to_markdown(results)
    write_json(out / RESULT_FILE, dict(results))
    write_atomically(out / TABLE_FILE, text.encode())
    return text


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    flags.DEFINE_float("minutes", 8.0, "For all parts together.", 0.01)
    flags.DEFINE_enum("size", "base", list(SIZES), "The paper's models, or tiny ones.")
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the matrix products.")
    flags.DEFINE_string("only", "", "Regular expression: only parts whose name it finds.")
    flags.DEFINE_string("out", "runs/accelerator", "Folder for rows, JSON and tables.")
    flags.DEFINE_bool("worker", False, "Measure in this process, without a limit of time.")


def main() -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    wanted = choose(parts(SIZES[values.size], values.dtype), values.only)
    (out / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
    missing = [part for part in wanted if not part_path(out, part).exists()]
    if values.worker:
        measure.measure_compilation()
        for part in missing:
            measure_parts([part], out)
            write_results(collect(wanted, out), out)
        return
    names = ("size", "dtype", "only", "out")
    arguments = [f"--{name}={getattr(values, name)}" for name in names]
    command = [sys.executable, "-m", "benchmarks.accelerator", "--worker", *arguments]
    supervise(missing, out, command, 60 * values.minutes)
    print(write_results(collect(wanted, out), out))
    print(f"{out / RESULT_FILE} has all figures, {out / TABLE_FILE} these tables.")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
