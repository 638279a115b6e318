"""A run that has learned its student's guidance: any strength, resumed, exported."""

from __future__ import annotations

import pathlib
import shutil

import jax
import numpy as np
import pytest

from fasttta_jax.config import ConfigError, MeshConfig
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance import compilations
from fasttta_jax.systems import build_model
from fasttta_jax.tools.export import export
from fasttta_jax.training.initialization import open_init_from
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.restore import load_trained
from tests.support import helpers, world

PROMPTS = ["a loud tone", "a quiet noise", "clicks that are loud"]


@pytest.fixture(scope="module")
def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def pipeline(guided_run: pathlib.Path, one_device: jax.sharding.Mesh) -> Pipeline:
    return Pipeline.open(guided_run, mesh=one_device)


def tokens(pipeline: Pipeline, **settings) -> np.ndarray:
    clips = pipeline.generate(PROMPTS, seeds=[0, 1, 2], **settings)
    return np.stack([clip.tokens for clip in clips])


def test_another_strength_compiles_nothing(pipeline: Pipeline) -> None:
    compilations.count()
    first = tokens(pipeline, guidance_scale=2.0)
    before = compilations.count()
    second = tokens(pipeline, guidance_scale=3.5)
    third = tokens(pipeline, guidance_scale=[2.0, 3.5, 1.0])
    assert compilations.count().since(before).programs == 0
    assert not (first == second).all(axis=(1, 2)).any()
    np.testing.assert_array_equal(third[:2], [first[0], second[1]])


def test_a_negative_prompt_takes_two_passes_and_no_neighbour_notices(pipeline: Pipeline) -> None:
    alone = tokens(pipeline)
    mixed = tokens(pipeline, negative=["", "a loud noise", ""])
    np.testing.assert_array_equal(mixed[[0, 2]], alone[[0, 2]])
    assert not np.array_equal(mixed[1], alone[1])
    every = tokens(pipeline, negative="a loud noise", guidance_scale=9.0)
    assert np.isfinite(every).all()


@pytest.mark.parametrize("scale", [0.5, 6.5])
def test_a_strength_that_it_has_not_learned_is_refused(pipeline: Pipeline, scale: float) -> None:
    message = rf"guidance_scale is {scale}; allowed: from 1 to 6, what this model has learned"
    with pytest.raises(ConfigError, match=message):
        pipeline.generate(PROMPTS, guidance_scale=scale)


def test_it_keeps_the_students_head_and_resumes_as_if_nothing_had_been(
    guided_run: pathlib.Path,
    runs: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    one_device: jax.sharding.Mesh,
) -> None:
    whole = load_trained(guided_run, one_device).params
    head = load_trained(runs["student"], one_device).params["head"]
    jax.tree.map(np.testing.assert_array_equal, whole["head"], head)
    assert np.any(whole["backbone"]["strength_out"]["kernel"])
    copy = tmp_path / "copy"
    shutil.copytree(guided_run, copy)
    shutil.rmtree(copy / "checkpoints" / str(world.STUDENT_STEPS))
    Trainer(Workdir(copy).config(), copy, devices=jax.devices()[:1]).run()
    jax.tree.map(np.testing.assert_array_equal, load_trained(copy, one_device).params, whole)


def test_it_is_exported_whole_and_starts_from_an_exported_student(
    guided_run: pathlib.Path,
    runs: dict[str, pathlib.Path],
    encoded_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    one_device: jax.sharding.Mesh,
) -> None:
    export(str(guided_run), str(tmp_path / "exported"))
    run, model = (load_trained(one, one_device) for one in (guided_run, tmp_path / "exported"))
    jax.tree.map(np.testing.assert_array_equal, run.params, model.params)
    assert run.model == model.model
    export(str(runs["student"]), str(tmp_path / "student"))
    config = helpers.tiny_guided_config(encoded_dataset, tmp_path / "student")
    workdir = Workdir(tmp_path / "run")
    workdir.prepare(config, EncodedDataset(config.data.path))
    source = open_init_from(config, workdir, one_device, build_model(config, workdir.text()))
    assert source is not None
    assert source.teacher is not None
    assert all("strength" in name for name in source.report.fresh)
    assert not source.report.unused
