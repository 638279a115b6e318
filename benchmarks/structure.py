"""Judges the structure of generated soundscapes: what a tagger that names events does not hear.

    python -m benchmarks.structure --run=teacher=runs/soundscapes/teacher \\
        --run=student=runs/soundscapes/student --audio_data=runs/soundscapes/data \\
        --encoded_data=runs/soundscapes/encoded --out=runs/soundscapes/structure

Rows are the real test clips, the same after the codec, and every run for their captions:

  two-sample accuracy  how often a network tells a clip from the codec's round trip of a real one:
                       .5 is never, 1 always. It has the tagger's architecture, is trained without
                       augmentation on --num_training clips of each kind, for captions of the
                       training split, and judged on the test clips
  border steps         of the log-mel spectrogram at the borders of token columns over those inside
                       them; the median over clips (`metrics.seams`)
  wail                 share of a siren's contour that one sine explains; median over sirens
                       (`metrics.contour`)
  regularity, rate     of clocks, footsteps and alarms: autocorrelation at the beat, median, and the
                       share of clips whose rate is among those of real training clips of the same
                       event and speed (`metrics.rhythm`)

± is one standard error, [] Wilson's 95 % interval. Writes OUT/structure.json and structure.md.
"""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import flags
from jaxtyping import Bool, Float

from fasttta_jax import cli
from fasttta_jax.audio.mel import MelConfig
from fasttta_jax.evaluation.clips import Clips, read_test_clips
from fasttta_jax.evaluation.evaluator import Evaluator
from fasttta_jax.evaluation.labels import events_of
from fasttta_jax.evaluation.setup import EvaluationConfig, load_setup, parse_named
from fasttta_jax.evaluation.tagger import TAGGER_MEL, TaggerSpec, to_float
from fasttta_jax.evaluation.tagger_training import TaggerData, train_tagger
from fasttta_jax.input_pipeline.records import Records
from fasttta_jax.metrics.contour import pitch_track, wail_share
from fasttta_jax.metrics.rhythm import Beat, beat
from fasttta_jax.metrics.seams import border_ratio, frame_steps
from fasttta_jax.metrics.two_sample import wilson
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.files import write_atomically, write_json

logger = logging.getLogger("fasttta_jax.structure")

SIREN_HZ = {"low": (250.0, 800.0), "high": (800.0, 2200.0)}
"""Where the strongest partial of a siren is looked for, by its pitch."""
RHYTHMIC = ("clock", "footsteps", "alarm")
EDGE_FRAMES = 8
"""Of a pitch track, at either end: their windows hang over."""

Row = dict[str, float | str | None]


def single(clips: Clips, event: str) -> list[int]:
    """Rows of the clips that hold this event alone."""
    return [row for row in clips.rows_with(1) if events_of(clips.labels[row])[0] == event]


def wails(clips: Clips, sample_rate: int) -> list[float]:
    """The share of each siren's contour that one sine explains."""
    contours = []
    for row in single(clips, "siren"):
        lowest, highest = SIREN_HZ[clips.labels[row]["attributes"]["siren"]["pitch"]]
        audio = to_float(clips.audio[row])
        contours.append(pitch_track(audio, sample_rate, lowest=lowest, highest=highest))
    return [wail_share(contour[EDGE_FRAMES:-EDGE_FRAMES]) for contour in contours]


def beats(clips: Clips, event: str, sample_rate: int) -> list[tuple[str, Beat]]:
    """Each clip's own speed, as its labels call it ("" where it has none), and its beat."""
    found = []
    for row in single(clips, event):
        speed = clips.labels[row]["attributes"][event].get("speed", "")
        found.append((speed, beat(to_float(clips.audio[row]), sample_rate)))
    return found


def rates_of(clips: Clips, sample_rate: int) -> dict[tuple[str, str], tuple[float, float]]:
    """For every rhythmic event and speed, the range of nine tenths of the rates of these clips."""
    ranges = {}
    for event in RHYTHMIC:
        found = beats(clips, event, sample_rate)
        for speed in {speed for speed, _ in found}:
            rates = [one.rate for other, one in found if other == speed]
            low, high = np.nanquantile(rates, (0.05, 0.95))
            ranges[event, speed] = (float(low), float(high))
    return ranges


def structure_row(
    clips: Clips,
    sample_rate: int,
    frames_per_column: int,
    ranges: Mapping[tuple[str, str], tuple[float, float]],
) -> Row:
    """The measures of a set of clips that need no network."""
    mel = MelConfig(sample_rate=sample_rate, floor=TAGGER_MEL.floor)
    row: Row = {
        "border_steps": float(
            np.nanmedian(border_ratio(frame_steps(clips.audio, mel), frames_per_column))
        ),
        "wail": float(np.median(wails(clips, sample_rate))),
    }
    for event in RHYTHMIC:
        found = beats(clips, event, sample_rate)
        row[f"{event}_regularity"] = float(np.median([one.regularity for _, one in found]))
        inside = [
            ranges[event, speed][0] <= one.rate <= ranges[event, speed][1] for speed, one in found
        ]
        row[f"{event}_rate_right"] = float(np.mean(inside))
        row[f"{event}_clips"] = float(len(inside))
    return row


