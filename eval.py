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

RUN = flags.DEFINE_multi_string(
    "run", [], "NAME=WORKDIR of a trained run; may be given several times."
)
GENERATED = flags.DEFINE_multi_string(
    "generated", [], "NAME=FOLDER of sounds, or of their table; may be given several times."
)
REFERENCE = flags.DEFINE_string("reference", None, "Folder of the real sounds, or their table.")
REFERENCE_STATISTICS = flags.DEFINE_string(
    "reference_statistics", None, "What --write_reference_statistics wrote of the real sounds."
)
WRITE_REFERENCE_STATISTICS = flags.DEFINE_string(
    "write_reference_statistics", None, "File for the features of the real sounds, a .npz."
)
NETWORKS = flags.DEFINE_multi_string(
    "networks",
    [],
    "NAME=FOLDER of converted weights: panns_16k, panns_32k, vggish, clap; may be given several "
    "times.",
)
PROTOCOL = flags.DEFINE_enum(
    "protocol", None, sorted(PROTOCOLS), "How sounds are judged by networks. Default: ours."
)
METRICS = flags.DEFINE_list("metrics", [], "Some of the protocol's figures. Default: all.")
LITERATURE = flags.DEFINE_bool(
    "literature", False, "Show published figures in the report, each with its own protocol."
)
COMPARE = flags.DEFINE_list(
    "compare", None, "Two metrics.json, with :ROW behind one that has several judged rows."
)
AUDIO_DATA = flags.DEFINE_string("audio_data", None, "Folder of the audio dataset.")
ENCODED_DATA = flags.DEFINE_string(
    "encoded_data", None, "Folder that data.encode_latents made of it; runs need it."
)
OUT = flags.DEFINE_string("out", None, "Folder for metrics.json, report.html and the tagger.")
NUM_CLIPS = flags.DEFINE_integer(
    "num_clips", 192, "Test clips with one event; of data without labels, all.", lower_bound=1
)
NUM_SCENES = flags.DEFINE_integer(
    "num_scenes", 96, "Test clips with several events.", lower_bound=0
)
NUM_ENERGY_CLIPS = flags.DEFINE_integer(
    "num_energy_clips", 128, "Test clips whose tokens are scored.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips computed together.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of tagger, sounds and energy score.", lower_bound=0)
TAGGER_STEPS = flags.DEFINE_integer(
    "tagger_steps", 600, "Updates of the tagger's training.", lower_bound=1
)
decode_flags.define(flags.FLAGS)
GATES_FLAG = flags.DEFINE_enum(
    "gates", None, sorted(GATES), "Bounds for the rows real, codec, teacher, student, guided."
)


def _check_out() -> None:
    if OUT.value is not None and pathlib.Path(OUT.value).is_file():
        raise EvaluationError(f"--out is {OUT.value!r}, a file; allowed: a folder, new or not")


def _judging() -> JudgingConfig | None:
    asked = {
        "protocol": PROTOCOL.value,
        "metrics": METRICS.value,
        "reference": REFERENCE.value,
        "reference_statistics": REFERENCE_STATISTICS.value,
        "write_reference_statistics": WRITE_REFERENCE_STATISTICS.value,
        "literature": LITERATURE.value,
    }
    if not NETWORKS.value and not any(asked.values()):
        return None
    return JudgingConfig(
        parse_named(NETWORKS.value, "networks"),
        PROTOCOL.value or "ours",
        tuple(METRICS.value),
        REFERENCE.value,
        REFERENCE_STATISTICS.value,
        WRITE_REFERENCE_STATISTICS.value,
        LITERATURE.value,
    )


def _evaluation() -> Evaluation | None:
    if OUT.value is None:
        raise EvaluationError("--out is missing: the folder for metrics.json and report.html")
    runs, generated = parse_named(RUN.value, "run"), parse_named(GENERATED.value, "generated")
    judging = _judging()
    process_id, num_processes = cli.share()
    if judging is not None and not runs:
        return judge_folders(
            FoldersConfig(
                generated,
                OUT.value,
                judging,
                AUDIO_DATA.value,
                process_id,
                num_processes,
            )
        )
    if num_processes != 1:
        raise EvaluationError(
            f"--num_processes is {num_processes}; allowed: 1, but for folders of sounds that "
            "--networks judge without runs"
        )
    if AUDIO_DATA.value is None:
        raise EvaluationError(
            "--audio_data is missing: the dataset with the test clips; without it, --networks "
            "judge --generated against --reference"
        )
    return evaluate(
        EvaluationConfig(
            runs=runs,
            audio_data=AUDIO_DATA.value,
            encoded_data=ENCODED_DATA.value,
            out=OUT.value,
            num_clips=NUM_CLIPS.value,
            num_scenes=NUM_SCENES.value,
            num_energy_clips=NUM_ENERGY_CLIPS.value,
            batch_size=BATCH_SIZE.value,
            seed=SEED.value,
            tagger_steps=TAGGER_STEPS.value,
            decode=decode_flags.read(flags.FLAGS),
            gates=GATES_FLAG.value,
            generated=generated,
            judging=judging,
        )
    )


def _compare(files: list[str]) -> None:
    if len(files) != 2:
        raise EvaluationError(f"--compare names {len(files)} files; allowed: A.json,B.json")
    judging = (RUN, GENERATED, REFERENCE, REFERENCE_STATISTICS, NETWORKS, PROTOCOL, METRICS)
    if others := [f"--{flag.name}" for flag in judging if flag.present]:
        raise EvaluationError(
            f"--compare reads two results and judges nothing; found beside it: {', '.join(others)}"
        )
    if OUT.value is not None and (pathlib.Path(OUT.value) / RESULT_FILE).exists():
        raise EvaluationError(
            f"--out is {OUT.value}, which holds the report of an evaluation; allowed with "
            "--compare: a folder without one"
        )
    found = comparison.compare(*files)
    print(as_text(found.table()))
    if OUT.value is not None:
        write_comparison(found, OUT.value)
        print(f"\n{OUT.value}/report.html has the same as a page.")


def main() -> None:
    _check_out()
    if COMPARE.value is not None:
        _compare(COMPARE.value)
        return
    evaluation = _evaluation()
    if evaluation is None:
        process_id, num_processes = cli.share()
        print(f"The features of share {process_id} of {num_processes} are in {OUT.value}. When all")
        print("are there, the same command without --process_id and --num_processes judges.")
        return
    print(as_text(evaluation.table, evaluation.all_gates()))
    for line in evaluation.notes:
        print(f"\n{line}")
    for line in evaluation.warnings:
        print(f"\nwarning: {line}")
    print(f"\n{OUT.value}/report.html has the sounds, {OUT.value}/metrics.json all figures.")
    if failures := evaluation.failures():
        sys.exit("error: gates failed:\n  " + "\n  ".join(failures))


if __name__ == "__main__":
    cli.define_share_flags()
    cli.run(main)
