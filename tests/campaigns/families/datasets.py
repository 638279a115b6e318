"""Datasets of audio and of tokens of which a file is damaged, missing or another one."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import numpy as np

from data.common.sources import open_audio_source
from fasttta_jax.config import TextConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.text import load_text_encoder
from tests.campaigns.damage import damaged, damaged_json, files_of, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World, codec_meaning, text_meaning
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged
from tests.support import helpers

SPLITS = ("train", "validation", "test")


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    source, read = draw.pick(((world.encoded, encoded), (world.audio, audio)))
    data = link_tree(source, folder / "data")
    names = files_of(data)
    name = draw.pick(("records", "codec", "text", ""))
    name = draw.pick([found for found in names if found.startswith(name)] or names)
    file = data / name
    match draw.below(5):
        case 0:
            file.unlink()
        case 1 | 2 if name.endswith(".json"):
            put(file, damaged_json(draw, file.read_bytes()))
        case _:
            others = [(data / other).read_bytes() for other in names if other != name]
            put(file, damaged(draw, file.read_bytes(), others))
    with unchanged(folder), nothing_runs(), may_refuse(data):
        found = read(data)
    right = _right(read, source)
    if read is encoded and name.startswith("text/"):  # compared when a run begins, and then kept
        found, right = found[:2], right[:2]
    expect(found == right, f"{read.__name__} data are read as others without a word")
    return RIGHT


@functools.cache
def _right(read: Any, path: pathlib.Path) -> Any:
    return read(path)


def encoded(path: pathlib.Path) -> Any:
    """All that training reads of a dataset of tokens."""
    dataset = EncodedDataset(path)
    dataset.check(helpers.tiny_model_config())
    records = [_plain(record) for split in SPLITS for record in _all(dataset.split(split))]
    text = load_text_encoder(dataset.text_folder, TextConfig(num_positions=8, width=16))
    return records, codec_meaning(dataset.codec), text_meaning(text)


def _all(records: Any) -> list[Any]:
    return [records[index] for index in range(len(records))]


def audio(path: pathlib.Path) -> Any:
    """All that encoding reads of a dataset of audio."""
    source = open_audio_source(path, helpers.SAMPLE_RATE)
    found = []
    for split, length in source.lengths.items():
        for index in range(length):
            for clip in source.read(split, index):
                found.append((split, clip.id, clip.audio.tobytes(), clip.captions, clip.labels))
    return found


def _plain(record: Any) -> Any:
    return {
        name: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray)
        else json.dumps(value)
        for name, value in record.items()
    }  # fmt: skip
