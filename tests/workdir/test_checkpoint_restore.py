"""A trained run from its workdir: the averaged parameters on any mesh, and no trace left there."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.config import MeshConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.systems import build_model
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import Workdir, WorkdirError
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.restore import load_trained
from tests.support import helpers

METRICS: dict[int, dict[str, float] | None] = {
    3: {"loss": 0.1, "mse": 0.2},
    6: {"loss": 0.2, "mse": 0.1},
    7: None,
}


@pytest.fixture(scope="module")
def run(
    encoded_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, dict[int, Any]]:
    """A workdir with three checkpoints that cannot be written, and the averages of each."""
    workdir = tmp_path_factory.mktemp("restore") / "run"
    config = helpers.tiny_teacher_config(encoded_dataset, best_metric="mse")
    folder = Workdir(workdir)
    folder.prepare(config, EncodedDataset(config.data.path))
    shapes = jax.eval_shape(build_model(config, folder.text()).init, jax.random.key(0))
    checkpoints = Checkpoints(workdir, keep=3)
    averages = {step: helpers.random_params(shapes, seed=step) for step in METRICS}
    for step, metrics in METRICS.items():
        rest = {"params": jax.tree.map(np.zeros_like, averages[step])}
        checkpoints.save(step, {"rest": rest, "ema": averages[step]}, metrics)
    checkpoints.close()
    for path in (workdir / "checkpoints").glob("*/rest"):
        shutil.rmtree(path)  # so only the averages can be read
    for path in workdir.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    return workdir, averages


def listing(workdir: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(workdir.rglob("*"))}


@pytest.mark.parametrize(("which", "step"), [("last", 7), ("best", 6), (3, 3)])
def test_averages_come_alone_onto_any_mesh(
    run: tuple[pathlib.Path, dict[int, Any]], which: str | int, step: int
) -> None:
    workdir, averages = run
    before = listing(workdir)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    trained = load_trained(str(workdir), mesh, which=which)
    assert listing(workdir) == before
    assert trained.step == step
    jax.tree.map(np.testing.assert_array_equal, trained.params, averages[step])
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(trained.params))
    assert trained.origin() == {
        "workdir": str(workdir),
        "step": step,
        "sha256": tree_hash(averages[step]),
    }


def test_checkpoints_that_are_not_there(
    run: tuple[pathlib.Path, dict[int, Any]], tmp_path: pathlib.Path
) -> None:
    workdir, _ = run
    mesh = make_mesh(MeshConfig())
    with pytest.raises(WorkdirError, match=r"checkpoint is 'first'; allowed: last, best or one of"):
        load_trained(str(workdir), mesh, which="first")
    for name in ("config.json", "text", "codec"):
        source = workdir / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    with pytest.raises(WorkdirError, match="holds no checkpoint yet"):
        load_trained(str(tmp_path), mesh)
    assert not (tmp_path / "checkpoints").exists()
    shutil.copytree(workdir / "checkpoints" / "7", tmp_path / "checkpoints" / "7")
    with pytest.raises(WorkdirError, match=r"'best' \(none has the metric 'mse'\); allowed: last"):
        load_trained(str(tmp_path), mesh, which="best")
