"""How edits sound: steps at the seam of loops and at the joints of long clips, and what is heard.

    python -m benchmarks.edits --workdir=runs/demo/student \\
        --tagger=runs/demo/report/tagger.safetensors

Makes clips of every prompt as the model makes them, as loops, and a few that are long. A ratio is
the step of the log-mel spectrogram at a place over the median of all other steps of the clip
(`metrics.seams.joint_ratio`). Steps are skewed, so that the mean step of any sound lies above its
median: beside seam and joints stand every seventh step, and the borders of token columns inside
clips, which are joints of the same kind. A seam is one step a clip, and its ratio is best read as
the median over clips, which is 1 where the seam is a step as any other. Accuracy is the share of
clips, and of pieces of long clips, in which the tagger finds the event of the prompt likeliest.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float

from benchmarks import measure
from fasttta_jax import cli
from fasttta_jax.audio.mel import MelConfig
from fasttta_jax.evaluation.tagger import Tagger
from fasttta_jax.generation import windows
from fasttta_jax.generation.pipeline import Clip, Pipeline
from fasttta_jax.metrics.seams import frame_steps, joint_ratio
from fasttta_jax.report.text_table import format_table

LONG_CLIPS = 12
MEL = MelConfig(floor=1e-2)
MEASURES = ("mean", "error", "median")


def ratios(
    clips: Sequence[Clip], joints: Sequence[int], *, circular: bool = False
) -> Float[np.ndarray, " n"]:
    """Step at the joints over the median step, of each clip."""
    audio = np.stack([clip.audio for clip in clips])
    return joint_ratio(frame_steps(audio, MEL, circular=circular), joints)


def row(name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Mean, its standard error, and median over clips that move at all."""
    finite = values[np.isfinite(values)]
    error = finite.std(ddof=1) / np.sqrt(len(finite)) if len(finite) > 1 else float("nan")
    return {
        "place": name,
        "clips": len(finite),
        "mean": float(finite.mean()),
        "error": float(error),
        "median": float(np.median(finite)),
    }


def accuracy(
    sounds: Sequence[Float[np.ndarray, " S"]], prompts: Sequence[str], tagger: Tagger
) -> tuple[float, int]:
    """Share of pieces in which the prompt's event is the likeliest, and how many there are.

    Prompts that name no event of the tagger, or several, do not count.
    """
    size, pieces, asked = tagger.spec.num_samples, [], []
    for sound, prompt in zip(sounds, prompts, strict=True):
        named = [event for event in tagger.spec.events if event.replace("_", " ") in prompt]
        if len(named) != 1:
            continue
        for start in range(0, len(sound) - size + 1, size):
            pieces.append(sound[start : start + size])
            asked.append(tagger.spec.events.index(named[0]))
    found = tagger.predict(np.stack(pieces).clip(-1, 1)).event_probabilities.argmax(axis=1)
    return float(np.mean(found == asked)), len(pieces)


def benchmark(
    pipeline: Pipeline, prompts: Sequence[str], tagger: Tagger | None, seconds: float
) -> dict[str, Any]:
    """Ratios and accuracies of plain clips, loops and long clips of these prompts."""
    codec = pipeline.trained.codec
    hops = codec.samples_per_column // MEL.hop_length
    length = pipeline.trained.config.model.num_tokens // codec.tokens_per_column
    plain = list(pipeline.generate(prompts, batch_size=16))
    loops = list(pipeline.generate(prompts, batch_size=16, loop=True))
    # One long clip of some prompts, evenly chosen.
    few = [prompts[index * (len(prompts) - 1) // (LONG_CLIPS - 1)] for index in range(LONG_CLIPS)]
    long = list(pipeline.generate(few, batch_size=LONG_CLIPS, seconds=seconds))
    borders = [column * hops - 1 for column in range(1, length)]
    line = windows.line(round(seconds * codec.sample_rate / codec.samples_per_column), length)
    joints = [column * hops - 1 for column in windows.joints(line)]
    edges = sorted(
        {
            (window.first + column) * hops - 1
            for window in set(windows.joined(line)) - set(line)
            for column in (window.anew.start, window.anew.stop)
        }
    )
    steps = int(seconds * codec.sample_rate) // MEL.hop_length - 1
    others = [place for place in range(hops - 1, steps, hops) if place not in {*joints, *edges}]
    rows = [
        row("any place in clips", ratios(plain, range(3, length * hops - 1, 7))),
        row("borders of columns in clips", ratios(plain, borders)),
        row("ends of clips, repeated", ratios(plain, [-1], circular=True)),
        row("seam of loops", ratios(loops, [-1], circular=True)),
        row("borders of columns in loops", ratios(loops, borders, circular=True)),
        row("joints of long clips", ratios(long, [place for place in joints if place < steps])),
        row(
            "edges of what is made anew", ratios(long, [place for place in edges if place < steps])
        ),
        row("other borders in long clips", ratios(long, others)),
    ]
    heard = []
    if tagger is not None:
        for name, clips in (("clips", plain), ("loops", loops), ("long clips", long)):
            value, count = accuracy(
                [clip.audio for clip in clips], [clip.prompt for clip in clips], tagger
            )
            heard.append({"what": name, "pieces": count, "accuracy": value})
    return {"rows": rows, "accuracy": heard, "seconds": seconds}


def report(results: dict[str, Any]) -> str:
    """Both tables."""
    places = format_table(
        ["place", "clips", *MEASURES],
        [
            [each["place"], str(each["clips"]), *(f"{each[name]:.2f}" for name in MEASURES)]
            for each in results["rows"]
        ],
    )
    heard = format_table(
        ["what", "pieces", "event accuracy"],
        [
            [each["what"], str(each["pieces"]), f"{each['accuracy']:.3f}"]
            for each in results["accuracy"]
        ],
    )
    return f"{places}\n\n{heard}" if results["accuracy"] else places


def main() -> None:
    """Runs the benchmark that the flags describe."""
    values = flags.FLAGS
    pipeline = Pipeline.open(values.workdir)
    lines = pathlib.Path(values.prompts).read_text(encoding="utf-8").split("\n")
    prompts = [line for line in lines if line.strip()]
    number = measure.positive_integers("num_clips", [str(values.num_clips)])[0]
    prompts = [prompts[index % len(prompts)] for index in range(number)]
    tagger = Tagger.load(values.tagger) if values.tagger else None
    results = benchmark(pipeline, prompts, tagger, values.seconds)
    measure.finish(results, report(results), values.out)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run; default: the model of the package.")
    flags.DEFINE_string("tagger", None, "A tagger that eval.py has trained, .safetensors.")
    flags.DEFINE_string("prompts", "configs/demo_prompts.txt", "A prompt a line.")
    flags.DEFINE_integer("num_clips", 96, "Clips, and loops.")
    flags.DEFINE_float("seconds", 60.0, "Of the long clips.")
    flags.DEFINE_string("out", None, "JSON file of the results.")
    cli.run(main)
