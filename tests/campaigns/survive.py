"""A thousand blows to training, encoding, embedding, building of datasets and generation.

    python -m tests.campaigns.survive --kills=1000 --seed=0 --out=runs/survive

Each trial takes a job at random (`survive_jobs`) and strikes it a few times (`survive_blows`): kill
-9, SIGTERM, a full disk, a file that is removed. Each time it is started again, and at last it runs
to its end. What it leaves must be what the undisturbed job leaves: bit for bit, and no file more;
within rounding where a run went on with other devices. Each start may end only as its blow allows,
with one clear message.

Trial n depends on nothing but the seed and n, but for what the machine does at the times that it
draws. Results are appended to OUT/results-0.jsonl; the same command goes on behind them. Several
processes share the trials, with --process_id and --num_processes. What fails stays in
OUT/failures/N, with the logs of its last start.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from fasttta_jax.multihost.distributed import code_version
from tests.campaigns import disk
from tests.campaigns.survive_blows import (
    AT_REST,
    Blow,
    End,
    Fault,
    Life,
    Running,
    check_end,
    strike,
)
from tests.campaigns.survive_jobs import ALONE, Job, Layout, Left, all_jobs, files_of
from tests.campaigns.world import World
from tests.support import commands

NUM_BLOWS = (1, 3, 5, 8, 12)
LOSSES = ("remove", "lose a part")
IMPORTED = (
    "data.common.batches",
    "data.common.making",
    "data.common.sources",
    "data.soundscapes.build",
    "fasttta_jax.cli",
    "fasttta_jax.evaluation.ranking",
    "fasttta_jax.generation.job",
    "fasttta_jax.text.networks",
    "fasttta_jax.training.loop",
    "jax.experimental.multihost_utils",
    "librosa",
    "soundfile",
    "tensorboardX",
    "fasttta_jax.storage.content",
    "tests.support.commands",
)


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A job that nothing befell.

    Attributes:
      left: what it left.
      lives: how it went, on each of its layouts.
    """

    left: Left
    lives: Mapping[Layout, Life]


