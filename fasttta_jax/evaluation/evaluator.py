"""Judges trained runs on the test split of a dataset whose labels name sound events.

The order of things: everything is checked, the tagger is loaded or trained, real clips are judged
before and after the codec, every run is timed, answers the captions and scores unseen tokens; then
metrics.json and report.html are written.
Dimensions: n single-event clips, m two-event clips, S samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
import math
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from fasttta_jax.config import flatten, to_config_dict
from fasttta_jax.evaluation import gates
from fasttta_jax.evaluation import tables as evaluation_report
from fasttta_jax.evaluation.clips import (
    Material,
    read_matched_clips,
    read_test_material,
)
from fasttta_jax.evaluation.scoring import Scorer
from fasttta_jax.evaluation.setup import (
    EvaluationConfig,
    EvaluationSetup,
    load_setup,
)
from fasttta_jax.evaluation.tables import RowResult
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.evaluation.tagger_cache import load_or_train_tagger
from fasttta_jax.evaluation.timing import SamplingTime, time_samplers
from fasttta_jax.generation.sampler import TokenGenerator, generate
from fasttta_jax.input_pipeline.batches import evaluation_batches
from fasttta_jax.input_pipeline.records import Records
from fasttta_jax.metrics.energy_score import HeldOutEnergy, held_out_energy
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.parallel.mesh import BATCH_AXES
from fasttta_jax.report.page import (
    Gate,
    Report,
    Table,
    write_report,
)
from fasttta_jax.storage.files import as_path, write_json
from fasttta_jax.workdir.metrics_log import METRICS_FILE, read_metrics

logger = logging.getLogger(__name__)

TIMING_BATCH = 8
RESULT_FILE = "metrics.json"
REPORT_FILE = "report.html"

Answers = tuple[Float[np.ndarray, "n S"], Float[np.ndarray, "m S"]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
      rows: real clips, codec, then the runs.
      gates: the bounds of each row, where they were asked for.
      table: the main table.
    """

    rows: tuple[RowResult, ...]
    gates: Mapping[str, tuple[Gate, ...]]
    table: Table

    def failures(self) -> list[str]:
        """The gates that failed, each with its row."""
        return [
            f"{row}: {gate.condition}"
            for row, found in self.gates.items()
            for gate in found
            if not gate.passed
        ]


def evaluate(config: EvaluationConfig) -> Evaluation:
    """Judges the runs and writes metrics.json and report.html.

    Raises:
      EvaluationError: the runs do not fit one another or the codec.
      DatasetError: the data lacks a split or labels, or belongs to another dataset.
      WorkdirError: a run or its checkpoint is missing.
      FloatingPointError: a run generates values that are not finite.
    """
    return Evaluator(config, load_setup(config, local_mesh())).run()


