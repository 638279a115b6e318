"""Exported models of which a file is damaged, missing, another one or one too many.

Half of the damages are followed by new hashes, as a tool would write them that knows no better: the
model is then what its files say, or refused.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

from fasttta_jax.workdir.exported import HASHES_FILE
from tests.campaigns.damage import damaged, damaged_json, files_of, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World, meaning
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    model = link_tree(world.exported, folder / "model")
    names = files_of(model)
    name = draw.pick(names)
    file = model / name
    content = file.read_bytes()
    hashed = draw.chance() and name != HASHES_FILE
    match draw.below(6):
        case 0:
            file.unlink()
        case 1 | 2 if name.endswith(".json"):
            put(file, damaged_json(draw, content))
        case 3:
            more = draw.pick(("codec/more.npz", "text/vocab.txt", "model.bin", "codec/.hidden"))
            put(model / more, draw.bytes(20))
            name, file = more, model / more
        case _:
            others = [(model / other).read_bytes() for other in names if other != name]
            put(file, damaged(draw, content, others))
    if hashed and file.is_file():
        table = json.loads((model / HASHES_FILE).read_bytes())
        table["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        put(model / HASHES_FILE, json.dumps(table).encode())
    with unchanged(folder), nothing_runs(), may_refuse(model):
        found = meaning(world.load(model))
    if not hashed:
        expect(found == world.of_export, "an exported model is another without a word")
    return RIGHT
