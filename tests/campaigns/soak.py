"""Batch generation for half an hour in one process: does anything grow?

    python -m tests.campaigns.soak --minutes=30 --out=runs/soak

Jobs as `generate.py` runs them follow each other on one tiny model: new prompts, words that it
never saw among them, in files, tar shards and ArrayRecord, of several formats, batch sizes and
lengths, with guidance, negative prompts and pictures. The first jobs go through all settings once,
and make batches of each length and guidance alone, so that every program is compiled; those behind
them draw theirs. After each job its folder is removed, and memory, open descriptors and threads are
noted in OUT/samples.jsonl. A soak cannot go on where it stopped: what it watches is one process.

The limits. The first part of the time is for compiling and caches, and no less than the jobs of all
settings. After it no descriptor and no thread may be more than there were. Memory is what is
allocated and not freed, by glibc and by Python, after unreachable objects are collected: resident
memory, which is noted for people, also has what allocators keep for later, and wanders by tens of
megabytes. What a process holds depends on the job before, too; so every fifth one is the same job,
and memory is compared behind those alone. Trends are medians of all slopes between two samples
(Theil and Sen), per clip: whatever keeps clips keeps at least the prompt of each, as text, which is
one object of `sys.getsizeof` bytes.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import dataclasses
import gc
import itertools
import json
import os
import pathlib
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from fasttta_jax.audio.files import AudioFormat
from fasttta_jax.generation.job import Job
from fasttta_jax.generation.outputs import OutputConfig, Store
from fasttta_jax.generation.pipeline import GenerateConfig, Pipeline
from fasttta_jax.generation.prompts import Prompts
from tests.support import commands, helpers

WARM_UP = 1 / 4
"""Of the time."""
STORES: tuple[Store, ...] = ("files", "tar", "array_record")
FORMATS: tuple[AudioFormat, ...] = ("wav", "flac", "ogg")
BATCH_SIZES = (1, 3, 8)
SAME_EVERY = 5
"""Jobs, of which one is the same each time."""
SECONDS = ("", "0.3", "0.64", "1.5", "2.7")
GUIDANCE = ("", "1", "2.5")
NEGATIVE = ("", "noise")
WORDS = ("bell", "rain", "far", "near", "rising", "low", "wind", "two", "bright")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Setting(NamedTuple):
    """How a job makes and keeps its clips."""

    store: Store
    format: AudioFormat
    pictures: bool
    clips_per_shard: int | None
    batch_size: int
    guidance_scale: float | None


EVERY_SETTING = tuple(
    Setting(*each)
    for each in itertools.product(
        STORES, FORMATS, (False, True), (None, 8), BATCH_SIZES, (None, 3.0)
    )
    if each[0] == "files" or not each[2]
)


MALLOC_INFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2, over all its arenas."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLOC_INFO)


def allocated_by_glibc() -> int:
    """Bytes that are allocated, in arenas and mapped; 0 without a glibc of 2021 or later."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    function.restype = _MallocInfo
    found = function()
    return found.uordblks + found.hblkhd


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the process holds after a job.

    Attributes:
      same: whether the job is the one that comes again and again.
      seconds: since the first job began.
      clips: made so far.
      allocated: bytes that glibc has given and not got back; of resident memory elsewhere.
      blocks: that Python's own allocator has given and not got back.
      resident: bytes of memory.
      descriptors: open files, sockets and pipes.
      threads: of the operating system.
    """

    same: bool
    seconds: float
    clips: int
    allocated: int
    blocks: int
    resident: int
    descriptors: int
    threads: int

    @classmethod
    def take(cls, same: bool, seconds: float, clips: int) -> Sample:
        gc.collect()
        resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * PAGE
        descriptors = len(os.listdir("/proc/self/fd")) - 1  # that of the listing
        threads = len(os.listdir("/proc/self/task"))
        allocated = allocated_by_glibc() or resident
        blocks = sys.getallocatedblocks()
        return cls(same, seconds, clips, allocated, blocks, resident, descriptors, threads)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a soak has shown.

    Attributes:
      first: sample after the warm-up.
      last: sample.
      growth: allocated bytes a clip, between them.
      allowed: the same, at which something is kept.
      blocks: Python's blocks a clip; one is what a kept clip has at least.
      faults: what grew, in words.
    """

    first: Sample
    last: Sample
    growth: float
    allowed: float
    blocks: float
    faults: tuple[str, ...]


def prompt(rng: random.Random) -> str:
    """Words that the model knows, others, and a number that is new."""
    kind = rng.choice(helpers.KINDS)
    others = " ".join(rng.sample(WORDS, rng.randint(0, 4)))
    return f"a {rng.choice(list(helpers.LEVELS))} {kind} {others} {rng.getrandbits(40):x}"


def write_table(path: pathlib.Path, rng: random.Random, every: int = 0) -> None:
    """Prompts of one job: in one of three jobs with lengths and guidance of their own.

    Args:
      path: to write.
      rng: draws words and, where `every` is 0, rows.
      every: how often each length with each guidance, and each negative prompt, comes in a row.
    """
    own = list(itertools.product(SECONDS, GUIDANCE))
    if every:
        kinds = [(*each, "") for each in own] + [("", "", each) for each in NEGATIVE]
        rows = [kind for kind in kinds for _ in range(every)]
    elif rng.random() < 1 / 3:
        rows = [(*rng.choice(own), "") for _ in range(rng.randint(8, 40))]
    else:
        rows = [("", "", rng.choice(NEGATIVE)) for _ in range(rng.randint(8, 40))]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("prompt", "seconds", "guidance", "negative"))
        table.writerows((prompt(rng), *row) for row in rows)


