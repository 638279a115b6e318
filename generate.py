"""Generates audio from text.

    python generate.py --prompt="a high bell rings nearby" --prompt="rain is falling fast" \\
        --out=sounds

This is the model that comes with the package; --workdir=runs/demo/student is one that you trained.
Clip i of the list uses seed + i and depends on nothing but its prompt, its seed and the settings.
The folder gets one sound file a clip and manifest.jsonl, which says how each was made.

To continue a sound, or to fill a gap in it, give the file and the seconds to keep:

    ... --audio=dog.wav --keep=0-1.28        continues after 1.28 s
    ... --audio=dog.wav --keep=0-1,2-2.56    makes what is between 1 and 2 s anew

The file should be as loud as the sounds that the model was trained on. Kept tokens come back
exactly; the sound of a clip is decoded as a whole, so that no joint is heard.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple, get_args

import tqdm
from absl import flags

from fasttta_jax import cli
from fasttta_jax.audio.files import AudioFormat
from fasttta_jax.generation.edits import Ranges, parse_ranges, read_known
from fasttta_jax.generation.folder import FolderConfig, write_clips
from fasttta_jax.generation.pipeline import GenerateConfig, Pipeline
from fasttta_jax.generation.prompts import read_prompts

logger = logging.getLogger("fasttta_jax.generate")


class Kept(NamedTuple):
    """What every clip keeps of a sound file: --audio and --keep as given, and ranges in seconds."""

    audio: str
    keep: str
    ranges: Ranges


class Request(NamedTuple):
    """What a command line asks for."""

    workdir: str | None
    which: str | int
    prompts: list[str]
    kept: Kept | None
    config: GenerateConfig
    folder: FolderConfig


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command in `values`."""

    def text(name: str, help: str, default: str | None = None, **options: bool) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values, **options)

    def whole(name: str, default: int | None, help: str, lowest: int) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lowest, flag_values=values)

    def number(name: str, help: str) -> None:
        flags.DEFINE_float(name, None, help, flag_values=values)

    text(
        "workdir",
        "Folder of a trained teacher or student, or of an exported model, or OWNER/NAME of one on "
        "the Hub. Default: the model that comes with the package.",
    )
    flags.DEFINE_multi_string(
        "prompt", [], "What to hear; may be given several times.", flag_values=values
    )
    text(
        "prompts", "File of prompts: .txt (one a line), .csv or .jsonl (column prompt or caption)."
    )
    text("out", "Folder for the sounds and manifest.jsonl.", required=True)
    flags.DEFINE_enum(
        "format", "wav", get_args(AudioFormat), "Format of the sound files.", flag_values=values
    )
    text("checkpoint", "Which one: last, best (lowest validation loss) or a step.", "last")
    whole("seed", 0, "Seed of the first clip.", 0)
    whole("clips_per_prompt", 1, "Clips for each prompt.", 1)
    whole("batch_size", 8, "Most clips computed together.", 1)
    whole(
        "num_iterations",
        None,
        "Decoding iterations, 1 to the number of tokens. Default: the run's.",
        1,
    )
    number("guidance_scale", "Classifier-free guidance; 1 is none. Default: the run's.")
    number("temperature", "Scale of the noise. Default: the run's.")
    number(
        "rms_dbfs",
        "Bring every clip to this loudness, e.g. -23. Default: the level that the model gives.",
    )
    text("audio", "Sound file of which --keep is kept in every clip.")
    text(
        "keep",
        "Seconds of --audio to keep: START-END, several with commas; whole token columns inside "
        "them.",
    )
    flags.DEFINE_bool(
        "pictures",
        False,
        "Beside every sound a PNG of its mel spectrogram, and one of how decoding filled it in.",
        flag_values=values,
    )


def parse(argv: Sequence[str]) -> Request:
    """What a command line asks for; `argv` begins with the program's name.

    Raises:
      absl.flags.Error: an unknown flag, one that is missing, or a value of the wrong type.
      ValueError: see `request_of`.
    """
    values = flags.FlagValues()
    define_flags(values)
    values(argv)
    return request_of(values)


def request_of(values: flags.FlagValues) -> Request:
    """What parsed flags ask for.

    Raises:
      ValueError: a value that is not allowed, flags that do not go together, no prompts.
      OSError: the file of prompts cannot be read.
    """
    prompts = list(values.prompt) + (read_prompts(values.prompts) if values.prompts else [])
    if not prompts:
        raise ValueError("there is nothing to generate: give --prompt or --prompts")
    return Request(
        values.workdir,
        int(values.checkpoint) if values.checkpoint.isdigit() else values.checkpoint,
        [prompt for prompt in prompts for _ in range(values.clips_per_prompt)],
        _kept(values.audio, values.keep),
        GenerateConfig(
            values.seed,
            values.batch_size,
            values.num_iterations,
            values.guidance_scale,
            values.temperature,
            with_states=values.pictures,
        ),
        FolderConfig(values.out, values.format, values.rms_dbfs, values.pictures),
    )


def _kept(audio: str | None, keep: str | None) -> Kept | None:
    if audio is None and keep is None:
        return None
    if audio is None or keep is None:
        missing = "--audio" if audio is None else "--keep"
        raise ValueError(f"{missing} is missing; --audio and --keep go together")
    return Kept(audio, keep, parse_ranges(keep))


def main() -> None:
    request = request_of(flags.FLAGS)
    prompts, config, kept = request.prompts, request.config, request.kept
    if any(not prompt.strip() for prompt in prompts):
        logger.warning("an empty prompt makes an unconditional clip")
    pipeline = Pipeline.open(request.workdir, request.which)
    trained, known = pipeline.trained, None
    if kept is not None:
        num_tokens = trained.config.model.num_tokens
        known = read_known(kept.audio, kept.ranges, trained.codec, num_tokens)
    started = time.perf_counter()
    clips = pipeline.generate(prompts, known=known, **dataclasses.asdict(config))
    settings = dataclasses.asdict(config.decode_config(trained.config.decode))
    settings["rms_dbfs"] = request.folder.rms_dbfs
    if kept is not None:
        settings |= {"audio": kept.audio, "keep": kept.keep}
    notes = {
        "settings": settings,
        "checkpoint": trained.origin() | {"objective": trained.config.objective},
    }
    bar = tqdm.tqdm(clips, "generating", len(prompts), unit="clip")
    write_clips(iter(bar), request.folder, trained.codec, notes)
    seconds = time.perf_counter() - started
    logger.info(
        "%d clips in %s, %.1f s with compilation", len(prompts), request.folder.out, seconds
    )


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.run(main)
