"""Generates audio from text.

    python generate.py --workdir=runs/demo/student --prompt="a high bell rings nearby" \\
        --prompt="rain falls in the distance" --out=sounds

Clip i of the list uses seed + i and depends on nothing but its prompt, its seed and the settings.
The folder gets one sound file a clip and manifest.jsonl, which says how each was made.

To continue a sound, or to fill a gap in it, give the file and the seconds to keep:

    ... --audio=dog.wav --keep=0-1.28        continues after 1.28 s
    ... --audio=dog.wav --keep=0-1,2-2.56    makes what is between 1 and 2 s anew

The file should be as loud as the sounds that the model was trained on. Kept tokens come back
exactly; the sound of a clip is decoded as a whole, so that no joint is heard.
"""

import dataclasses
import json
import logging
import pathlib
import textwrap
import time
from collections.abc import Iterator
from typing import cast, get_args

import jax
import numpy as np
import tqdm
from absl import flags

from fasttta_jax import cli
from fasttta_jax.audio.files import (
    AudioFormat,
    playback_level,
    write_audio,
)
from fasttta_jax.config import DecodeConfig
from fasttta_jax.decode import DecodeState, Known
from fasttta_jax.generation.decoding_figure import decoding_png
from fasttta_jax.generation.edits import (
    Ranges,
    parse_ranges,
    read_known,
)
from fasttta_jax.generation.prompts import read_prompts, slug
from fasttta_jax.generation.sampler import (
    TokenGenerator,
    generate,
    generate_with_states,
)
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.workdir.restore import TrainedModel, load_trained

logger = logging.getLogger("fasttta_jax.generate")

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a trained teacher or student.", required=True
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to hear; may be given several times.")
PROMPTS = flags.DEFINE_string(
    "prompts",
    None,
    "File of prompts: .txt (one a line), .csv or .jsonl (column prompt or caption).",
)
OUT = flags.DEFINE_string("out", None, "Folder for the sounds and manifest.jsonl.", required=True)
FORMAT = flags.DEFINE_enum("format", "wav", get_args(AudioFormat), "Format of the sound files.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "Which one: last, best (lowest validation loss) or a step."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the first clip.", lower_bound=0)
CLIPS_PER_PROMPT = flags.DEFINE_integer("clips_per_prompt", 1, "Clips for each prompt.", 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips computed together.", lower_bound=1)
NUM_ITERATIONS = flags.DEFINE_integer(
    "num_iterations", None, "Decoding iterations, 1 to the number of tokens. Default: the run's."
)
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "Classifier-free guidance; 1 is none. Default: the run's."
)
TEMPERATURE = flags.DEFINE_float("temperature", None, "Scale of the noise. Default: the run's.")
RMS_DBFS = flags.DEFINE_float(
    "rms_dbfs",
    None,
    "Bring every clip to this loudness, e.g. -23. Default: keep the level that the model gives.",
)
AUDIO = flags.DEFINE_string("audio", None, "Sound file of which --keep is kept in every clip.")
KEEP = flags.DEFINE_string(
    "keep",
    None,
    "Seconds of --audio to keep: START-END, several with commas; whole token columns inside them.",
)
PICTURES = flags.DEFINE_bool(
    "pictures",
    False,
    "Beside every sound a PNG of its mel spectrogram, and one of how decoding filled it in.",
)


def decode_settings(default: DecodeConfig) -> DecodeConfig:
    """The run's settings with the flags that were given in their place."""
    overrides = {
        "num_iterations": NUM_ITERATIONS.value,
        "guidance_scale": GUIDANCE_SCALE.value,
        "temperature": TEMPERATURE.value,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    return dataclasses.replace(default, **given)


def kept_ranges() -> Ranges | None:
    """What --keep names, None where no sound is given."""
    if AUDIO.value is None and KEEP.value is None:
        return None
    if AUDIO.value is None or KEEP.value is None:
        missing = "--audio" if AUDIO.value is None else "--keep"
        raise ValueError(f"{missing} is missing; --audio and --keep go together")
    return parse_ranges(KEEP.value)


def known_in_file(trained: TrainedModel, ranges: Ranges, num_clips: int) -> Known:
    """The tokens of --audio that every clip is given."""
    known = read_known(str(AUDIO.value), ranges, trained.codec, trained.config.model.num_tokens)
    return jax.tree.map(lambda one: np.repeat(one, num_clips, axis=0), known)


def with_states(
    trained: TrainedModel,
    generator: TokenGenerator,
    prompts: list[str],
    seeds: list[int],
    known: Known | None,
) -> Iterator[tuple[np.ndarray, DecodeState | None]]:
    """Waveforms, each with its states where --pictures needs them."""
    arguments = trained, generator, prompts, seeds, known
    if PICTURES.value:
        return generate_with_states(*arguments)
    return ((clip, None) for clip in generate(*arguments))


def main() -> None:
    prompts = list(PROMPT.value) + (read_prompts(PROMPTS.value) if PROMPTS.value else [])
    if not prompts:
        raise ValueError("there is nothing to generate: give --prompt or --prompts")
    prompts = [prompt for prompt in prompts for _ in range(CLIPS_PER_PROMPT.value)]
    if any(not prompt.strip() for prompt in prompts):
        logger.warning("an empty prompt makes an unconditional clip")
    ranges = kept_ranges()
    which = int(CHECKPOINT.value) if CHECKPOINT.value.isdigit() else CHECKPOINT.value
    mesh = local_mesh()
    trained = load_trained(WORKDIR.value, mesh, which=which)
    rate = trained.codec.sample_rate
    settings = decode_settings(trained.config.decode)
    known = None if ranges is None else known_in_file(trained, ranges, len(prompts))
    given = np.zeros(trained.config.model.num_tokens, bool) if known is None else known.mask[0]
    generator = TokenGenerator(
        trained.model, settings, mesh, BATCH_SIZE.value, num_known=int(given.sum())
    )
    seeds = [SEED.value + index for index in range(len(prompts))]
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    origin = trained.origin() | {"objective": trained.config.objective}
    kept = {} if known is None else {"audio": AUDIO.value, "keep": KEEP.value}
    file_format = cast(AudioFormat, FORMAT.value)
    started = time.perf_counter()
    clips = with_states(trained, generator, prompts, seeds, known)
    bar = tqdm.tqdm(clips, "generating", len(prompts), unit="clip")
    with open(out / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for index, (clip, states) in enumerate(bar):
            name = f"{index:05d}_{slug(prompts[index])}"
            audio = playback_level(clip, rms_dbfs=RMS_DBFS.value)
            write_audio(out / f"{name}.{FORMAT.value}", audio, rate, file_format)
            if states is not None:
                title = textwrap.shorten(prompts[index], 60, placeholder=" ...")
                (out / f"{name}.png").write_bytes(spectrogram_png(audio, rate, title))
                strip = decoding_png(states, np.asarray(given), trained.codec, title)
                (out / f"{name}_decoding.png").write_bytes(strip)
            row = {
                "file": f"{name}.{FORMAT.value}",
                "prompt": prompts[index],
                "seed": seeds[index],
                "seconds": len(clip) / rate,
                "settings": dataclasses.asdict(settings) | {"rms_dbfs": RMS_DBFS.value} | kept,
                "checkpoint": origin,
            }
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest.flush()
    logger.info(
        "%d clips in %s, %.1f s with compilation",
        len(prompts),
        out,
        time.perf_counter() - started,
    )


if __name__ == "__main__":
    cli.run(main)
