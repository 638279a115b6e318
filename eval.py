"""Evaluates trained runs, and sounds of other projects: metrics, energy score, sampling time.

    python eval.py --run=teacher=runs/demo/teacher --run=student=runs/demo/student \\
        --audio_data=runs/demo/data --encoded_data=runs/demo/encoded --out=runs/demo/report

Works for every dataset with captions; where labels name sound events, a tagger is trained for the
metrics that use them. Writes metrics.json and report.html, one file with tables, training curves
and sounds, and keeps the tagger and the features of all sounds beside them for the next time. With
--gates=demo the exit code is 1 where a figure misses its bound.

Public networks judge sounds as the literature does, those of runs and those of any folder:

    python eval.py --generated=theirs=FOLDER --reference=REAL --out=runs/theirs \\
        --networks=panns_16k=weights/panns_16k --networks=vggish=weights/vggish \\
        --protocol=audioldm_eval

FOLDER holds sound files and, if anything names their captions, a table: manifest.jsonl as
generate.py writes it, or metadata or captions as .csv, .tsv or .jsonl; one row a sound with its
file and its caption. The real sounds are --reference=FOLDER, the test clips of --audio_data, or
--reference_statistics, which --write_reference_statistics wrote. Without networks the sounds of a
folder are evaluated by the tagger, beside runs or alone: they need captions of test clips.

Several processes with one --out share the features of many sounds: each gets --num_processes and
its own --process_id. The same command without the two then judges, and computes none anew.

Two results are subtracted where they were judged alike, clip by clip:

    python eval.py --compare=A/metrics.json,B/metrics.json [--out=FOLDER]
"""

import pathlib
import sys
from collections.abc import Iterable

from absl import flags

from fasttta_jax import cli
from fasttta_jax.evaluation import comparison
from fasttta_jax.evaluation.evaluator import evaluate
from fasttta_jax.evaluation.folders import FoldersConfig, judge_folders
from fasttta_jax.evaluation.gates import GATES
from fasttta_jax.evaluation.judging import JudgingConfig
from fasttta_jax.evaluation.output import RESULT_FILE, Evaluation, write_comparison
from fasttta_jax.evaluation.protocols import PROTOCOLS
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationError, parse_named
from fasttta_jax.evaluation.tables import as_text
from fasttta_jax.tools import decode_flags

JUDGING = (
    "run", "generated", "reference", "reference_statistics", "networks", "protocol", "metrics",
)  # fmt: skip
"""Flags that --compare does without."""


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, flag_values=values)

    def several(name: str, help: str) -> None:
        help = f"{help}; may be given several times."
        flags.DEFINE_multi_string(name, [], help, flag_values=values)

    def choice(name: str, names: Iterable[str], help: str) -> None:
        flags.DEFINE_enum(name, None, sorted(names), help, flag_values=values)

    def whole(name: str, default: int, help: str, lowest: int = 1) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lowest, flag_values=values)

    several("run", "NAME=WORKDIR of a trained run")
    several("generated", "NAME=FOLDER of sounds, or of their table")
    text("reference", "Folder of the real sounds, or their table.")
    text("reference_statistics", "What --write_reference_statistics wrote of the real sounds.")
    text("write_reference_statistics", "File for the features of the real sounds, a .npz.")
    several("networks", "NAME=FOLDER of converted weights: panns_16k, panns_32k, vggish, clap")
    choice("protocol", PROTOCOLS, "How sounds are judged by networks. Default: ours.")
    flags.DEFINE_list(
        "metrics", [], "Some of the protocol's figures. Default: all.", flag_values=values
    )
    flags.DEFINE_bool(
        "literature",
        False,
        "Show published figures in the report, each with its own protocol.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "compare",
        None,
        "Two metrics.json, with :ROW behind one that has several judged rows.",
        flag_values=values,
    )
    text("audio_data", "Folder of the audio dataset.")
    text("encoded_data", "Folder that data.encode_latents made of it; runs need it.")
    text("out", "Folder for metrics.json, report.html and the tagger.")
    whole("num_clips", 192, "Test clips with one event; of data without labels, all.")
    whole("num_scenes", 96, "Test clips with several events.", 0)
    whole("num_energy_clips", 128, "Test clips whose tokens are scored.")
    whole("batch_size", 8, "Clips computed together.")
    whole("seed", 0, "Of tagger, sounds and energy score.", 0)
    whole("tagger_steps", 600, "Updates of the tagger's training.")
    decode_flags.define(values)
    choice("gates", GATES, "Bounds for the rows real, codec, teacher, student, guided.")
    cli.define_share_flags(values)