class Evaluator:
    """The stages of an evaluation; what its rows share is made once, when it is first needed.

    Args:
      config: what to judge, and with how much.
      setup: the runs and data, loaded.
    """

    def __init__(self, config: EvaluationConfig, setup: EvaluationSetup) -> None:
        self.config = config
        self.setup = setup
        self.seconds: dict[str, float] = {}
        self._generators: dict[tuple[str, int], TokenGenerator] = {}

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def run(self) -> Evaluation:
        """Goes through all stages and writes metrics.json and report.html."""
        with self._stage("all"):
            evaluation, answers = self._judge()
        self._write(evaluation, answers)
        return evaluation

    @functools.cached_property
    def material(self) -> Material:
        """The test clips whose captions are the prompts."""
        config, setup = self.config, self.setup
        material = read_test_material(
            Records(config.audio_data, "test"),
            num_clips=config.num_clips,
            num_scenes=config.num_scenes,
            num_samples=setup.num_samples,
        )
        for words, found, wanted in (
            ("one event", len(material.singles), config.num_clips),
            ("two events", len(material.scenes), config.num_scenes),
        ):
            logger.info("%d test clips with %s, of %d asked for", found, words, wanted)
        return material

    def _judge(self) -> tuple[Evaluation, dict[str, Answers]]:
        config, setup, scorer = self.config, self.setup, self.scorer
        rows = self.references()
        times = self.times()
        answers = {name: self.answers(name) for name in setup.trained}
        energies = {name: self.energy(name) for name in setup.trained}
        student = self._student()
        for name, trained in setup.trained.items():
            rows.append(
                RowResult(
                    name,
                    trained.config.stage,
                    scorer.score(*answers[name]),
                    energies[name],
                    times[name],
                    times[name].median / times[student].median if student else None,
                )
            )
        found = {}
        if config.gates is not None:
            found = gates.judge(config.gates, {row.name: row.figures() for row in rows})
        table = evaluation_report.main_table(rows, found)
        return Evaluation(tuple(rows), found, table), answers

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The tagger, kept in the output folder, and what it is asked."""
        with self._stage("tagger"):
            tagger = load_or_train_tagger(
                pathlib.Path(self.config.out),
                self.config.audio_data,
                num_samples=self.setup.num_samples,
                sample_rate=self.setup.sample_rate,
                seed=self.config.seed,
                num_steps=self.config.tagger_steps,
            )
            train = Records(self.config.audio_data, "train")
            singles = self.material.singles
            reference, rows = read_matched_clips(train, singles, self.setup.num_samples)
            return Scorer(tagger, self.material, reference, rows)

    def references(self) -> list[RowResult]:
        """The rows of real clips, before and after the codec."""
        return [
            RowResult("real", "reference", self.scorer.score(*_as_float(self.material))),
            RowResult("codec", "reference", self.scorer.score(*self._through_codec())),
        ]

    def _through_codec(self) -> Answers:
        codec, size = self.setup.dataset.codec, self.config.batch_size
        audio = np.concatenate(_as_float(self.material))
        rebuilt = np.empty_like(audio)
        with self._stage("codec"), tqdm.tqdm(total=len(audio), desc="codec", unit="clip") as bar:
            for start in range(0, len(audio), size):
                rows = audio[start : start + size]
                padded = np.zeros((size, self.setup.num_samples), np.float32)
                padded[: len(rows)] = rows
                decoded = np.asarray(codec.decode(codec.encode(jnp.asarray(padded))))
                rebuilt[start : start + size] = decoded[: len(rows)]
                bar.update(len(rows))
        num_clips = len(self.material.singles)
        return rebuilt[:num_clips], rebuilt[num_clips:]

    def _generator(self, name: str, batch_size: int) -> TokenGenerator:
        """The sampler of a run and a batch size; one that is compiled already is used again."""
        setup, key = self.setup, (name, batch_size)
        if key not in self._generators:
            self._generators[key] = TokenGenerator(
                setup.trained[name].model, setup.decode[name], setup.mesh, batch_size
            )
        return self._generators[key]

    def answers(self, name: str) -> Answers:
        """What a run makes of the captions; each clip's seed is that of its place.

        Raises:
          FloatingPointError: a clip is not finite.
        """
        material = self.material
        prompts = [*material.singles.prompts, *material.scenes.prompts]
        seeds = np.random.SeedSequence(self.config.seed).generate_state(len(prompts)).tolist()
        generator = self._generator(name, self.config.batch_size)
        clips = generate(self.setup.trained[name], generator, prompts, seeds)
        with self._stage(f"generating, {name}"):
            bar = tqdm.tqdm(clips, f"generating, {name}", len(prompts), unit="clip")
            audio = np.stack(list(bar))
        return audio[: len(material.singles)], audio[len(material.singles) :]

    def energy(self, name: str) -> HeldOutEnergy:
        """The energy score of a run on test clips, one iteration, without guidance."""
        setup, trained = self.setup, self.setup.trained[name]
        number = min(self.config.num_energy_clips, len(setup.dataset.split("test")))
        batches = evaluation_batches(
            setup.dataset,
            trained.model.text,
            "test",
            batch_size=self.config.batch_size,
            num_tokens=setup.num_tokens,
            mesh=setup.mesh,
            max_clips=number,
        )
        total = math.ceil(number / self.config.batch_size)
        with self._stage(f"energy score, {name}"):
            return held_out_energy(
                trained.model,
                trained.params,
                tqdm.tqdm(batches, f"energy score, {name}", total, unit="batch"),
                trained.config.masking,
                seed=self.config.seed,
                mesh=setup.mesh,
            )

    def times(self) -> dict[str, SamplingTime]:
        """Sampling times of all runs, taken in turns."""
        shards = math.prod(self.setup.mesh.shape[axis] for axis in BATCH_AXES)
        batch_size = math.ceil(TIMING_BATCH / shards) * shards
        samplers = {
            name: (self._generator(name, batch_size), trained.params)
            for name, trained in self.setup.trained.items()
        }
        clip_seconds = self.setup.num_samples / self.setup.sample_rate
        with self._stage("timing"):
            return time_samplers(samplers, self.material.singles.prompts, clip_seconds=clip_seconds)

    def _student(self) -> str | None:
        """The run that sampling times are held against, where there is a teacher to compare."""
        stages = {name: trained.config.stage for name, trained in self.setup.trained.items()}
        students = [name for name, stage in stages.items() if stage == "student"]
        if not students or "teacher" not in stages.values():
            return None
        return "student" if "student" in students else students[0]

    def _write(self, evaluation: Evaluation, answers: Mapping[str, Answers]) -> None:
        out = pathlib.Path(self.config.out)
        out.mkdir(parents=True, exist_ok=True)
        settings = {
            "evaluation": dataclasses.asdict(self.config),
            "environment": environment(),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "run": {name: self._about(name) for name in self.setup.trained},
        }
        write_json(
            out / RESULT_FILE,
            {
                "rows": {row.name: row.to_json() for row in evaluation.rows},
                "gates": [
                    {"row": row, **dataclasses.asdict(gate)}
                    for row, found in evaluation.gates.items()
                    for gate in found
                ],
                "settings": settings,
            },
        )
        runs = [row for row in evaluation.rows if row.sampling is not None]
        histories = {
            name: read_metrics(trained.workdir)
            for name, trained in self.setup.trained.items()
            if (as_path(trained.workdir) / METRICS_FILE).is_file()
        }
        report = Report(
            title="Evaluation of " + ", ".join(self.setup.trained),
            introduction=evaluation_report.INTRODUCTION,
            tables=[
                evaluation.table,
                evaluation_report.sampling_table(runs),
                *map(evaluation_report.event_table, runs),
            ],
            curves=evaluation_report.curves(histories),
            prompts=evaluation_report.prompt_rows(self.material, answers, self.setup.sample_rate),
            settings=flatten(settings),
            created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            notes=self.setup.remarks(),
        )
        write_report(out / REPORT_FILE, report)

    def _about(self, name: str) -> dict[str, Any]:
        trained = self.setup.trained[name]
        return {
            **trained.origin(),
            "decode": dataclasses.asdict(self.setup.decode[name]),
            "config": to_config_dict(trained.config).to_dict(),
        }


def _as_float(material: Material) -> Answers:
    return to_float(material.singles.audio), to_float(material.scenes.audio)


def environment() -> dict[str, str]:
    """Versions and machine behind the figures."""
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}",
    }
