"""Thousands of rubbish inputs, each of which ends with the right result or one clear error.

    python -m tests.campaigns.fuzz --count=10000 --seed=0 --out=runs/fuzz

Input i is of family i modulo their weights and depends on nothing but --seed and i. Results are
noted one by one: started again, the same command goes on where it stopped, and an input at which
the process died is counted as a failure. Failures are made small and kept below --out, one folder
for each kind of fault, with what repeats them:

    python -m tests.campaigns.fuzz --out=runs/fuzz --repeat=runs/fuzz/failures/tables-17/input.json

The exit code is 1 where there are failures.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from tqdm import tqdm

from fasttta_jax.storage.whole import whole_folder
from tests.campaigns.draws import Draw, shrink
from tests.campaigns.families import FAMILIES, Family
from tests.campaigns.fuzz_world import World, make_world
from tests.campaigns.trying import (
    FAILED,
    REFUSED,
    RIGHT,
    SKIPPED,
    Outcome,
    outcome_of,
    unchanged,
)

KINDS = (RIGHT, SKIPPED, REFUSED, FAILED)
MEMORY_FOLDER = "/dev/shm"
LARGEST_KEPT = 1 << 20
"""Bytes of the files of a failed input that are kept."""
SLOW = 5.0
"""Seconds of an input from which on it is kept as it is: making it small takes a hundred tries."""
MOST_OF_A_FAULT = 1
"""Failures of one kind of fault that are made small; more are only counted."""


class Tried(NamedTuple):
    """An input and what came of it."""

    number: int
    family: str
    outcome: Outcome
    answers: list[int]


def family_of(number: int) -> Family:
    """The family of an input: each has as many of a hundred as its weight says."""
    slots = [family for family in FAMILIES for _ in range(family.weight)]
    return slots[number * 37 % len(slots)]


def try_input(family: Family, world: World, draw: Draw, scratch: pathlib.Path) -> Outcome:
    """One attempt in a folder of its own, which is removed."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))

    def attempt() -> Any:
        with unchanged(world.path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return family.attempt(world, draw, folder)

    try:
        return outcome_of(attempt)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def campaign(
    world: World, seed: int, numbers: Sequence[int], scratch: pathlib.Path
) -> Iterator[Tried]:
    """Tries inputs by number, each when it is asked for."""
    for number in numbers:
        family = family_of(number)
        draw = Draw(f"{seed}/{number}")
        outcome = try_input(family, world, draw, scratch)
        yield Tried(number, family.name, outcome, draw.answers)


class Log:
    """The notes of a campaign in its folder."""

    def __init__(self, out: pathlib.Path, seed: int) -> None:
        self.out = out
        self._file = out / f"results-{seed}.jsonl"
        self._current = out / f"current-{seed}"
        self.rows: list[dict[str, Any]] = []
        if self._file.is_file():
            self.rows = [json.loads(line) for line in self._file.read_text().splitlines()]
        if self._current.is_file():
            number = int(self._current.read_text())
            if all(row["number"] != number for row in self.rows):
                died = Outcome(FAILED, "the process died", "", 0.0)  # type: ignore[arg-type]
                self.add(Tried(number, family_of(number).name, died, []))

    def begin(self, number: int) -> None:
        """Notes which input is under way."""
        self._current.write_text(str(number))

    def add(self, tried: Tried) -> None:
        """Notes what came of an input."""
        row = {"number": tried.number, "family": tried.family, "kind": tried.outcome.kind}
        row |= {"fault": tried.outcome.fault, "seconds": round(tried.outcome.seconds, 4)}
        self.rows.append(row)
        with open(self._file, "a") as file:
            file.write(json.dumps(row) + "\n")

    def of_fault(self, fault: str) -> int:
        """How often a fault was seen."""
        return sum(row["fault"] == fault for row in self.rows)

    def table(self) -> str:
        """Counts by family and outcome, as Markdown."""
        counts: dict[str, collections.Counter[str]] = {}
        for row in self.rows:
            counts.setdefault(row["family"], collections.Counter())[row["kind"]] += 1
        total = sum(counts.values(), collections.Counter())
        lines = [f"| family | inputs | {' | '.join(KINDS)} |", "|---|" + "---:|" * (len(KINDS) + 1)]
        for name, found in [*sorted(counts.items()), ("all", total)]:
            cells = [f"{found[kind]:,}" for kind in KINDS]
            lines.append(f"| {name} | {found.total():,} | {' | '.join(cells)} |")
        return "\n".join(lines)


def keep(tried: Tried, world: World, scratch: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Makes a failed input small and keeps it; returns its folder."""
    family = next(family for family in FAMILIES if family.name == tried.family)

    def outcome(answers: Sequence[int]) -> Outcome:
        return try_input(family, world, Draw(given=answers), scratch)

    def still_fails(answers: list[int]) -> bool:
        return outcome(answers).fault == tried.outcome.fault

    answers = tried.answers
    if tried.outcome.seconds < SLOW and still_fails(answers):
        answers = shrink(answers, still_fails)
    target = out / "failures" / f"{tried.family}-{tried.number}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "input.json").write_text(json.dumps({"family": family.name, "answers": answers}))
    (target / "fault.txt").write_text(f"{tried.outcome.fault}\n\n{outcome(answers).detail}\n")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = pathlib.Path(folder)
        outcome_of(lambda: family.attempt(world, Draw(given=answers), found))
        _copy_changed(found, world.path, target / "files")
    return target


def _copy_changed(found: pathlib.Path, world: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the files of an input that are not links to the world's."""
    known = {path.stat().st_ino for path in world.rglob("*") if path.is_file()}
    for path in found.rglob("*"):
        status = path.lstat()
        if path.is_file() and status.st_ino not in known and status.st_size <= LARGEST_KEPT:
            copy = target / path.relative_to(found)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def repeat(path: pathlib.Path, world: World, scratch: pathlib.Path) -> Outcome:
    """Tries a kept input once more."""
    found = json.loads(path.read_text())
    family = next(family for family in FAMILIES if family.name == found["family"])
    return try_input(family, world, Draw(given=found["answers"]), scratch)


def run(out: pathlib.Path, count: int, seed: int, only: str | None = None) -> Log:
    """Tries the inputs that are missing in a campaign's folder."""
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out, seed)
    done = {row["number"] for row in log.rows}
    numbers = [number for number in range(count) if number not in done]
    if only is not None:
        numbers = [number for number in numbers if family_of(number).name == only]
    with _scratch() as folder:
        scratch = pathlib.Path(folder)
        world = _open_world(out / "world", scratch / "world")
        print(f"seed {seed}: {len(done)} of {count} inputs are done", flush=True)
        inputs = scratch / "inputs"
        inputs.mkdir()
        bar = tqdm(numbers, "inputs", unit="input", mininterval=2.0, smoothing=0.02)
        for number in bar:
            log.begin(number)
            (tried,) = campaign(world, seed, [number], inputs)
            log.add(tried)
            fault = tried.outcome.fault
            if tried.outcome.kind == FAILED and log.of_fault(fault) <= MOST_OF_A_FAULT:
                bar.write(f"input {number}: {fault}; kept in {keep(tried, world, inputs, out)}")
    return log


def _open_world(kept: pathlib.Path, target: pathlib.Path) -> World:
    """The world of a campaign, made once, in a folder where links to its files can be made."""
    if not kept.exists():
        make_world(target)
        with whole_folder(kept) as folder:
            shutil.copytree(target, folder, dirs_exist_ok=True)
    else:
        shutil.copytree(kept, target)
    return make_world(target)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    where = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="fuzz", dir=where, ignore_cleanup_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="inputs")
    parser.add_argument("--seed", type=int, default=0, help="of all of them")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/fuzz"))
    parser.add_argument(
        "--family", choices=[family.name for family in FAMILIES], help="this one alone"
    )
    parser.add_argument("--repeat", type=pathlib.Path, help="input.json of a failure")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    jax.config.update("jax_disable_most_optimizations", True)
    if asked.repeat is not None:
        with _scratch() as folder:
            world = _open_world(asked.out / "world", pathlib.Path(folder) / "world")
            outcome = repeat(asked.repeat, world, pathlib.Path(folder))
        print(outcome.kind, outcome.fault, outcome.detail, sep="\n")
        sys.exit(outcome.kind == FAILED)
    log = run(asked.out, asked.count, asked.seed, asked.family)
    print(log.table())
    faults = collections.Counter(row["fault"] for row in log.rows if row["kind"] == FAILED)
    for fault, number in faults.most_common():
        print(f"{number:6d}  {fault}")
    print(f"{sum(row['seconds'] for row in log.rows):.0f} s of inputs, seed {asked.seed}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
