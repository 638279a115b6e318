"""Builds the `soundscapes` dataset: short captioned clips of synthetic sound events.

    python -m data.soundscapes --out runs/demo/data --num_train 6000 --num_test 600 --workers 2

Nothing is downloaded. Every clip is 16 kHz mono and holds one of twelve events (70 % of the clips),
two at the same time (15 %) or two in sequence (15 %). Longer clips may hold more:

    python -m data.soundscapes --out runs/scenes/data --clip_seconds 10.24 --max_events 4

has one event (30 %), two at the same time (10 %) or two to four in sequence (60 %). Every event has
a pitch or a speed, and a distance. Training clips have three captions, validation clips one, and
test clips one in a wording that training never uses. 6900 clips of 2.56 s take about a minute on
two cores, and 430 MB.

The dataset is stored as OUT/soundscapes/1.0.0, in TFDS format on ArrayRecord shards. A clip depends
on nothing but (seed, split, index), so the result is the same for any number of workers.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pathlib
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from data.common.records import Clip, audio_dataset, to_records
from data.common.shards import Item
from data.common.tables import SPLITS
from data.soundscapes import (
    caption_grammar,
    events,
    synthesis,
)

NAME = "soundscapes"
VERSION = "2"
"""Kept with the dataset; changes whenever the same settings would give other clips or captions."""

SAMPLE_RATE = 16_000
CLIP_SECONDS = 2.56
NUM_CAPTIONS = {"train": 3, "validation": 1, "test": 1}
DESCRIPTION = (
    "Synthetic scenes of one to four of twelve sound events, with captions from a grammar."
)

# Every run of 20 clips holds exactly these, so that any prefix of a split is balanced.
_BLOCK = ("single",) * 14 + ("together",) * 3 + ("sequence",) * 3
_BLOCK_OF_SCENES = ("single",) * 6 + ("together",) * 2 + ("sequence",) * 12
MAX_EVENTS = 2
_SINGLES = tuple(
    (event, own, distance)
    for event in events.EVENTS
    for own in events.AXES[events.EVENT_AXES[event][0]]
    for distance in events.AXES["distance"]
)
_PAIRS = tuple((a, b) for a in events.EVENTS for b in events.EVENTS if a != b)
_WORK_UNIT = 512


def _generator(seed: int, split: str, stream: str, index: int) -> np.random.Generator:
    # Named streams: changing how many numbers one of them takes leaves the others as they were.
    streams = ("block", "single", "together", "sequence", "attributes", "audio", "captions")
    key = (SPLITS.index(split), streams.index(stream), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def make_scene(seed: int, split: str, index: int, *, max_events: int = MAX_EVENTS) -> events.Scene:
    """Scene `index` of a split: shuffled cycles through all conditions, so each is as frequent.

    Of a sequence of more than two events, the first two are such a condition.
    """
    kinds = _BLOCK if max_events == MAX_EVENTS else _BLOCK_OF_SCENES
    block, position = divmod(index, len(kinds))
    arrangements = _generator(seed, split, "block", block).permutation(kinds)
    arrangement = str(arrangements[position])
    ordinal = block * kinds.count(arrangement)
    ordinal += int(np.sum(arrangements[:position] == arrangement))
    conditions = _SINGLES if arrangement == "single" else _PAIRS
    cycle, place = divmod(ordinal, len(conditions))
    order = _generator(seed, split, arrangement, cycle).permutation(len(conditions))
    condition = conditions[order[place]]
    if arrangement == "single":
        event, *values = condition
        attributes = {event: dict(zip(events.EVENT_AXES[event], values, strict=True))}
        return events.Scene(arrangement, (event,), attributes)
    rng = _generator(seed, split, "attributes", index)
    if arrangement == "sequence" and max_events > MAX_EVENTS:
        others = rng.permutation([event for event in events.EVENTS if event not in condition])
        more = int(rng.integers(max_events - len(condition) + 1))
        condition = (*condition, *map(str, others[:more]))
    attributes = {
        event: {axis: str(rng.choice(events.AXES[axis])) for axis in events.EVENT_AXES[event]}
        for event in condition
    }
    return events.Scene(arrangement, condition, attributes)


def make_clip(
    seed: int,
    split: str,
    index: int,
    *,
    clip_seconds: float = CLIP_SECONDS,
    max_events: int = MAX_EVENTS,
) -> Clip:
    """One clip with its captions and labels.

    Args:
      seed: seed of the dataset.
      split: "train", "validation" or "test".
      index: place in the split, from 0.
      clip_seconds: length of the audio.
      max_events: most events of a sequence.

    Returns:
      A clip whose labels are "events", "attributes" (both axes of every event), "mentioned" (for
      each caption, the axes it mentions by event) and "arrangement".

    Raises:
      ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {SPLITS}")
    scene = make_scene(seed, split, index, max_events=max_events)
    audio = synthesis.render(
        scene,
        _generator(seed, split, "audio", index),
        round(clip_seconds * SAMPLE_RATE),
        SAMPLE_RATE,
    )
    rng = _generator(seed, split, "captions", index)
    described: dict[str, caption_grammar.Mentioned] = {}
    while len(described) < NUM_CAPTIONS[split]:
        caption, mentioned = caption_grammar.describe(scene, rng, held_out=split == "test")
        described[caption] = mentioned
    return Clip(
        id=f"{split}_{index:06d}",
        audio=audio,
        captions=list(described),
        labels={
            "events": list(scene.events),
            "attributes": {event: dict(scene.attributes[event]) for event in scene.events},
            "mentioned": list(described.values()),
            "arrangement": scene.arrangement,
        },
    )


