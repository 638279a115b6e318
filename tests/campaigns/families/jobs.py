"""Folders of batch generation whose notes are damaged: the job goes on, or says what is wrong."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jaxtyping

from fasttta_jax.generation.job_folder import merge
from fasttta_jax.generation.prompts import Prompts
from tests.campaigns.damage import damaged, damaged_json, files_of, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged
from tests.support.stand_in_pipeline import job

PROMPTS = ("a loud tone", "rain", "a dog, barking")
STORES = ("files", "tar")


@contextlib.contextmanager
def _with_a_stand_in() -> Iterator[None]:
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _job(folder: pathlib.Path, store: str, overwrite: bool = False) -> Any:
    return job(folder, Prompts(PROMPTS), store=store, clips_per_shard=2, overwrite=overwrite)


def finished(world: World, store: str) -> pathlib.Path:
    """A job that is done, made once."""
    folder = world.path.parent / f"job-{store}"
    if not folder.exists():
        with _with_a_stand_in():
            _job(folder, store).run()
    return folder


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    store = draw.pick(STORES)
    whole = finished(world, store)
    out = link_tree(whole, folder / "out")
    (folder / "precious.wav").write_bytes(b"of somebody else")
    (out / "mine.txt").write_bytes(b"of somebody else")
    names = [name for name in files_of(out) if name != "mine.txt"]
    notes = [name for name in names if name.startswith("job/") or name == "manifest.jsonl"]
    name = draw.pick(draw.pick((notes, names)))
    file = out / name
    match draw.below(5):
        case 1 | 2 if name.startswith("job/"):
            changed = damaged_json(draw, file.read_bytes())
            put(file, _elsewhere(draw, changed))
        case 3 if name in notes:
            others = [(out / other).read_bytes() for other in notes if other != name]
            put(file, damaged(draw, file.read_bytes(), others))
        case _:
            file.unlink()
    overwrite = draw.chance(4)
    free = [f"out/{other}" for other in (*names, ".job.lock", "skipped.jsonl")]
    with unchanged(folder, free), nothing_runs(), _with_a_stand_in():
        if draw.chance(4):
            with may_refuse(out):
                merge(out)
            return RIGHT
        with may_refuse(out):
            result = _job(out, store, overwrite).run()
    expect(result.complete, "a job that is run again is not complete")
    for name in names:
        if name.endswith((".wav", ".tar")):
            same = (out / name).read_bytes() == (whole / name).read_bytes()
            expect(same, "a clip is another")
    rows = [(path / "manifest.jsonl").read_text() for path in (out, whole)]
    expect(rows[0] == rows[1], "the manifest is another without a word")
    return RIGHT


def _elsewhere(draw: Draw, note: bytes) -> bytes:
    """The note with files that lie outside of the folder."""
    found = json.loads(note)
    rows = found.get("rows") if isinstance(found, dict) else None
    if isinstance(rows, list) and rows and isinstance(rows[0], dict) and draw.chance():
        name = draw.pick(("../precious.wav", "mine.txt", "/etc/hostname", ".", ""))
        rows[0][draw.pick(("file", "shard"))] = name
    return json.dumps(found).encode()
