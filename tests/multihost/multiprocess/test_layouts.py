"""A student's run and its sounds are the same on one device, eight of one host, and two hosts.

Every layout goes on from the same checkpoint, step 37 of the student that all tests share. Before
that Adam's moments are those of a few batches, and where a gradient is all but zero they turn its
rounding into a share of a full step. The student's step includes its frozen teacher.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from fasttta_jax.config import MeshConfig, RunConfig
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.restore import load_trained
from tests.decoding.test_models import decode_rounding
from tests.multihost.multiprocess import sample_program
from tests.support import helpers, launch, world
from tests.support.tolerance import assert_close, model_terms, rounding

LAYOUTS = ((8, 1, 1), (2, 4, 1), (2, 2, 2))
BIAS_OF_KEYS = "qkv/bias"


def unfinished(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of a workdir that ends three steps before the last."""
    workdir = tmp_path / "unfinished"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(world.STUDENT_STEPS))
    shutil.rmtree(workdir / "samples")
    return workdir


def config_on(
    mesh: MeshConfig, workdir: pathlib.Path, sample_prompts: tuple[str, ...]
) -> RunConfig:
    config = Workdir(workdir).config()
    return dataclasses.replace(config, mesh=mesh, sample_prompts=sample_prompts)


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The averaged parameters by name; biases of keys, whose gradient is rounding, left out."""
    params = load_trained(str(workdir), make_mesh(MeshConfig())).params
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(entry.key for entry in path)
        value = np.asarray(leaf)
        found[name] = np.delete(value, 1, axis=0) if name.endswith(BIAS_OF_KEYS) else value
    return found


def assert_same_run(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Losses to the rounding of sums in another order, parameters to a hundredth of a step.

    The energy score of a loss is a difference of two sums, off by the error of both.
    """
    bound = 2 * rounding(model_terms(helpers.tiny_model_config()))
    rows = zip(helpers.rows_of(workdir), helpers.rows_of(expected), strict=True)
    for found, wanted in rows:
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=bound, err_msg=f"{name}: {wanted}")
    theirs = parameters(expected)
    for name, value in parameters(workdir).items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_hosts_train_the_same(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    saved = unfinished(runs["student"], tmp_path)
    config = config_on(MeshConfig(2, 2, 2), runs["student"], sample_prompts=("a loud tone",))
    file = helpers.run_config_file(config, tmp_path / "run.py")
    command = helpers.train_command(file, saved)
    launch.run(command, num_processes=2, devices_per_process=4, timeout=300)
    assert_same_run(saved, runs["student"])
    assert list((saved / "samples" / f"{world.STUDENT_STEPS:08d}").glob("*.wav"))


def trained_on(
    layout: tuple[int, int, int],
    workdir: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trains a copy of a run from its last checkpoint but one, and compares."""
    monkeypatch.setattr("fasttta_jax.parallel.sharding.MIN_FSDP_SIZE", 64)
    saved = unfinished(workdir, tmp_path)
    state = Trainer(config_on(MeshConfig(*layout), workdir, sample_prompts=()), saved).run()
    assert_same_run(saved, workdir)
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params)]
    assert any(split) == (layout != (8, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [LAYOUTS[0], *(pytest.param(one, marks=pytest.mark.long) for one in LAYOUTS[1:])]
)
def test_eight_devices_train_the_same(
    layout: tuple[int, int, int],
    runs: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third is that of two hosts above."""
    trained_on(layout, runs["student"], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_learn_the_same_guidance(
    layout: tuple[int, int, int],
    guided_run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The frozen student runs on a doubled batch, whose halves stay on the device of their clip."""
    trained_on(layout, guided_run, tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_layout_makes_the_same_sound(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """Tokens to float32 rounding of the network; audio to the last of 16 bits."""
    student = runs["student"]
    expected = sample_program.sample(student, MeshConfig(), jax.devices()[:1])
    found = {layout: sample_program.sample(student, MeshConfig(*layout)) for layout in LAYOUTS}
    out = tmp_path / "two_hosts.npz"
    program = [
        "-m",
        "tests.multihost.multiprocess.sample_program",
        str(student),
        str(out),
        "2",
        "2",
        "2",
    ]
    launch.run(program, num_processes=2, devices_per_process=4, timeout=300)
    with np.load(out) as two_hosts:
        results = [*found.values(), dict(two_hosts)]
    assert np.abs(expected["tokens"]).max() > 0.1
    assert np.abs(expected["audio"]).max() > 1e-3
    for result in results:
        assert_close(
            result["tokens"],
            expected["tokens"],
            decode_rounding("energy", Workdir(student).config().decode),
        )
        np.testing.assert_allclose(result["audio"], expected["audio"], atol=1 / 2**15)