def _check_out() -> None:
    values = flags.FLAGS
    if values.out is not None and pathlib.Path(values.out).is_file():
        raise EvaluationError(f"--out is {values.out!r}, a file; allowed: a folder, new or not")


def _judging() -> JudgingConfig | None:
    values = flags.FLAGS
    asked = {
        "protocol": values.protocol,
        "metrics": values.metrics,
        "reference": values.reference,
        "reference_statistics": values.reference_statistics,
        "write_reference_statistics": values.write_reference_statistics,
        "literature": values.literature,
    }
    if not values.networks and not any(asked.values()):
        return None
    return JudgingConfig(
        parse_named(values.networks, "networks"),
        values.protocol or "ours",
        tuple(values.metrics),
        values.reference,
        values.reference_statistics,
        values.write_reference_statistics,
        values.literature,
    )


def _evaluation() -> Evaluation | None:
    values = flags.FLAGS
    if values.out is None:
        raise EvaluationError("--out is missing: the folder for metrics.json and report.html")
    runs, generated = parse_named(values.run, "run"), parse_named(values.generated, "generated")
    judging = _judging()
    process_id, num_processes = cli.share()
    if judging is not None and not runs:
        return judge_folders(
            FoldersConfig(
                generated,
                values.out,
                judging,
                values.audio_data,
                process_id,
                num_processes,
            )
        )
    if num_processes != 1:
        raise EvaluationError(
            f"--num_processes is {num_processes}; allowed: 1, but for folders of sounds that "
            "--networks judge without runs"
        )
    if values.audio_data is None:
        raise EvaluationError(
            "--audio_data is missing: the dataset with the test clips; without it, --networks "
            "judge --generated against --reference"
        )
    return evaluate(
        EvaluationConfig(
            runs=runs,
            audio_data=values.audio_data,
            encoded_data=values.encoded_data,
            out=values.out,
            num_clips=values.num_clips,
            num_scenes=values.num_scenes,
            num_energy_clips=values.num_energy_clips,
            batch_size=values.batch_size,
            seed=values.seed,
            tagger_steps=values.tagger_steps,
            decode=decode_flags.read(values),
            gates=values.gates,
            generated=generated,
            judging=judging,
        )
    )


def _compare(files: list[str]) -> None:
    values = flags.FLAGS
    if len(files) != 2:
        raise EvaluationError(f"--compare names {len(files)} files; allowed: A.json,B.json")
    if others := [f"--{name}" for name in JUDGING if values[name].present]:
        raise EvaluationError(
            f"--compare reads two results and judges nothing; found beside it: {', '.join(others)}"
        )
    if values.out is not None and (pathlib.Path(values.out) / RESULT_FILE).exists():
        raise EvaluationError(
            f"--out is {values.out}, which holds the report of an evaluation; allowed with "
            "--compare: a folder without one"
        )
    found = comparison.compare(*files)
    print(as_text(found.table()))
    if values.out is not None:
        write_comparison(found, values.out)
        print(f"\n{values.out}/report.html has the same as a page.")


def main() -> None:
    """Evaluates, or compares, as the flags say."""
    values = flags.FLAGS
    _check_out()
    if values.compare is not None:
        _compare(values.compare)
        return
    evaluation = _evaluation()
    if evaluation is None:
        process_id, num_processes = cli.share()
        print(f"The features of share {process_id} of {num_processes} are in {values.out}.")
        print(
            "When all are there, the same command without --process_id and --num_processes judges."
        )
        return
    print(as_text(evaluation.table, evaluation.all_gates()))
    for line in evaluation.notes:
        print(f"\n{line}")
    for line in evaluation.warnings:
        print(f"\nwarning: {line}")
    print(f"\n{values.out}/report.html has the sounds, {values.out}/metrics.json all figures.")
    if failures := evaluation.failures():
        sys.exit("error: gates failed:\n  " + "\n  ".join(failures))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
