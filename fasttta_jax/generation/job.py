"""A job: a clip for every request, made once, by any number of processes, with kills between.

Each process makes the clips of its own shards on its own devices; they need a file system in
common, and nothing else. Started again, a job goes on where it was; with more rows behind those it
had, it adds their clips. No clip depends on how the work was shared, or on its neighbours.
Dimensions: S audio samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import tqdm

from fasttta_jax.audio.files import Tags
from fasttta_jax.generation import outputs
from fasttta_jax.generation.candidates import Kept, Ranker, check_candidates
from fasttta_jax.generation.job_folder import SKIPPED_FILE, JobFolder, Part, Plan, Share, merge
from fasttta_jax.generation.outputs import Finished, OutputConfig
from fasttta_jax.generation.pipeline import Clip, GenerateConfig, Pipeline
from fasttta_jax.generation.progress import Progress
from fasttta_jax.generation.prompts import SETTINGS, BadRow, Prompts, Wanted
from fasttta_jax.version import __version__

logger = logging.getLogger(__name__)

DEFAULTS = GenerateConfig()
ALONE = Share()

WRITERS = 8
"""Threads that encode and write the clips of a batch."""
NOT_FINITE = "the sound is not finite; the checkpoint or the guidance scale may be at fault"


class Result(NamedTuple):
    """What a process did.

    Attributes:
      made: clips.
      found: clips that were there.
      skipped: rows of its share that made no clip.
      seconds: that it took.
      complete: whether all clips of the job are there, those of other processes too.
    """

    made: int
    found: int
    skipped: int
    seconds: float
    complete: bool

    def __str__(self) -> str:
        parts = [f"{self.made} clips, {self.seconds:.1f} s with compilation"]
        if self.found:
            parts.append(f"{self.found} were there")
        if self.skipped:
            parts.append(f"{self.skipped} could not be made: see {SKIPPED_FILE}")
        if not self.complete:
            parts.append("clips of other processes are missing")
        return "; ".join(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """The clips of some requests.

    Attributes:
      pipeline: makes them.
      requests: what is asked for.
      output: where and how they are written.
      decoding: how they are made; seeds are those of the requests.
      arguments: further arguments of `Pipeline.generate`, for all clips.
      notes: what the manifest says of these, as JSON values.
      ranker: chooses among candidates.
      share: of this process.
      overwrite: whether what was made with other settings, or of other requests, is replaced.

    Raises:
      ValueError: see `check_candidates`.
    """

    pipeline: Pipeline
    prompts: Prompts
    output: OutputConfig
    decoding: GenerateConfig = DEFAULTS
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranker: Ranker | None = None
    share: Share = ALONE
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_candidates(self.prompts.candidates, self.ranker is not None, self.output.name)

    def run(self) -> Result:
        """Makes the clips of this process that are not there.

        Raises:
          ValueError: sounds cannot be made or written as wanted, two would have one name, or no row
            of this process makes a clip.
          StorageError: the folder holds something else.
          OSError: it cannot be written; what is there stays, and the same job goes on from there.
        """
        self._check_settings()
        named = (one for one in self.checked() if isinstance(one, Wanted))
        self.output.name.check_unique(named)
        settings = {**self._settings, **self._settings_of_folder()}
        folder = JobFolder(self.output, len(self.prompts), settings, self.overwrite)
        writing = _Writing(self, folder)
        kept = self._kept(writing.todo())
        folder.begin()
        plan = folder.plan(self.checked(), self.share)
        for fault in plan.faults:
            logger.warning("skipped: %s", fault)
        if plan.skipped > len(plan.faults):
            logger.warning("skipped: %d more rows", plan.skipped - len(plan.faults))
        if plan.found or self.share.num_processes > 1:
            logger.info("%d clips are to be made, %d are there", plan.todo, plan.found)
        try:
            writing.write(kept, plan)
        except OSError:
            logger.warning("what was made so far is whole; the same command goes on from there")
            raise
        finally:
            complete = folder.finish()
            if not complete and self.share.num_processes == 1:
                merge(folder.path)
        made, skipped = writing.progress.clips, plan.skipped + writing.failed
        if skipped and not made + plan.found:
            listed = folder.path / SKIPPED_FILE
            raise ValueError(f"none of {skipped} clips could be made; {listed} says why")
        return Result(made, plan.found, skipped, writing.progress.seconds, complete)

    def _check_settings(self) -> None:
        trained = self.pipeline.trained
        num_columns = trained.config.model.num_tokens // trained.codec.tokens_per_column
        rate, seconds = trained.codec.sample_rate, self.arguments.get("seconds")
        model_samples = num_columns * trained.codec.samples_per_column
        num_samples = model_samples if seconds is None else round(seconds * rate)
        self.output.check_sound(num_samples, rate)
        for name in ("vary", "known"):
            if "seconds" in self.prompts.columns and self.arguments.get(name) is not None:
                raise ValueError(
                    f"{self.prompts.table} has a column seconds, and {name} says how long clips "
                    "are; allowed: one of them"
                )

    def _check(self, wanted: Wanted) -> None:
        """Raises ValueError where a clip can be neither named, ranked nor made."""
        self.output.name.of(wanted)
        if self.ranker is not None:
            self.ranker.check(wanted.prompt)
        if wanted.seconds is not None:
            rate = self.pipeline.trained.codec.sample_rate
            self.output.check_sound(round(wanted.seconds * rate), rate)
        values = self._values(wanted)
        if values["negative"] and values["guidance_scale"] == 1.0:
            raise ValueError(
                f"the negative prompt {values['negative']!r} is for guidance to lead away from, "
                "and guidance is 1, which is none"
            )
        if not values["negative"]:
            self.pipeline.trained.model.check_strength("guidance_scale", values["guidance_scale"])

    @functools.cached_property
    def _common(self) -> dict[str, Any]:
        """What clips have where their rows say nothing of it."""
        decode = self.decoding.decode_config(self.pipeline.trained.config.decode)
        return {
            "negative": self.arguments.get("negative", ""),
            "guidance_scale": decode.guidance_scale,
            "seconds": self.arguments.get("seconds"),
        }

    def _values(self, wanted: Wanted) -> dict[str, Any]:
        """The settings of a clip that a row may have of its own."""
        own = {name: getattr(wanted, name) for name in SETTINGS}
        return self._common | {name: value for name, value in own.items() if value is not None}

    def _column(self, name: str, each: Iterator[tuple[Wanted, int]]) -> Iterator[Any]:
        return (self._values(wanted)[name] for wanted, _ in each)

    def checked(self) -> Iterator[Wanted | BadRow]:
        """All requests; those that can be neither named nor ranked as bad rows."""
        for request in self.prompts:
            if isinstance(request, Wanted):
                try:
                    self._check(request)
                except ValueError as error:
                    yield BadRow(request.index, request.place, str(error))
                    continue
            yield request

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """What the manifest says of how clips are made."""
        decode = self.decoding.decode_config(self.pipeline.trained.config.decode)
        level = dataclasses.asdict(self.output.level)
        return {**dataclasses.asdict(decode), **level, **self.notes}

    @functools.cached_property
    def _origin(self) -> dict[str, Any]:
        """What the manifest says of the checkpoint."""
        trained = self.pipeline.trained
        return {**trained.origin(), "objective": trained.config.objective}

    def _settings_of_folder(self) -> dict[str, Any]:
        """What decides the clips of a folder beside all that: the checkpoint, wherever it lies."""
        return {
            "checkpoint_sha256": self._origin["sha256"],
            "seed": self.prompts.seed,
            "clips_per_prompt": self.prompts.clips_per_prompt,
            "candidates": self.prompts.candidates,
            "rank": {} if self.ranker is None else dict(self.ranker.settings),
        }

    def _kept(self, todo: Iterator[Wanted]) -> Iterator[Kept]:
        """The best candidate of each request, as it is taken; settings are checked at once."""
        number = self.prompts.candidates
        values = dataclasses.asdict(self.decoding)
        del values["seed"]
        # One prompt alone need not pay for a whole batch.
        values["batch_size"] = min(self.decoding.batch_size, len(self.prompts) * number)
        each = ((request, request.seed + take) for request in todo for take in range(number))
        own = sorted(self.prompts.columns)
        prompts, seeds, wanted, *columns = itertools.tee(each, 3 + len(own))
        each_own = dict(zip(own, map(self._column, own, columns), strict=True))
        clips = self.pipeline.generate(
            (request.prompt for request, _ in prompts),
            seeds=(seed for _, seed in seeds),
            **{**values, **self.arguments, **each_own},
            with_not_finite=True,
        )
        made = zip((request for request, _ in wanted), clips, strict=True)
        return self._best(made, max(1, values["batch_size"] // number) * number)

    def _best(self, made: Iterator[tuple[Wanted, Clip]], block: int) -> Iterator[Kept]:
        """The candidates of `block` clips at a time are scored together."""
        number = self.prompts.candidates
        while some := list(itertools.islice(made, block)):
            finite = [clip for _, clip in some if clip.is_finite]
            scores: dict[int, float] = {}
            if self.ranker is not None and finite:
                sounds, prompts = [clip.audio for clip in finite], [clip.prompt for clip in finite]
                found = self.ranker.score(sounds, finite[0].sample_rate, prompts)
                scores = dict(zip(map(id, finite), found, strict=True))
            for start in range(0, len(some), number):
                request, _ = some[start]
                clips = [clip for _, clip in some[start : start + number] if clip.is_finite]
                best = max(clips, key=lambda clip: scores.get(id(clip), 0.0), default=None)
                ranked = {clip.seed: scores[id(clip)] for clip in clips} if scores else {}
                yield Kept(request, best, ranked)

    def finished(self, kept: Kept) -> Finished | None:
        """The files of a request's clip, and its row of the manifest; None where there is none."""
        clip, request = kept.clip, kept.request
        if clip is None:
            return None
        row = {
            "prompt": clip.prompt,
            "seed": clip.seed,
            "seconds": clip.seconds,
            "index": request.index,
            "id": request.id,
        }
        if kept.scores:
            scores = [{"seed": seed, "score": score} for seed, score in kept.scores.items()]
            row |= {"score": kept.scores[clip.seed], "scores": scores}
        if self.prompts.candidates > 1:
            row["candidates"] = self.prompts.candidates
        own = {name: self._values(request)[name] for name in self.prompts.columns}
        settings = {**self._settings, **own}
        row |= {"settings": settings, "checkpoint": self._origin, "request": request.key}
        model = {"model_sha256": self._origin["sha256"], "step": self._origin["step"]}
        tags = Tags(
            clip.prompt,
            json.dumps({"seed": clip.seed, **model, **settings}, ensure_ascii=False),
            f"fasttta_jax {__version__}",
        )
        name = self.output.name.of(request)
        return outputs.finish(clip, name, row, self.output, self.pipeline.trained.codec, tags)


