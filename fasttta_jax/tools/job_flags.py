"""Flags of what is to be made and where it goes: prompts, names, formats, levels, shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

from absl import flags

from fasttta_jax import cli
from fasttta_jax.audio.files import AudioFormat
from fasttta_jax.audio.loudness import Level
from fasttta_jax.generation.job_folder import check_folder
from fasttta_jax.generation.names import DEFAULT, NameTemplate
from fasttta_jax.generation.outputs import OutputConfig, Store
from fasttta_jax.generation.prompts import Prompts


class Wishes(NamedTuple):
    """What the flags say."""

    prompts: Prompts
    output: OutputConfig
    overwrite: bool


def define(values: flags.FlagValues) -> None:
    """Defines the flags in `values`."""

    def text(name: str, default: str | None, help: str, **options: bool) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values, **options)

    def whole(name: str, default: int | None, help: str, lowest: int = 1) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lowest, flag_values=values)

    def choice(name: str, default: str, names: Sequence[str], help: str) -> None:
        flags.DEFINE_enum(name, default, list(names), help, flag_values=values)

    def number(name: str, help: str) -> None:
        flags.DEFINE_float(name, None, help, flag_values=values)

    def switch(name: str, help: str) -> None:
        flags.DEFINE_bool(name, False, help, flag_values=values)

    flags.DEFINE_multi_string(
        "prompt", [], "What to hear; may be given several times.", flag_values=values
    )
    text(
        "prompts",
        None,
        "Table of prompts: .txt (one a line), .csv, .tsv, .jsonl or .json with a column prompt or "
        "caption, and where rows differ in them id, seed, negative, guidance, seconds.",
    )
    whole("seed", 0, "Seed of the first clip.", 0)
    whole("clips_per_prompt", 1, "Clips for each prompt.")
    whole("candidates", 1, "Clips for each one that is kept, the best by --rank.")
    text("out", None, "Folder for the sounds and manifest.jsonl.", required=True)
    choice("store", "files", get_args(Store), "Sound files, or shards of them as one file.")
    whole(
        "clips_per_shard",
        None,
        "Clips of a shard, which processes share. Default: 256, or 1024 where a shard is a file.",
    )
    choice("format", "wav", get_args(AudioFormat), "Format of the sounds.")
    text("name", DEFAULT, "Of the sound files; fields: index, id, prompt, slug, seed.")
    as_it_is = "Default: the level that the model gives."
    number("lufs", f"Bring every clip to this loudness, such as -23. {as_it_is}")
    number("peak_dbfs", f"Bring every clip's highest sample to this level. {as_it_is}")
    number("rms_dbfs", f"Bring every clip's root mean square to this level. {as_it_is}")
    switch(
        "pictures",
        "Beside every sound a PNG of its mel spectrogram, and one of how decoding filled it in.",
    )
    switch("overwrite", "Replace what other settings or other prompts made in the folder.")
    cli.define_share_flags(values)


def read(values: flags.FlagValues) -> Wishes:
    """What parsed flags say.

    Raises:
      ValueError: a value that is not allowed, flags that do not go together, no prompts.
      OSError: the table of prompts cannot be read.
    """
    output = OutputConfig(
        values.out,
        values.store,
        values.format,
        Level(values.lufs, values.peak_dbfs, values.rms_dbfs),
        NameTemplate(values.name),
        values.pictures,
        values.clips_per_shard,
    )
    check_folder(values.out)
    prompts = Prompts(
        tuple(values.prompt),
        values.prompts,
        values.clips_per_prompt,
        values.candidates,
        values.seed,
    )
    return Wishes(prompts, output, values.overwrite)
