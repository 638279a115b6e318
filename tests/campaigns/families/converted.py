"""Folders of converted networks of which a file is damaged, or describes another network."""

from __future__ import annotations

import functools
import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from fasttta_jax.pretrained import hifigan, t5, vae
from fasttta_jax.storage.weights import METADATA_FILE, WEIGHTS_FILE, read_converted
from tests.campaigns.damage import damaged, damaged_json, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged
from tests.support.conversions import random_t5, random_vae, random_vocoder

KINDS = {
    "t5": (random_t5, t5.load),
    "vae": (random_vae, vae.load),
    "hifigan": (random_vocoder, hifigan.load),
}


@functools.cache
def folder_of(path: pathlib.Path, kind: str) -> pathlib.Path:
    """A folder of random weights of a kind, made once below another folder."""
    folder = path / f"converted-{kind}"
    if not folder.exists():
        KINDS[kind][0](folder)
    return folder


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    kind = draw.pick(list(KINDS))
    copy = link_tree(folder_of(world.path.parent, kind), folder / kind)
    weights, described = copy / WEIGHTS_FILE, copy / METADATA_FILE
    match draw.below(5):
        case 0:
            put(described, damaged_json(draw, described.read_bytes()))
        case 1:
            file = draw.pick((weights, described))
            put(file, damaged(draw, file.read_bytes(), [described.read_bytes()]))
        case 2:
            draw.pick((weights, described)).unlink()
        case 3:
            arrays = load_file(weights)
            name = draw.pick(sorted(arrays))
            values = arrays.pop(name)
            new = draw.pick((f"{name}/more", name.rpartition("/")[0] or "x", "", "more/of/it"))
            arrays[new] = draw.pick((values, values[..., None], values.astype(np.float16)))
            weights.unlink()
            save_file(arrays, weights)
        case _:
            values = json.loads(described.read_bytes())
            other = draw.pick(list(KINDS))
            values["kind"] = other
            put(described, json.dumps(values).encode())
    with unchanged(folder), nothing_runs(), may_refuse(copy):
        _, params = KINDS[kind][1](copy)
    expect(bool(jax.tree.leaves(params)), "a network has no parameters")
    with may_refuse(copy):
        read_converted(copy)
    return RIGHT