class _Writing:
    """Writes clips in the background, while others are made.

    Attributes:
      progress: of the clips that are whole.
      failed: requests that made no clip.
    """

    def __init__(self, job: Job, folder: JobFolder) -> None:
        self.job, self.folder = job, folder
        self.progress = Progress(0)
        self.failed = 0
        self._plan: Plan | None = None
        self._open: dict[int, tuple[Part, outputs.Shard]] = {}
        self._stack = contextlib.ExitStack()
        self._pool = ThreadPoolExecutor(WRITERS)

    def todo(self) -> Iterator[Wanted]:
        """The requests of unfinished shards, which are opened as they are reached."""
        for part in self.folder.parts(self.job.checked(), self.job.share, self._plan):
            if not part.todo:
                self.folder.save(part)
                continue
            shard = self._stack.enter_context(self.folder.open(part))
            self._open[part.shard.index] = part, shard
            yield from part.todo

    def write(self, kept: Iterator[Kept], plan: Plan) -> None:
        """Writes clips, a batch at a time.

        Raises:
          OSError: one cannot be written.
        """
        self._plan, self.progress = plan, Progress(plan.todo)
        pending: Future[None] | None = None
        bar = tqdm.tqdm(kept, "generating", plan.todo, unit="clip", disable=None)
        with self._stack, self._pool, ThreadPoolExecutor(1) as background:
            taken = iter(bar)
            while block := list(itertools.islice(taken, self.job.decoding.batch_size)):
                if pending is not None:
                    pending.result()
                pending = background.submit(self._write, block)
            if pending is not None:
                pending.result()

    def _write(self, block: Sequence[Kept]) -> None:
        """Writes clips, then the notes of their shards; a shard of one file is noted at its end."""
        files = self.folder.output.store == "files"
        opened = [self._open[one.request.index // self.folder.output.shard_size] for one in block]
        finished = list(self._pool.map(self.job.finished, block))
        # A shard that is one file takes its clips in order.
        each = self._pool.map if files else map
        places = each(_add, [shard for _, shard in opened], finished)
        for kept, (part, _), clip, place in zip(block, opened, finished, places, strict=True):
            request = kept.request
            if clip is None:
                fault = BadRow(request.index, request.place, NOT_FINITE)
                part.skipped[request.index] = {**dataclasses.asdict(fault), "request": request.key}
            else:
                part.rows[request.index] = {**place, **clip.row}
        for part, shard in {one[0].shard.index: one for one in opened}.values():
            complete = part.is_complete
            if complete:
                shard.__exit__(None, None, None)
                del self._open[part.shard.index]
            if complete or files:
                self.folder.save(part)
        made = [kept.clip.seconds for kept in block if kept.clip is not None]
        self.failed += len(block) - len(made)
        self.progress.add(len(made), sum(made))


def _add(shard: outputs.Shard, clip: Finished | None) -> dict[str, Any]:
    return {} if clip is None else shard.add(clip)