def _make_clip_of(task: tuple[int, str, int, float, int]) -> Clip:
    seed, split, index, clip_seconds, max_events = task
    return make_clip(seed, split, index, clip_seconds=clip_seconds, max_events=max_events)


def _metadata(
    num_clips: dict[str, int], seed: int, clip_seconds: float, max_events: int
) -> dict[str, Any]:
    # Sets of two events at most are those of the time before there were longer ones.
    longer = {} if max_events == MAX_EVENTS else {"max_events": max_events}
    return {
        "events": list(events.EVENTS),
        "axes": {axis: list(values) for axis, values in events.AXES.items()},
        "event_axes": {event: list(axes) for event, axes in events.EVENT_AXES.items()},
        "num_clips": num_clips,
        "seed": seed,
        "clip_seconds": clip_seconds,
        **longer,
        "version": VERSION,
    }


def build(
    out: str | pathlib.Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int,
    workers: int,
    clip_seconds: float = CLIP_SECONDS,
    max_events: int = MAX_EVENTS,
    process_id: int = 0,
    num_processes: int = 1,
) -> pathlib.Path:
    """Writes the dataset under `out` and returns its folder; what is already there is kept.

    Args:
      out: parent folder.
      num_train: training clips.
      num_validation: validation clips.
      num_test: test clips.
      seed: seed of everything random.
      workers: processes that synthesise; 1 uses this process alone.
      clip_seconds: length of every clip.
      max_events: most events of a sequence, 2 to 4.
      process_id: which of the processes on several hosts this is.
      num_processes: how many share the work.

    Raises:
      ValueError: a count or the length is not positive, or the folder holds a dataset with other
        settings.
    """
    num_clips = {"train": num_train, "validation": num_validation, "test": num_test}
    counts = {f"num_{split}": count for split, count in num_clips.items()} | {"workers": workers}
    for field, count in counts.items():
        if count < 1:
            raise ValueError(f"{field} is {count}; it must be at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if not 1.0 <= clip_seconds <= 60.0:
        raise ValueError(f"clip_seconds is {clip_seconds}; it must be between 1 and 60")
    most = max(events.ARRANGEMENTS["sequence"])
    if not MAX_EVENTS <= max_events <= most:
        raise ValueError(f"max_events is {max_events}; allowed: {MAX_EVENTS} to {most}")
    metadata = _metadata(num_clips, seed, clip_seconds, max_events)
    dataset = audio_dataset(
        out, name=NAME, description=DESCRIPTION, lengths=num_clips, settings=metadata
    )

    def read(items: Iterator[Item]) -> Generator[list[Clip], None, None]:
        # In units of work, so that workers never run far ahead of the writer.
        tasks = ((seed, split, index, clip_seconds, max_events) for split, index in items)
        units = iter(lambda: list(itertools.islice(tasks, _WORK_UNIT)), [])
        if workers == 1:
            yield from ([_make_clip_of(task)] for unit in units for task in unit)
            return
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for unit in units:
                yield from ([clip] for clip in pool.imap(_make_clip_of, unit, chunksize=8))

    dataset.make(
        read,
        to_records,
        lambda _: {"sample_rate": SAMPLE_RATE, **metadata},
        process_id=process_id,
        num_processes=num_processes,
    )
    return dataset.path
