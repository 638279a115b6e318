"""How the parameters of every shipped config lie on two meshes, as text that can be compared.

    python -m tests.golden.shardings

writes the tables anew; look at what changed before it is committed.
"""

from __future__ import annotations

import pathlib
import re

import jax
from jax.sharding import AbstractMesh, AxisType

from benchmarks.measure import load_run_config
from fasttta_jax.parallel.mesh import AXES
from fasttta_jax.parallel.sharding import placements
from fasttta_jax.report.text_table import format_table
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder

FOLDER = pathlib.Path(__file__).parent / "shardings"
MESHES = ((16, 16, 1), (4, 16, 4))
CONFIGS = (
    "demo_teacher",
    "demo_student",
    "demo_guided",
    "esc10_teacher",
    "esc10_student",
    "soundscapes_teacher",
    "soundscapes_student",
    "scenes_teacher",
    "scenes_student",
    "scenes_guided",
    "tiny:pretraining",
    "tiny:teacher",
    "tiny:student",
    "tiny:guided",
    "impact_base:text",
    "impact_base:text_t5",
    "impact_base:text_clap",
    "impact_base:pretraining",
    "impact_large:text",
    "audiodear_base:text",
    "audiodear_large:text",
    "audiodear_base_guided:text",
    "demo_rivals:flow",
    "demo_rivals:consistency",
    "demo_rivals:shortcut_head",
    "rivals:flow",
    "rivals:trajectory",
)
LAYER = re.compile(r"(?<=coder_|block_)\d+")


def path_of(config: str) -> pathlib.Path:
    """The file of a config's table."""
    return FOLDER / f"{config.replace(':', '_')}.txt"


def table(config: str) -> str:
    """A row for every parameter; layers that lie alike share one."""
    name, _, argument = config.partition(":")
    run = load_run_config(f"configs/{name}.py" + (f":{argument}" if argument else ""), None)
    model = build_model(run, abstract_text_encoder(run.model.text))
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = []
    for sizes in MESHES:
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        found.append(placements(params, mesh))
    shapes = {
        name: leaf.shape for name, leaf in zip(found[0], jax.tree.leaves(params), strict=True)
    }
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, shape in shapes.items():
        cells = [" x ".join(map(str, shape))]
        for placed in found:
            cells += [str(tuple(placed[name].spec)), placed[name].warning and "*"]
        groups.setdefault((LAYER.sub("*", name), *cells), []).append(name)
    rows = [
        [key[0] if len(names) > 1 else names[0], str(len(names)), *key[1:]]
        for key, names in groups.items()
    ]
    columns = ["parameter", "layers", "shape"]
    for sizes in MESHES:
        columns += [" x ".join(map(str, sizes)), ""]
    text = format_table(columns, rows, num_names=len(columns))
    return text + "\n\n* fsdp splits it not at all, or into shards that fill no tile\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for config in CONFIGS:
        path_of(config).write_text(table(config), encoding="utf-8")


if __name__ == "__main__":
    main()
