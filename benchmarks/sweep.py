"""The ablations at demo scale: trains missing students, evaluates every row, makes one table.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --only='^teacher' --num_clips=96
    python -m benchmarks.sweep --only='student$|lambda' --num_steps=50 --out=runs/demo/quick

Starts from the demo's data and teacher (`make demo`). Students differ in the weight of alignment,
in the samples of the energy score, in what is trained and in the head (configs/demo_student.py
has the variants); trained runs then decode with other guidance, iterations and diffusion steps.

Writes OUT/sweep.json and OUT/sweep.md; runs are in OUT/runs. Started again, a sweep goes on where
it stopped: finished runs are skipped, an unfinished one resumes, and a row that was evaluated on
the same parameters, settings and clips is read from OUT/rows (delete that folder after a change of
the code). Sampling times are measured anew each time, all rows in turns in one process; times of
two sweeps cannot be compared.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from typing import Any

import tqdm
from absl import flags

from benchmarks.settings import SettingEvaluator, read
from benchmarks.sweep_plan import STUDENT, TEACHER, distinct_runs, plan, shortened
from benchmarks.sweep_table import to_markdown
from configs import demo_student
from fasttta_jax import cli
from fasttta_jax.config import RunConfig, from_config_dict
from fasttta_jax.evaluation.output import environment
from fasttta_jax.evaluation.rows import TIMES_SLOWER
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.files import write_atomically, write_json
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.checkpoint import StoredCheckpoints
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.restore import load_trained

logger = logging.getLogger("fasttta_jax.sweep")

RUNS_FOLDER = "runs"
RECORD_FILE = "training.json"
RESULT_FILE = "sweep.json"
TABLE_FILE = "sweep.md"


def student_configs(teacher: str, encoded_data: str, num_steps: int | None) -> dict[str, RunConfig]:
    """Every variant of the demo's student by name, from the teacher in a workdir."""
    configs = {}
    for variant in demo_student.VARIANTS:
        config = shortened(from_config_dict(demo_student.get_config(variant)), num_steps)
        data = dataclasses.replace(config.data, path=encoded_data)
        source = teacher if config.distillation.uses_teacher else ""
        configs[variant or STUDENT] = dataclasses.replace(config, data=data, init_from=source)
    return configs


def train(config: RunConfig, workdir: pathlib.Path, teacher_sha256: str) -> None:
    """Trains a run to its end and records how long it took; one that is complete is left as it is.

    Raises:
      WorkdirError: the workdir holds another run, or one from another teacher.
    """
    data_hash = EncodedDataset(config.data.path).fingerprint()
    made_from = {"data_hash": data_hash, "teacher_sha256": teacher_sha256}
    record = read(workdir / RECORD_FILE)
    if record.get("made_from") == made_from and Workdir(workdir).config() == config:
        logger.info("%s is complete", workdir)
        return
    first_step = max(StoredCheckpoints(workdir).steps(), default=0)
    start = time.perf_counter()
    Trainer(config, workdir).run()
    seconds = record.get("seconds")
    if first_step < config.num_steps:
        done_here = (config.num_steps - first_step) / config.num_steps
        seconds = (time.perf_counter() - start) / done_here
    write_json(workdir / RECORD_FILE, {"made_from": made_from, "seconds": seconds})


def sweep(
    config: EvaluationConfig, teacher: str, *, only: str = "", num_steps: int | None = None
) -> dict[str, Any]:
    """Trains what is missing, evaluates all rows, writes sweep.json and sweep.md.

    Args:
      config: data, output folder, clips and seed; its runs are replaced by the sweep's.
      teacher: workdir of the trained teacher.
      only: regular expression on the names of rows.
      num_steps: length of the students' training; None for the config's.

    Returns:
      What sweep.json holds.

    Raises:
      ValueError: `only` finds no row.
      WorkdirError: the teacher is missing, or OUT/runs holds other runs of the same names.
    """
    out = pathlib.Path(config.out)
    students = student_configs(teacher, str(config.encoded_data), num_steps)
    rows = plan(Workdir(teacher).config(), students, only)
    needed = {row.setting.run for row in rows}
    names = [name for name, run in distinct_runs(students).items() if name == run in needed]
    workdirs = {TEACHER: pathlib.Path(teacher)}
    if names:
        teacher_sha256 = load_trained(teacher, local_mesh()).origin()["sha256"]
        for name in tqdm.tqdm(names, "training runs", unit="run"):
            workdirs[name] = out / RUNS_FOLDER / name
            train(students[name], workdirs[name], teacher_sha256)
    runs = {name: str(path) for name, path in workdirs.items() if name in needed}
    settings = list(dict.fromkeys(row.setting for row in rows))
    rated = SettingEvaluator(dataclasses.replace(config, runs=runs), settings)
    references, figures = rated.references(), rated.figures()
    times = {name: found.to_json() for name, found in rated.evaluator.times().items()}
    trained = rated.evaluator.setup.trained
    results = {
        "quantities": [
            {"name": one.name, "title": one.title}
            for one in rated.evaluator.quantities
            if one != TIMES_SLOWER  # the sweep holds no run against another
        ],
        "references": references,
        "rows": [
            {
                "group": row.group,
                "name": row.name,
                "setting": dataclasses.asdict(row.setting),
                "steps": trained[row.setting.name].step,
                "training_seconds": read(workdirs[row.setting.run] / RECORD_FILE).get("seconds"),
                "figures": figures[row.setting.name],
                "sampling": times[row.setting.name],
            }
            for row in rows
        ],
        "warnings": rated.warnings,
        "settings": {
            "evaluation": dataclasses.asdict(rated.evaluator.config),
            "environment": environment(),
        },
    }
    write_json(out / RESULT_FILE, results)
    write_atomically(out / TABLE_FILE, to_markdown(results).encode())
    return results


def _define_flags() -> None:
    # Not at import, where tests would define them a second time.
    text, integer = flags.DEFINE_string, flags.DEFINE_integer
    text("teacher", "runs/demo/teacher", "Workdir of the trained teacher.")
    text("audio_data", "runs/demo/data", "Folder of the audio dataset.")
    text("encoded_data", "runs/demo/encoded", "Folder that data.encode_latents made of it.")
    text("out", "runs/demo/ablations", "Folder for runs, figures and tables.")
    text("only", "", "Regular expression: only rows whose name it finds. Default: all.")
    integer("num_steps", None, "Steps of every student, for a quick look.", lower_bound=2)
    integer("num_clips", 192, "Test clips with one event.", lower_bound=1)
    integer("num_scenes", 48, "Test clips with several events.", lower_bound=0)
    integer("num_energy_clips", 64, "Test clips whose tokens are scored.", lower_bound=1)
    integer("batch_size", 8, "Clips computed together.", lower_bound=1)
    integer("seed", 0, "Of tagger, sounds and energy score.", lower_bound=0)
    integer("tagger_steps", 400, "Updates of the tagger's training.", lower_bound=1)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    config = EvaluationConfig(
        runs={TEACHER: values.teacher},
        audio_data=values.audio_data,
        encoded_data=values.encoded_data,
        out=values.out,
        num_clips=values.num_clips,
        num_scenes=values.num_scenes,
        num_energy_clips=values.num_energy_clips,
        batch_size=values.batch_size,
        seed=values.seed,
        tagger_steps=values.tagger_steps,
    )
    results = sweep(config, values.teacher, only=values.only, num_steps=values.num_steps)
    print(to_markdown(results))
    print(f"{out / TABLE_FILE} has this table, {out / RESULT_FILE} all figures.")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