class Campaign:
    """Trials in one folder.

    Args:
      out: where results, failures and the disk are.
      seed: of the trials.
      jobs: that are struck.
      share: which process of how many this is.
      small_disk: whether jobs work on a disk of their own, which can be full.
      world: what jobs read; made in `out` where None.
    """

    def __init__(
        self,
        out: pathlib.Path,
        seed: int,
        jobs: Sequence[Job],
        *,
        share: tuple[int, int] = (0, 1),
        small_disk: bool = True,
        world: World | None = None,
    ) -> None:
        self.out, self.seed, self.jobs, self.share = out.absolute(), seed, jobs, share
        index = share[0]
        self._is_given = world is not None
        self.world = World(self.out / f"world-{index}") if world is None else world
        self.folder = self.out / f"disk-{index}" / "job"
        self._logs = self.out / f"logs-{index}"
        self.results = self.out / f"results-{index}.jsonl"
        self._small_disk = small_disk
        self._undisturbed: dict[str, Undisturbed] = {}

    def run(self, number: int) -> list[dict[str, Any]]:
        """Trials until so many blows have fallen, earlier ones included; returns their results.

        Raises:
          ValueError: the results are of another seed, or were shared otherwise.
        """
        results = self._earlier()
        done = _fallen(results)
        if done >= number:
            return results
        if not self._is_given:
            self._make_world()
        trial = self.share[0] + self.share[1] * len(results)
        disk_folder = self.folder.parent
        if not self._small_disk:
            disk_folder.mkdir(parents=True, exist_ok=True)
            return self._go_on(results, trial, number)
        with disk.mounted(disk_folder) as is_disk:
            print(
                "the disk is a tmpfs" if is_disk else "no tmpfs may be mounted: sizes are limited"
            )
            return self._go_on(results, trial, number)

    def _go_on(
        self, results: list[dict[str, Any]], trial: int, number: int
    ) -> list[dict[str, Any]]:
        with (
            open(self.results, "a") as file,
            tqdm(total=number, initial=_fallen(results), unit="blow", desc="survive") as bar,
        ):
            while (before := _fallen(results)) < number:
                results.append(self.trial(trial))
                file.write(json.dumps(results[-1]) + "\n")
                file.flush()
                bar.update(min(number, _fallen(results)) - before)
                bar.set_postfix(faults=sum(bool(one["fault"]) for one in results))
                trial += self.share[1]
        return results

    def _earlier(self) -> list[dict[str, Any]]:
        self.out.mkdir(parents=True, exist_ok=True)
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        results = [json.loads(line) for line in lines]
        for result in results:
            found, wanted = result["made_by"], self._made_by()
            if found != wanted:
                raise ValueError(
                    f"{self.results} is of {found}, not of {wanted}; choose another --out"
                )
        return results

    def _made_by(self) -> list[Any]:
        return [self.seed, list(self.share)]

    def _make_world(self) -> None:
        made = commands.run("-m", "tests.campaigns.world", self.world.folder, timeout=600)
        if made.returncode:
            raise RuntimeError(made.stderr)

    def _begin(self, job: Job) -> list[list[str]]:
        """An empty folder, prepared; returns the commands."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        job.prepare(self.world, self.folder)
        return [list(map(str, line)) for line in job.commands(self.world, self.folder)]

    def _to_the_end(self, job: Job, lines: Sequence[list[str]], layout: Layout) -> End:
        running = Running(job, lines, self.folder, self._logs, layout)
        try:
            end = running.wait()
        finally:
            running.kill()
        check_end(job, end, None, None)
        return end

    def undisturbed(self, job: Job) -> Undisturbed:
        """What a job leaves where nothing befalls it; it must leave the same twice."""
        if job.name not in self._undisturbed:
            lives, left = {}, None
            layouts = job.layouts or (ALONE,)
            for layout in (layouts[0], *layouts):  # the first compiles
                lines = self._begin(job)
                end = self._to_the_end(job, lines, layout)
                lives[layout] = Life(end.seconds, end.touches)
                found = job.left(self.folder)
                if left is not None and (lines := job.differences(found, left)):
                    raise RuntimeError(f"{job.name} is not the same twice: {lines[:5]}")
                left = found if left is None else left
            assert left is not None
            self._undisturbed[job.name] = Undisturbed(left, lives)
        return self._undisturbed[job.name]

    def trial(self, number: int) -> dict[str, Any]:
        """One job, struck and finished; what happened, as JSON values."""
        rng = random.Random(f"{self.seed}/{number}")
        job = rng.choices(self.jobs, [job.weight for job in self.jobs])[0]
        undisturbed = self.undisturbed(job)
        lines, begun = self._begin(job), time.monotonic()
        blows: list[dict[str, Any]] = []
        fault = None
        try:
            for _ in range(rng.choice(NUM_BLOWS)):
                blow = Blow.draw(job, undisturbed.lives, rng)
                blows.append({**dataclasses.asdict(blow), "fell": False})
                if blow.kind in AT_REST:
                    blows[-1]["fell"] = self._lose(job, lines, blow, blows[-1])
                else:
                    end = strike(job, lines, self.folder, self._logs, blow)
                    blows[-1] |= {"fell": end.fell, "codes": list(end.codes)}
                    if not end.fell:
                        break  # it was done before
            layout = rng.choice(job.layouts or (ALONE,))
            self._to_the_end(job, lines, layout)
            if found := job.differences(job.left(self.folder), undisturbed.left):
                raise Fault("; ".join(found[:8]))
            lost = any(blow["fell"] and blow["kind"] in LOSSES for blow in blows)
            if (self.folder / "run" / "unreadable").exists() and not lost:
                raise Fault("a checkpoint could not be read, though none had lost a file")
        except Fault as error:
            fault = str(error)
            self._keep(number)
        return {
            "trial": number,
            "job": job.name,
            "blows": blows,
            "fault": fault,
            "seconds": round(time.monotonic() - begun, 2),
            "made_by": self._made_by(),
            "code": code_version()["fasttta_jax"],
        }

    def _lose(self, job: Job, lines: Sequence[list[str]], blow: Blow, note: dict[str, Any]) -> bool:
        """Between two starts a part of the result is lost, or an input is away for one of them."""
        rng = random.Random(blow.seed)
        is_input = blow.kind == "lose an input"
        patterns = job.inputs if is_input else job.parts
        if is_input and not any(self.folder.glob(job.begun)):
            return False  # it would begin with other data
        if not is_input and job.complete and any(self.folder.glob(job.complete)):
            return False  # nothing makes it again
        files = files_of(patterns, self.world, self.folder, rng)
        if not files:
            return False
        note["file"] = str(files[0])
        if not is_input:
            files[0].unlink()
            return True
        moved = self.out / f"away-{self.share[0]}"
        shutil.move(files[0], moved)
        try:
            running = Running(job, lines, self.folder, self._logs, blow.layout)
            try:
                end = running.wait()
            finally:
                running.kill()
        finally:
            shutil.move(moved, files[0])
        note["codes"] = list(end.codes)
        check_end(job, end, blow.kind, None)
        names = files[0].name, str(self._source_of(files[0])), str(self.folder)
        if any(end.codes) and not any(name in text for text in end.errors for name in names):
            raise Fault(f"no process names {files[0]}, which is gone")
        return True

    def _source_of(self, file: pathlib.Path) -> pathlib.Path:
        """What a command was given, such as world/teacher, that a file belongs to."""
        root = self.world.folder if self.world.folder in file.parents else self.folder
        return root / file.relative_to(root).parts[0]

    def _keep(self, number: int) -> None:
        """The folder of a trial that failed, and the logs of its last start."""
        kept = self.out / "failures" / str(number)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.folder, kept / "job", symlinks=True, dirs_exist_ok=True)
        shutil.copytree(self._logs, kept / "logs")


def _fallen(results: Sequence[Mapping[str, Any]]) -> int:
    return sum(blow["fell"] for result in results for blow in result["blows"])


def describe(results: Sequence[Mapping[str, Any]]) -> str:
    """Blows that fell, by job and kind, and the faults."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        for blow in result["blows"]:
            counts[result["job"]][blow["kind"]] += blow["fell"]
    kinds = sorted({kind for counter in counts.values() for kind in counter})
    total: collections.Counter[str] = sum(counts.values(), collections.Counter())
    trials = collections.Counter(result["job"] for result in results)
    lines = ["| job | trials | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for name, counter in [*sorted(counts.items()), ("all", total)]:
        number = trials[name] if name in trials else len(results)
        lines.append(f"| {name} | {number} | " + " | ".join(str(counter[k]) for k in kinds) + " |")
    faults = [one for one in results if one["fault"]]
    versions = collections.Counter(one["code"] for one in results)
    lines.append("\ntrials by version: " + ", ".join(f"{k} {n}" for k, n in versions.items()))
    lines.append(f"\n{_fallen(results)} blows in {len(results)} trials; {len(faults)} faults")
    lines += [f"FAULT in trial {one['trial']}, {one['job']}: {one['fault']}" for one in faults]
    return "\n".join(lines)


def serve(out: pathlib.Path) -> None:
    """Sets up what commands find: their imports, compiled programs, and a home of their own."""
    commands.import_first(IMPORTED)
    (out / "home").mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str((out / "home").absolute())
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((out / "compiled").absolute()))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="blows that must fall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/survive"))
    parser.add_argument("--job", action="append", help="name of one that is struck; default: all")
    parser.add_argument("--process_id", type=int, default=0)
    parser.add_argument("--num_processes", type=int, default=1)
    values = parser.parse_args()
    print(f"seed {values.seed}")
    serve(values.out)
    jobs = [job for job in all_jobs() if not values.job or job.name in values.job]
    share = values.process_id, values.num_processes
    number = -(-values.kills // values.num_processes)
    results = Campaign(values.out, values.seed, jobs, share=share).run(number)
    print(describe(results))
    sys.exit(any(result["fault"] for result in results))


if __name__ == "__main__":
    main()
