"""Clips to a folder: a sound file each, pictures where they are asked for, and manifest.jsonl."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from fasttta_jax.audio.files import AudioFormat, playback_level, write_audio
from fasttta_jax.codecs import Codec
from fasttta_jax.config.checks import check, check_choice
from fasttta_jax.generation.decoding_figure import decoding_png
from fasttta_jax.generation.pipeline import Clip
from fasttta_jax.generation.prompts import slug
from fasttta_jax.report.spectrograms import spectrogram_png

MANIFEST_FILE = "manifest.jsonl"


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Where and how clips are written.

    Attributes:
      out: the folder; it is made where it is missing.
      format: of the sound files.
      rms_dbfs: loudness that every clip is brought to; None keeps what the model gives.
      pictures: beside every sound a PNG of its mel spectrogram, and one of how decoding filled it
        in for clips with states.
    """

    out: str
    format: AudioFormat = "wav"
    rms_dbfs: float | None = None
    pictures: bool = False

    def __post_init__(self) -> None:
        check_choice("format", self.format, AudioFormat)
        if self.rms_dbfs is not None:
            check(self.rms_dbfs <= 0, "rms_dbfs", self.rms_dbfs, "at most 0 (full scale)")


def write_clips(
    clips: Iterator[Clip], config: FolderConfig, codec: Codec, notes: Mapping[str, Any]
) -> None:
    """Writes clips one by one as they are made, each with its row of the manifest.

    Args:
      clips: what `Pipeline.generate` gives.
      config: where and how.
      codec: renders the states of decoding.
      notes: what every row says, beside file, prompt, seed and seconds.

    Raises:
      OSError: the folder or a file cannot be written.
    """
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / MANIFEST_FILE, "w", encoding="utf-8") as manifest:
        for index, clip in enumerate(clips):
            name = f"{index:05d}_{slug(clip.prompt)}"
            audio = playback_level(clip.audio, rms_dbfs=config.rms_dbfs)
            file = out / f"{name}.{config.format}"
            write_audio(file, audio, clip.sample_rate, config.format)
            if config.pictures:
                title = textwrap.shorten(clip.prompt, 60, placeholder=" ...")
                (out / f"{name}.png").write_bytes(spectrogram_png(audio, clip.sample_rate, title))
                if clip.states is not None:
                    strip = decoding_png(clip.states, clip.known, codec, title)
                    (out / f"{name}_decoding.png").write_bytes(strip)
            row = {
                "file": file.name,
                "prompt": clip.prompt,
                "seed": clip.seed,
                "seconds": clip.seconds,
                **notes,
            }
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest.flush()