def two_sample(
    generated: tuple[Float[np.ndarray, "n S"], Float[np.ndarray, "m S"]],
    rebuilt: tuple[Float[np.ndarray, "n S"], Float[np.ndarray, "m S"]],
    *,
    seed: int,
    num_steps: int,
) -> tuple[Bool[np.ndarray, " pairs"], float]:
    """Which test clips a network puts into their own set, and its accuracy in training.

    Args:
      generated: training and test clips of one kind.
      rebuilt: as many of the other.
      seed: of the network.
      num_steps: updates of its training.
    """
    spec = TaggerSpec(("generated",), {}, generated[0].shape[1])
    audio = np.concatenate([generated[0], rebuilt[0]])
    is_generated = np.arange(len(audio)) < len(generated[0])
    data = TaggerData(audio, is_generated[:, None], np.zeros((len(audio), 0), np.int32))
    network = train_tagger(data, spec, seed=seed, num_steps=num_steps, augmented=False)

    def share(one: np.ndarray) -> Float[np.ndarray, " n"]:
        return network.predict(one).event_probabilities[:, 0]

    fitted = np.concatenate([share(generated[0]) > 0.5, share(rebuilt[0]) <= 0.5])
    right = np.concatenate([share(generated[1]) > 0.5, share(rebuilt[1]) <= 0.5])
    return right, float(fitted.mean())


def to_markdown(rows: Mapping[str, Row]) -> str:
    """The table: a line for each measure, a column for each row."""
    lines = [f"| | {' | '.join(rows)} |", f"| --- |{' ---: |' * len(rows)}"]
    for name in next(iter(rows.values())):
        cells = [
            value
            if isinstance(value := row[name], str)
            else "–"
            if value is None
            else f"{value:.3f}"
            for row in rows.values()
        ]
        if not name.endswith("_clips"):
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line."""

    def folder(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, required=True, flag_values=values)

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=0, flag_values=values)

    flags.DEFINE_multi_string(
        "run", None, "NAME=WORKDIR of a trained run; several.", required=True, flag_values=values
    )
    folder("audio_data", "The audio dataset, of data.soundscapes.")
    folder("encoded_data", "What data.encode_latents made of it.")
    folder("out", "Folder for structure.json and structure.md.")
    integer("num_clips", 420, "Test clips with one event.")
    integer("num_scenes", 180, "Test clips with two.")
    integer("num_training", 2000, "Clips of each kind that a two-sample network is trained on.")
    integer("num_steps", 1200, "Updates of a two-sample network.")
    integer("seed", 0, "Of clips and networks.")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    runs = parse_named(values.run, "run")
    config = EvaluationConfig(
        runs,
        values.audio_data,
        values.encoded_data,
        values.out,
        num_clips=values.num_clips,
        num_scenes=values.num_scenes,
        seed=values.seed,
    )
    setup = load_setup(config, local_mesh())
    evaluator = Evaluator(config, setup)
    codec, rate, num_samples = evaluator.runs.encoded.codec, setup.sample_rate, setup.num_samples
    hop = MelConfig(sample_rate=rate).hop_length
    real = evaluator.test.with_audio(to_float(evaluator.test.audio))
    share = config.num_scenes / (config.num_clips + config.num_scenes)
    num_two = round(values.num_training * share)
    training = read_test_clips(
        Records(config.audio_data, "train"),
        num_clips=values.num_training - num_two,
        num_scenes=num_two,
        num_samples=num_samples,
    )
    training = training.with_audio(to_float(training.audio))
    ranges = rates_of(training, rate)
    rebuilt = {True: evaluator.through_codec(training), False: evaluator.through_codec(real)}
    sets = {"real": real, "codec": real.with_audio(rebuilt[False])}
    learned = {"real": training.audio}
    for name in runs:
        sets[name] = real.with_audio(evaluator.runs.sounds(name, real.prompts))
        learned[name] = evaluator.runs.sounds(name, training.prompts)
    rows: dict[str, Row] = {}
    for name, clips in sets.items():
        row = structure_row(clips, rate, codec.samples_per_column // hop, ranges)
        if name != "codec":
            right, fitted = two_sample(
                (learned[name], clips.audio),
                (rebuilt[True], rebuilt[False]),
                seed=config.seed,
                num_steps=values.num_steps,
            )
            accuracy = wilson(int(right.sum()), len(right))
            low, high = accuracy.interval or (math.nan, math.nan)
            text = f"{accuracy.value:.3f} [{low:.3f}, {high:.3f}]"
            row |= {"two_sample": text, "two_sample_training": fitted}
        else:
            row |= {"two_sample": None, "two_sample_training": None}
        rows[name] = row
        logger.info("%s: %s", name, row)
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "structure.json", rows)
    write_atomically(out / "structure.md", to_markdown(rows).encode())
    print(to_markdown(rows))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
