"""Workdirs of which a file is damaged, missing or another one: as read, and as training goes on."""

from __future__ import annotations

import pathlib

from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.workdir.checkpoint import StoredCheckpoints
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.lock import only_training
from fasttta_jax.workdir.metrics_log import MetricsWriter, read_metrics
from tests.campaigns.damage import damaged, damaged_json, files_of, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World, meaning
from tests.campaigns.trying import RIGHT, SKIPPED, Kind, expect, may_refuse, nothing_runs, unchanged


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    workdir = link_tree(world.workdir, folder / "run")
    for part in ("codec", "text"):  # a run that begins anew writes over these, through links too
        for file in (workdir / part).iterdir():
            put(file, file.read_bytes())
    name = draw.pick(("config.json", "", "codec/", "text/", "checkpoints/", "metrics.jsonl"))
    name = draw.pick([found for found in files_of(workdir) if found.startswith(name)])
    _damage(draw, workdir, name)
    return draw.pick((_loaded, _loaded, _resumed, _read_metrics))(world, draw, workdir, name)


def _damage(draw: Draw, workdir: pathlib.Path, name: str) -> None:
    file = workdir / name
    content = file.read_bytes()
    match draw.below(5):
        case 0:
            file.unlink()
        case 1 | 2 if name.endswith(".json"):
            put(file, damaged_json(draw, content))
        case _:
            others = [
                (workdir / other).read_bytes() for other in files_of(workdir) if other != name
            ]
            put(file, damaged(draw, content, others))


def _loaded(world: World, draw: Draw, workdir: pathlib.Path, name: str) -> Kind:
    with unchanged(workdir), nothing_runs(), may_refuse(workdir):
        found = meaning(world.load(workdir))
    expect(found == world.of_run, "a workdir is read as another without a word")
    return RIGHT


def _resumed(world: World, draw: Draw, workdir: pathlib.Path, name: str) -> Kind:
    """What training does before its first step, without the programs."""
    config = Workdir(world.workdir).config()
    free = (
        ".training",
        "config.json",
        "metrics.jsonl",
        "events.",
        "codec/",
        "text/",
        "checksums.json",
    )
    with unchanged(workdir, free), may_refuse(workdir):
        own = Workdir(workdir)
        with only_training(own.path):
            own.prepare(config, EncodedDataset(world.encoded))
            own.codec(), own.text()
            StoredCheckpoints(workdir).steps()
            with MetricsWriter(workdir, start_step=2):
                pass
    found = Workdir(workdir).config()
    expect(found == config, "a run goes on with another config")
    rows = read_metrics(workdir)
    wanted = [row for row in read_metrics(world.workdir) if row["step"] <= 2]
    if name == "metrics.jsonl":
        return SKIPPED if len(rows) < len(wanted) else RIGHT
    expect(str(rows) == str(wanted), "metrics are others without a word")
    return RIGHT


def _read_metrics(world: World, draw: Draw, workdir: pathlib.Path, name: str) -> Kind:
    with unchanged(workdir), may_refuse("metrics.jsonl"):
        rows = read_metrics(workdir)
    if name == "metrics.jsonl":
        return SKIPPED
    expect(str(rows) == str(read_metrics(world.workdir)), "metrics are others without a word")
    return RIGHT
