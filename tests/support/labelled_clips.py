"""Clips with labels of events and attributes, as evaluation reads them; of one event and of two."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np

from data import embed_text, encode_latents
from data.common import records as builder
from tests.support import helpers

EVENTS = ("clicks", "noise", "tone")
NUM_CLIPS = {"train": 36, "validation": 8, "test": 20}
LENGTHS = (helpers.CLIP_SAMPLES, helpers.CLIP_SAMPLES - 2000, helpers.CLIP_SAMPLES + 3000)


def clips(split: str, *, labelled: bool = True) -> Iterator[builder.Clip]:
    """Every fifth clip holds two events; lengths vary; the tone is the third of them."""
    rng = np.random.default_rng(list(NUM_CLIPS).index(split))
    for index in range(NUM_CLIPS[split]):
        names = [EVENTS[index % 3]] + ([EVENTS[(index + 1) % 3]] if index % 5 == 4 else [])
        levels = dict.fromkeys(names, ("quiet", "loud")[index // 3 % 2])
        audio = sum(
            helpers.synthetic_audio(name, helpers.LEVELS[level], rng)
            for name, level in levels.items()
        )
        audio = np.pad(audio, (0, 4000))[: LENGTHS[index % len(LENGTHS)]]
        caption = " and ".join(f"a {levels[name]} {name}" for name in names)
        yield builder.Clip(
            id=f"{split}_{index}",
            audio=np.clip(audio, -1, 1).astype(np.float32),
            captions=[caption],
            labels={
                "events": names,
                "attributes": {name: {"level": level} for name, level in levels.items()},
                "mentioned": [{name: ["level"] for name in names}],
            }
            if labelled
            else {},
        )


def write_audio_data(
    folder: pathlib.Path, splits: dict[str, str], *, labelled: bool = True
) -> pathlib.Path:
    """A dataset whose splits hold the clips that `clips` makes for the names given."""
    made = {split: list(clips(name, labelled=labelled)) for split, name in splits.items()}
    helpers.write_clips(folder, "tiny", made)
    return folder


def write_dataset(folder: pathlib.Path) -> None:
    """Sounds in `audio` and their tokens and tokenizer in `encoded`, below a folder."""
    audio, encoded = folder / "audio", folder / "encoded"
    write_audio_data(audio, {split: split for split in NUM_CLIPS})
    encode_latents.encode(audio, encoded, helpers.fit_codec(audio, folder / "codec"))
    embed_text.fit(encoded, 300)
