"""Evaluates trained runs, and sounds of other projects: metrics, energy score, sampling time.

    python eval.py --run=teacher=runs/demo/teacher --run=student=runs/demo/student \\
        --audio_data=runs/demo/data --encoded_data=runs/demo/encoded --out=runs/demo/report

Works for every dataset with captions; where labels name sound events, a tagger is trained for the
metrics that use them. Writes metrics.json and report.html, one file with tables, training curves
and sounds, and keeps the tagger and the features of all sounds beside them for the next time. With
--gates=demo the exit code is 1 where a figure misses its bound.

Sounds that something else made for the captions of the test clips are evaluated from a folder:

    python eval.py --sounds=theirs=FOLDER --audio_data=runs/demo/data --out=runs/theirs

FOLDER holds them, with manifest.jsonl as generate.py writes it, or metadata.csv or metadata.jsonl:
one row a sound with file and caption. Both kinds of rows may stand in one table.
"""

import sys

from absl import flags

from fasttta_jax import cli
from fasttta_jax.evaluation.evaluator import evaluate
from fasttta_jax.evaluation.gates import GATES
from fasttta_jax.evaluation.setup import EvaluationConfig, parse_named
from fasttta_jax.evaluation.tables import as_text

RUN = flags.DEFINE_multi_string(
    "run", [], "NAME=WORKDIR of a trained run; may be given several times."
)
SOUNDS = flags.DEFINE_multi_string(
    "sounds", [], "NAME=FOLDER of sounds for the captions; may be given several times."
)
AUDIO_DATA = flags.DEFINE_string(
    "audio_data", None, required=True, help="Folder of the audio dataset."
)
ENCODED_DATA = flags.DEFINE_string(
    "encoded_data", None, "Folder that data.encode_latents made of it; runs need it."
)
OUT = flags.DEFINE_string(
    "out", None, required=True, help="Folder for metrics.json, report.html and the tagger."
)
NUM_CLIPS = flags.DEFINE_integer(
    "num_clips", 192, "Test clips with one event; of data without labels, all.", lower_bound=1
)
NUM_TWO_EVENT_CLIPS = flags.DEFINE_integer(
    "num_two_event_clips", 96, "Test clips with two events.", lower_bound=0
)
NUM_ENERGY_CLIPS = flags.DEFINE_integer(
    "num_energy_clips", 128, "Test clips whose tokens are scored.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips computed together.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of tagger, sounds and energy score.", lower_bound=0)
TAGGER_STEPS = flags.DEFINE_integer(
    "tagger_steps", 600, "Updates of the tagger's training.", lower_bound=1
)
NUM_ITERATIONS = flags.DEFINE_integer(
    "num_iterations", None, "Decoding iterations, 1 to the number of tokens. Default: each run's."
)
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "Classifier-free guidance; 1 is none. Default: each run's."
)
TEMPERATURE = flags.DEFINE_float("temperature", None, "Scale of the noise. Default: each run's.")
GATES_FLAG = flags.DEFINE_enum(
    "gates", None, sorted(GATES), "Bounds for the rows real, codec, teacher and student."
)


def main() -> None:
    overrides = {
        "num_iterations": NUM_ITERATIONS.value,
        "guidance_scale": GUIDANCE_SCALE.value,
        "temperature": TEMPERATURE.value,
    }
    evaluation = evaluate(
        EvaluationConfig(
            runs=parse_named(RUN.value, "run"),
            audio_data=AUDIO_DATA.value,
            encoded_data=ENCODED_DATA.value,
            out=OUT.value,
            num_clips=NUM_CLIPS.value,
            num_two_event_clips=NUM_TWO_EVENT_CLIPS.value,
            num_energy_clips=NUM_ENERGY_CLIPS.value,
            batch_size=BATCH_SIZE.value,
            seed=SEED.value,
            tagger_steps=TAGGER_STEPS.value,
            decode={name: value for name, value in overrides.items() if value is not None},
            gates=GATES_FLAG.value,
            sounds=parse_named(SOUNDS.value, "sounds"),
        )
    )
    print(as_text(evaluation.table))
    for line in evaluation.warnings:
        print(f"\nwarning: {line}")
    print(f"\n{OUT.value}/report.html has the sounds, {OUT.value}/metrics.json all figures.")
    if failures := evaluation.failures():
        sys.exit("error: gates failed:\n  " + "\n  ".join(failures))


if __name__ == "__main__":
    cli.run(main)
