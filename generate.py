"""Generates audio from text.

    python generate.py --workdir=runs/demo/student --prompt="a high bell rings nearby" \\
        --prompt="rain falls in the distance" --out=sounds

Clip i of the list uses seed + i and depends on nothing but its prompt, its seed and the settings.
The folder gets one sound file a clip and manifest.jsonl, which says how each was made.
"""

import dataclasses
import json
import logging
import pathlib
import time
from typing import cast, get_args

import tqdm
from absl import flags

from fasttta_jax import cli
from fasttta_jax.audio import AudioFormat, playback_level, write_audio
from fasttta_jax.generation import TokenGenerator, generate
from fasttta_jax.prompts import read_prompts, slug
from fasttta_jax.restore import load_trained, local_mesh

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


def main() -> None:
    prompts = list(PROMPT.value) + (read_prompts(PROMPTS.value) if PROMPTS.value else [])
    if not prompts:
        raise ValueError("there is nothing to generate: give --prompt or --prompts")
    prompts = [prompt for prompt in prompts for _ in range(CLIPS_PER_PROMPT.value)]
    if any(not prompt.strip() for prompt in prompts):
        logger.warning("an empty prompt makes an unconditional clip")
    which = int(CHECKPOINT.value) if CHECKPOINT.value.isdigit() else CHECKPOINT.value
    mesh = local_mesh()
    trained = load_trained(WORKDIR.value, mesh, which=which)
    overrides = {
        "num_iterations": NUM_ITERATIONS.value,
        "guidance_scale": GUIDANCE_SCALE.value,
        "temperature": TEMPERATURE.value,
    }
    settings = dataclasses.replace(
        trained.config.decode,
        **{name: value for name, value in overrides.items() if value is not None},
    )
    generator = TokenGenerator(trained.model, settings, mesh, BATCH_SIZE.value)
    seeds = [SEED.value + index for index in range(len(prompts))]
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    origin = trained.origin() | {"stage": trained.config.stage}
    file_format = cast(AudioFormat, FORMAT.value)
    started = time.perf_counter()
    clips = generate(trained, generator, prompts, seeds)
    with open(out / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for index, clip in enumerate(tqdm.tqdm(clips, "generating", len(prompts), unit="clip")):
            name = f"{index:05d}_{slug(prompts[index])}.{FORMAT.value}"
            audio = playback_level(clip, rms_dbfs=RMS_DBFS.value)
            write_audio(out / name, audio, trained.codec.sample_rate, file_format)
            row = {
                "file": name,
                "prompt": prompts[index],
                "seed": seeds[index],
                "seconds": len(clip) / trained.codec.sample_rate,
                "settings": dataclasses.asdict(settings) | {"rms_dbfs": RMS_DBFS.value},
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
