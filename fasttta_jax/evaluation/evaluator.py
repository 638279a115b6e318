"""Evaluates trained runs, and sounds of other projects, on the test split of an audio dataset.

In order: everything is checked, embedders are loaded or trained, real clips are scored before and
after the codec, every run is timed, generates sounds for the captions and predicts unseen tokens,
folders of sounds are scored; then metrics.json and report.html are written.
Dimensions: n clips, S samples.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from fasttta_jax.evaluation import gates, tables
from fasttta_jax.evaluation.clips import Clips, read_reference_clips, read_test_clips
from fasttta_jax.evaluation.embedders import Embedder, FeatureCache
from fasttta_jax.evaluation.frechet import TAGGER_FRECHET
from fasttta_jax.evaluation.judging import Judge, judge_for
from fasttta_jax.evaluation.labels import events_of
from fasttta_jax.evaluation.metric import Metric, NotMeasured, Quantity, check_metrics
from fasttta_jax.evaluation.output import FEATURES_FOLDER, Evaluation, write_results
from fasttta_jax.evaluation.rows import (
    ENERGY_SCORE,
    REAL,
    SAMPLING,
    TIMES_SLOWER,
    RowResult,
    energy_value,
    sampling_quantity,
    sampling_value,
    times_slower_quantity,
)
from fasttta_jax.evaluation.runs import Runs
from fasttta_jax.evaluation.scoring import Scorer
from fasttta_jax.evaluation.setup import (
    EvaluationConfig,
    EvaluationError,
    EvaluationSetup,
    load_setup,
)
from fasttta_jax.evaluation.sound_sets import of_clips
from fasttta_jax.evaluation.sounds import FolderSounds, read_sounds
from fasttta_jax.evaluation.tagger import Tagger, to_float
from fasttta_jax.evaluation.tagger_cache import load_or_train_tagger
from fasttta_jax.evaluation.tagger_metrics import (
    AttributeAccuracy,
    EventAccuracy,
    EventCount,
    RecallAtK,
    event_counts,
)
from fasttta_jax.evaluation.timing import SamplingTime
from fasttta_jax.input_pipeline.records import DatasetError, Records
from fasttta_jax.metrics.energy_score import HeldOutEnergy
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.parallel.local import local_mesh

logger = logging.getLogger(__name__)

METRICS: tuple[Metric, ...] = (EventAccuracy(), AttributeAccuracy(), RecallAtK(), TAGGER_FRECHET)
"""What is computed from sounds, in the order of the columns."""


def evaluate(
    config: EvaluationConfig,
    metrics: Sequence[Metric] = METRICS,
    embedders: Mapping[str, Callable[[], Embedder]] | None = None,
) -> Evaluation:
    """Evaluates the runs and writes metrics.json and report.html.

    Args:
      config: what to evaluate, and with how much.
      metrics: what is computed from sounds.
      embedders: by name, functions that make networks which metrics ask for, beside "tagger".

    Raises:
      EvaluationError: the runs do not fit one another or the codec, or nothing can be measured.
      DatasetError: the data lacks a split or captions, or belongs to another dataset.
      SoundsError: a folder of sounds has no usable table, or no sound for the captions.
      JudgingError: networks judge, and a figure lacks its network or a folder its pairs.
      WorkdirError: a run or its checkpoint is missing.
      FloatingPointError: a run generates values that are not finite.
    """
    return Evaluator(config, load_setup(config, local_mesh()), metrics, embedders).run()


class Evaluator:
    """The stages of an evaluation; what its rows share is made once, when it is first needed.

    Args:
      config: what to evaluate, and with how much.
      setup: the runs and data, loaded.
      metrics: what is computed from sounds.
      embedders: by name, functions that make networks which metrics ask for, beside "tagger".

    Raises:
      TypeError, ValueError: `metrics` are none, or two have the same name.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        setup: EvaluationSetup,
        metrics: Sequence[Metric] = METRICS,
        embedders: Mapping[str, Callable[[], Embedder]] | None = None,
    ) -> None:
        self.config = config
        self.setup = setup
        self.metrics = check_metrics(metrics)
        self._embedders = dict(embedders or {})
        self.seconds: dict[str, float] = {}

    @functools.cached_property
    def runs(self) -> Runs:
        """What computes with the trained runs."""
        return Runs(self.config, self.setup)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def run(self) -> Evaluation:
        """Goes through all stages and writes metrics.json and report.html."""
        with self._stage("all"):
            folders = {name: self._read_folder(name) for name in self.config.generated}
            for name, found in folders.items():
                self.check_pairs(name, found)
            rows = self.references()
            times = self.times() if self.setup.trained else {}
            generated = {name: self.sounds(name) for name in self.setup.trained}
            energies = {name: self.energy(name) for name in self.setup.trained}
            rows += [
                self.run_row(name, clips, energies[name], times)
                for name, clips in generated.items()
            ]
            rows += [self.folder_row(name, found) for name, found in folders.items()]
            warnings = self.setup.warnings() + [
                f"{name}: {line}." for name, found in folders.items() for line in found.warnings()
            ]
            warnings += [f"{line}." for row in rows if row.judged for line in row.judged.warnings]
            evaluation = self._summary(rows, warnings)
            if self.config.judging is not None and self.judge is not None:
                self.judge.write_reference(self.config.judging.write_reference_statistics)
        sounds = {name: dict(enumerate(clips.audio)) for name, clips in generated.items()}
        for name, found in folders.items():
            sounds[name] = dict(zip(found.rows, found.audio, strict=True))
        write_results(evaluation, self.config, self.setup, self.test, sounds, self.seconds)
        return evaluation

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """All figures that a row can have, in the order of the columns."""
        scores = tuple(metric.quantity for metric in self.metrics)
        if self.judge is not None:
            scores += self.judge.quantities
        if not self.setup.trained:
            return scores
        times = [sampling_quantity(self.runs.timing_batch)]
        if (quickest := self.runs.quickest) is not None:
            times.append(times_slower_quantity(quickest))
        return (*scores, ENERGY_SCORE, *times)

    @functools.cached_property
    def test(self) -> Clips:
        """The test clips whose captions are the prompts."""
        config = self.config
        clips = read_test_clips(
            Records(config.audio_data, config.split),
            num_clips=config.num_clips,
            num_scenes=config.num_scenes,
            num_samples=self.setup.num_samples,
        )
        for number, found in sorted(_num_events(clips).items()):
            logger.info("%d test clips whose labels name %d events", found, number)
        return clips

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The metrics, with the embedders that they need."""
        scorer = Scorer(
            self.metrics,
            {"tagger": self._tagger, **self._embedders},
            self.test,
            lambda: read_reference_clips(Records(self.config.audio_data, "train"), self.test),
            self.setup.sample_rate,
            self._cache,
        )
        scorer.prepare()
        return scorer

    @functools.cached_property
    def judge(self) -> Judge | None:
        """What judges by a protocol, where one is asked for; the test clips are the real ones."""
        if self.config.judging is None:
            return None
        return judge_for(
            self.config.judging,
            self._cache,
            of_clips(self.test, self.setup.sample_rate, f"{self.config.audio_data}, test"),
        )

    @property
    def _cache(self) -> FeatureCache:
        return FeatureCache(pathlib.Path(self.config.out) / FEATURES_FOLDER)

    def _tagger(self) -> Tagger:
        try:
            with self._stage("tagger"):
                return load_or_train_tagger(
                    pathlib.Path(self.config.out),
                    self.config.audio_data,
                    num_samples=self.test.num_samples,
                    sample_rate=self.setup.sample_rate,
                    seed=self.config.seed,
                    num_steps=self.config.tagger_steps,
                )
        except DatasetError as error:
            raise NotMeasured(str(error)) from error

    def references(self) -> list[RowResult]:
        """The rows of real clips: as they are and, for runs, after the codec."""
        real = self.test.with_audio(to_float(self.test.audio))
        rows = [self.row(REAL, "reference", real)]
        if self.setup.trained:
            rebuilt = real.with_audio(self.through_codec(real))
            rows.append(self.row("codec", "reference", rebuilt))
        return rows

    def through_codec(self, clips: Clips) -> Float[np.ndarray, "n S"]:
        """The waveforms of clips as the tokens of the runs' codec keep them."""
        codec, size = self.runs.encoded.codec, self.config.batch_size
        rebuilt = np.empty_like(clips.audio)
        with self._stage("codec"), tqdm.tqdm(total=len(clips), desc="codec", unit="clip") as bar:
            for start in range(0, len(clips), size):
                rows = clips.audio[start : start + size]
                padded = np.zeros((size, clips.num_samples), np.float32)
                padded[: len(rows)] = rows
                decoded = np.asarray(codec.decode(codec.encode(jnp.asarray(padded))))
                rebuilt[start : start + size] = decoded[: len(rows)]
                bar.update(len(rows))
        return rebuilt

    def sounds(self, name: str) -> Clips:
        """What a run generates for the captions of the test clips.

        Raises:
          FloatingPointError: a clip is not finite.
        """
        with self._stage(f"generating, {name}"):
            return self.test.with_audio(self.runs.sounds(name, self.test.prompts))

    def energy(self, name: str) -> HeldOutEnergy | None:
        """The energy score of a run on test clips, one iteration, without guidance; None where its
        network makes no tokens given others.
        """
        with self._stage(f"energy score, {name}"):
            return self.runs.energy(name)

    def times(self) -> dict[str, SamplingTime]:
        """Sampling times of all runs, taken in turns."""
        with self._stage("timing"):
            return self.runs.times(self.test.prompts)

    def _read_folder(self, name: str) -> FolderSounds:
        found = read_sounds(
            self.config.generated[name],
            self.test.prompts,
            num_samples=self.test.num_samples,
            sample_rate=self.setup.sample_rate,
        )
        for line in found.warnings():
            logger.warning("%s: %s", name, line)
        return found

    def check_pairs(self, name: str, found: FolderSounds) -> None:
        """Raises JudgingError where a folder lacks the pairs that a figure needs, before runs."""
        if self.judge is not None:
            clips = self.test.take(found.rows)
            self.judge.check(of_clips(clips, self.setup.sample_rate, name, found.rows), name)

    def folder_row(self, name: str, found: FolderSounds) -> RowResult:
        """The row of a folder of sounds."""
        clips = self.test.take(found.rows).with_audio(found.audio)
        row = self.row(name, "sounds", clips, found.rows)
        return dataclasses.replace(row, left_out=found.counts())

    def row(
        self, name: str, kind: str, clips: Clips, rows: Sequence[int] | None = None
    ) -> RowResult:
        """The row of a set of clips, with what the metrics find; `rows` as in `Scorer.score`."""
        scores = self.scorer.score(clips, rows)
        events: tuple[EventCount, ...] = ()
        if any(metric.needs.embedder == "tagger" for metric in self.metrics):
            with contextlib.suppress(NotMeasured):
                events = event_counts(self.scorer.with_features(clips, "tagger"))
        row = RowResult(name, kind, scores.values, scores.not_measured, _num_events(clips), events)
        if self.judge is None or name == REAL:
            return row
        sounds = of_clips(clips, self.setup.sample_rate, name, rows)
        return row.with_judged(self.judge.judge(sounds, name))

    def run_row(
        self,
        name: str,
        clips: Clips,
        energy: HeldOutEnergy | None,
        times: Mapping[str, SamplingTime],
    ) -> RowResult:
        """The row of a run: what the metrics find, its energy score, and its times if measured.

        Args:
          name: of the run.
          clips: its sounds.
          energy: its energy score; None where it has none.
          times: sampling times of all runs; may be empty.
        """
        row = self.row(name, self.setup.trained[name].config.objective, clips)
        values, not_measured = {**row.values}, {**row.not_measured}
        if energy is None:
            not_measured[ENERGY_SCORE.name] = "the network makes no tokens given others"
        else:
            values[ENERGY_SCORE.name] = energy_value(energy)
        if times:
            values[SAMPLING] = sampling_value(times[name])
            if (quickest := self.runs.quickest) is not None:
                values[TIMES_SLOWER] = Measured(times[name].median / times[quickest].median)
        return dataclasses.replace(
            row,
            values=values,
            not_measured=not_measured,
            energy=energy,
            sampling=times.get(name),
        )

    def _summary(self, rows: Sequence[RowResult], warnings: Sequence[str]) -> Evaluation:
        if not any(row.values for row in rows):
            reasons = {line for row in rows for line in row.not_measured.values()}
            raise EvaluationError(f"nothing can be measured: {'; '.join(sorted(reasons))}")
        found = {}
        if self.config.gates is not None:
            figures = {row.name: row.values for row in rows}
            found = gates.check(gates.GATES[self.config.gates], figures, self.quantities)
        table = tables.results_table(rows, self.quantities)
        return Evaluation(tuple(rows), self.quantities, found, table, tuple(warnings))


def _num_events(clips: Clips) -> dict[int, int]:
    return dict(collections.Counter(len(events_of(labels)) for labels in clips.labels))