def job(
    pipeline: Pipeline,
    folder: pathlib.Path,
    rng: random.Random,
    setting: Setting,
    every: int = 0,
) -> Job:
    """One job, of a table in its folder; `every` as of `write_table`."""
    folder.mkdir()
    write_table(folder / "prompts.csv", rng, every)
    output = OutputConfig(
        str(folder / "sounds"),
        setting.store,
        setting.format,
        pictures=setting.pictures,
        clips_per_shard=setting.clips_per_shard,
    )
    decoding = GenerateConfig(
        rng.getrandbits(31), setting.batch_size, guidance_scale=setting.guidance_scale
    )
    prompts = Prompts(table=str(folder / "prompts.csv"), seed=decoding.seed)
    return Job(pipeline, prompts, output, decoding)


def judge(samples: Sequence[Sample], least_kept: float, num_settings: int = 1) -> Verdict:
    """What grew after the warm-up.

    Args:
      samples: of the whole time, in order.
      least_kept: bytes that a clip leaves where clips are kept.
      num_settings: jobs that went through all settings.
    """
    warm = max(WARM_UP * samples[-1].seconds, samples[num_settings - 1].seconds)
    settled = [one for one in samples if one.seconds >= warm]
    first, last = settled[0], settled[-1]
    same = [one for one in settled if one.same]
    growth, blocks = (_slope(same, name) for name in ("allocated", "blocks"))
    faults = []
    if blocks >= 1:
        faults.append(f"Python's objects grow by {blocks:.1f} blocks a clip")
    if growth >= least_kept:
        faults.append(
            f"memory grows by {growth:.0f} bytes a clip; a kept prompt is {least_kept:.0f}"
        )
    for name in ("descriptors", "threads"):
        # The lowest of several samples: a thread that has just ended may still be listed.
        tenth = max(1, len(settled) // 10)
        before = min(getattr(one, name) for one in settled[:tenth])
        after = min(getattr(one, name) for one in settled[-tenth:])
        if after > before:
            faults.append(f"{name} grow from {before} to {after}")
    return Verdict(first, last, growth, least_kept, blocks, tuple(faults))


def _slope(samples: Sequence[Sample], name: str) -> float:
    """The median of all slopes of a figure by clips."""
    few = samples[:: max(1, len(samples) // 500)]
    slopes = [
        (getattr(b, name) - getattr(a, name)) / (b.clips - a.clips)
        for a, b in itertools.combinations(few, 2)
        if b.clips > a.clips
    ]
    return statistics.median(slopes) if slopes else 0.0


def soak(
    model: pathlib.Path,
    out: pathlib.Path,
    *,
    seconds: float,
    seed: int,
    settings: Sequence[Setting] = EVERY_SETTING,
) -> Verdict:
    """Generates for so long, in this process; see the module."""
    out.mkdir(parents=True, exist_ok=True)
    pipeline, rng = Pipeline.open(model), random.Random(seed)
    path, start, clips, number = out / "samples.jsonl", time.monotonic(), 0, 0
    passed = 0.0
    with open(path, "w") as file, tqdm(total=round(seconds), unit="s", desc="soak") as bar:
        while number < len(settings) or passed < seconds:
            shutil.rmtree(out / "job", ignore_errors=True)
            same = number >= len(settings) and number % SAME_EVERY == 0
            if same:
                made = job(pipeline, out / "job", random.Random(seed), settings[0], 1)
            elif number < len(settings):
                setting = settings[number]
                made = job(pipeline, out / "job", rng, setting, setting.batch_size)
            else:
                made = job(pipeline, out / "job", rng, rng.choice(settings))
            result = made.run()
            assert result.complete, result
            clips, number, passed = clips + result.made, number + 1, time.monotonic() - start
            sample = Sample.take(same, passed, clips)
            # Kept in the file alone: a list of them would grow.
            file.write(json.dumps(dataclasses.asdict(sample)) + "\n")
            file.flush()
            bar.update(min(round(seconds), round(passed)) - bar.n)
            bar.set_postfix(clips=clips, allocated=f"{sample.allocated / 2**20:.1f} MiB")
    shutil.rmtree(out / "job")
    samples = [Sample(**json.loads(line)) for line in path.read_text().splitlines()]
    return judge(samples, sys.getsizeof(prompt(rng)), len(settings))


def describe(verdict: Verdict) -> str:
    """First and last figures, and what grew."""
    lines = ["             first      last"]
    names = ("allocated", "resident", "blocks", "descriptors", "threads", "clips")
    for name in names:
        scale, unit = (2**20, " MiB") if name in ("allocated", "resident") else (1, "")
        first, last = (getattr(one, name) / scale for one in (verdict.first, verdict.last))
        lines.append(f"{name:<12} {first:<10.6g} {last:.6g}{unit}")
    lines.append(
        f"allocated: {verdict.growth:+.1f} bytes a clip; allowed: below {verdict.allowed:.0f}; "
        f"objects: {verdict.blocks:+.2f} blocks a clip; allowed: below 1"
    )
    return "\n".join([*lines, *(f"FAULT: {fault}" for fault in verdict.faults)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    values = parser.parse_args()
    print(f"seed {values.seed}")
    made = commands.run("-m", "tests.campaigns.world", values.out / "world", timeout=600)
    if made.returncode:
        sys.exit(made.stderr)
    model = values.out / "world" / "student"
    verdict = soak(model, values.out, seconds=60 * values.minutes, seed=values.seed)
    print(describe(verdict))
    (values.out / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict), indent=2))
    sys.exit(bool(verdict.faults))


if __name__ == "__main__":
    main()
