"""Judges folders of sounds without runs, labels or a tagger, and writes metrics.json and a report.

The reference is a folder, the test clips of a data set, or what an earlier evaluation wrote of it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping

from fasttta_jax.evaluation import tables
from fasttta_jax.evaluation.embedders import Embedder, FeatureCache
from fasttta_jax.evaluation.judging import JudgingConfig, JudgingError, judge_for
from fasttta_jax.evaluation.metric import Metric
from fasttta_jax.evaluation.output import FEATURES_FOLDER, Evaluation, write_judged
from fasttta_jax.evaluation.rows import RowResult
from fasttta_jax.evaluation.sound_sets import open_folder, open_split


@dataclasses.dataclass(frozen=True)
class FoldersConfig:
    """Folders of sounds that are judged without runs, labels or a tagger.

    Attributes:
      generated: folder, or table, of sounds by the name of its row; see `sound_sets.open_folder`.
      out: folder for the results.
      judging: networks, protocol and reference.
      audio_data: data set whose test clips are the reference where no folder is.
      process_id: of the process, where several share the work; below `num_processes`.
      num_processes: those that compute features, each a share; 1 computes all of them and judges.
    """

    generated: Mapping[str, str]
    out: str
    judging: JudgingConfig
    audio_data: str | None = None
    process_id: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        judging = self.judging
        if not 0 <= self.process_id < self.num_processes:
            raise JudgingError(
                f"process_id is {self.process_id}; allowed: 0 to {self.num_processes - 1}, below "
                "num_processes"
            )
        if not self.generated and not judging.write_reference_statistics:
            raise JudgingError("there is nothing to judge: give --generated=NAME=FOLDER")
        if not (judging.reference or judging.reference_statistics or self.audio_data):
            raise JudgingError(
                "there is nothing to compare with: give --reference=FOLDER, "
                "--reference_statistics=FILE or --audio_data=FOLDER"
            )


def judge_folders(
    config: FoldersConfig,
    *,
    metrics: Mapping[str, Metric] | None = None,
    networks: Mapping[str, Embedder] | None = None,
) -> Evaluation | None:
    """Judges the folders and writes metrics.json and report.html.

    One of several processes only computes its share of the features, and returns None. Once all of
    them have, an evaluation by one process finds everything computed.

    Args:
      config: what to judge, and by what.
      metrics: all there are, by name; None for those of the package.
      networks: None for those of `config`.

    Raises:
      JudgingError: a metric lacks pairs, is not of the protocol, or nothing can be measured.
      SoundsError: a folder, its table or the reference cannot be used.
      DatasetError: the data set has no test split with captions.
      ConvertedError: a folder does not hold the network that it is given for.
    """
    start = time.perf_counter()
    sets = {name: open_folder(folder) for name, folder in config.generated.items()}
    named = config.judging.reference or config.judging.reference_statistics
    split = open_split(config.audio_data) if config.audio_data and not named else None
    cache = FeatureCache(pathlib.Path(config.out) / FEATURES_FOLDER)
    judge = judge_for(config.judging, cache, split, metrics=metrics, networks=networks)
    for name, sounds in sets.items():
        judge.check(sounds, name)
    if config.num_processes > 1:
        judge.hear_share(sets, config.process_id, config.num_processes)
        return None
    judge.write_reference(config.judging.write_reference_statistics)
    rows = []
    for name, sounds in sets.items():
        judged = judge.judge(sounds, name)
        rows.append(RowResult(name, "sounds", {}, num_events={0: judged.about["clips"]}))
        rows[-1] = rows[-1].with_judged(judged)
    if sets and not any(row.values for row in rows):
        reasons = {line for row in rows for line in row.not_measured.values()}
        raise JudgingError(f"nothing can be measured: {'; '.join(sorted(reasons))}")
    warnings = dict.fromkeys(
        f"{line}." for row in rows if row.judged for line in row.judged.warnings
    )
    evaluation = Evaluation(
        tuple(rows),
        judge.quantities,
        {},
        tables.results_table(rows, judge.quantities),
        tuple(warnings),
        tuple(f"{row.name}: {row.judged.about['captions']}." for row in rows if row.judged),
    )
    seconds = {"all": time.perf_counter() - start}
    write_judged(evaluation, config.out, dataclasses.asdict(config), seconds, sets, config.judging)
    return evaluation
