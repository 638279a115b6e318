"""What benchmarks.structure measures: real soundscapes have it, sounds that are cut up have not."""

import functools

import numpy as np
import pytest

from benchmarks import structure
from data.soundscapes.build import SAMPLE_RATE, make_clip, make_scene
from fasttta_jax.evaluation.clips import Clips

EVENTS = ("siren", "clock", "footsteps", "alarm")


@functools.cache
def real_clips() -> Clips:
    """Twelve near sounds of each event alone, from the training split."""
    rows: list[int] = []
    for event in EVENTS:
        scenes = ((row, make_scene(0, "train", row)) for row in range(2000))
        found = [
            row
            for row, scene in scenes
            if scene.events == (event,) and scene.attributes[event]["distance"] == "near"
        ]
        rows += found[:12]
    clips = [make_clip(0, "train", row) for row in rows]
    audio = np.stack([clip.audio for clip in clips]).astype(np.float32)
    return Clips(audio, tuple(clip.captions[0] for clip in clips), tuple(c.labels for c in clips))


def cut_up(clips: Clips) -> Clips:
    """The same clips with their sixteenths in another order."""
    order = np.random.default_rng(0).permutation(16)
    pieces = clips.audio.reshape(len(clips), 16, -1)[:, order]
    return clips.with_audio(pieces.reshape(clips.audio.shape))


def test_order_in_time_is_heard() -> None:
    real, broken = real_clips(), cut_up(real_clips())
    ranges = structure.rates_of(real, SAMPLE_RATE)
    assert set(ranges) == {
        *((event, speed) for event in ("clock", "footsteps") for speed in ("slow", "fast")),
        ("alarm", ""),
    }
    good = structure.structure_row(real, SAMPLE_RATE, 16, ranges)
    bad = structure.structure_row(broken, SAMPLE_RATE, 16, ranges)
    assert good["border_steps"] == pytest.approx(1.0, abs=0.05)
    assert good["wail"] > 0.95
    for event in structure.RHYTHMIC:
        # Of twelve rates, at least all but the ends lie between their own 5 % and 95 %.
        assert good[f"{event}_rate_right"] >= 8 / 12
        assert bad[f"{event}_regularity"] < good[f"{event}_regularity"]
    assert bad["wail"] < 0.8
    table = structure.to_markdown({"real": {**good, "two_sample": None}})
    assert "| wail | " in table
    assert "| two sample | – |" in table


def test_a_network_tells_kinds_apart_where_there_is_something_to_hear() -> None:
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((64, 8000)).astype(np.float32)
    hum = noise[:32] + 0.1 * np.sin(2 * np.pi * 500 * np.arange(8000, dtype=np.float32) / 16_000)
    right, fitted = structure.two_sample(
        (hum[:24], hum[24:]), (noise[32:56], noise[56:]), seed=0, num_steps=30
    )
    assert right.shape == (16,)
    assert right.all()
    assert fitted == 1
