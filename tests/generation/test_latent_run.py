"""Runs of networks that move all tokens together: trained, taught, resumed, exported, heard."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from fasttta_jax.config import ConfigError, DistillationConfig, FlowConfig, MeshConfig, RunConfig
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation.edits import EditError
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.systems import FullLatent, build_model
from fasttta_jax.tools.export import export
from fasttta_jax.training.initialization import open_init_from
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.restore import load_trained
from tests.support import helpers
from tests.support.latent_runs import latent_config, save_flow, with_flow

STEPS, SAVED = 12, 8
PROMPTS = ["a loud tone", "a quiet noise"]
STARTS = DistillationConfig(backbone_from_teacher=True, head_from_teacher=True)


def config_of(kind: str, encoded: pathlib.Path, teacher: pathlib.Path | None) -> RunConfig:
    run = latent_config(kind)
    return dataclasses.replace(
        run,
        num_steps=STEPS,
        evaluate_every=STEPS,
        checkpoint_every=SAVED,
        data=dataclasses.replace(run.data, path=str(encoded)),
        optimizer=dataclasses.replace(run.optimizer, warmup_steps=0, decay_steps=0),
        init_from="" if teacher is None else str(teacher),
        distillation=DistillationConfig() if teacher is None else STARTS,
        sample_prompts=("a loud tone",),
    )


@pytest.fixture(scope="module")
def flows(
    encoded_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """A flow, and what follows it by consistency."""
    folder, one = tmp_path_factory.mktemp("flows"), jax.devices()[:1]
    found = {name: folder / name for name in ("flow", "consistency")}
    Trainer(config_of("flow", encoded_dataset, None), found["flow"], devices=one).run()
    config = config_of("consistency", encoded_dataset, found["flow"])
    Trainer(config, found["consistency"], devices=one).run()
    return found


@pytest.fixture(scope="module")
def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    flows: dict[str, pathlib.Path], tmp_path: pathlib.Path, one_device: jax.sharding.Mesh
) -> None:
    """Its target network and its optimizer, too; it has the rows of metrics and a sample sheet."""
    whole, copy = flows["consistency"], tmp_path / "copy"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    state = Trainer(Workdir(copy).config(), copy, devices=jax.devices()[:1]).run()
    expected = load_trained(whole, one_device).params
    jax.tree.map(np.testing.assert_array_equal, load_trained(copy, one_device).params, expected)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.target, state.params)
    assert any(jax.tree.leaves(moved))
    row = helpers.rows_of(whole)[-1]
    assert {"consistency", "velocity_error", "loss"} <= {name.split("/")[-1] for name in row}
    assert list((whole / "samples" / f"{STEPS:08d}").glob("*.wav"))


def test_it_starts_as_its_teacher(
    flows: dict[str, pathlib.Path], one_device: jax.sharding.Mesh
) -> None:
    teacher = load_trained(flows["flow"], one_device)
    config = Workdir(flows["consistency"]).config()
    folder = Workdir(flows["consistency"])
    source = open_init_from(config, folder, one_device, build_model(config, folder.text()))
    assert source is not None
    first = source.initialization(build_model(config, folder.text()))(
        jax.random.key(0), source.params
    )
    jax.tree.map(np.testing.assert_array_equal, first["head"], teacher.params["head"])
    assert all("strength" in name for name in source.report.fresh)


def test_it_is_heard_from_a_workdir_and_exported(
    flows: dict[str, pathlib.Path], tmp_path: pathlib.Path, one_device: jax.sharding.Mesh
) -> None:
    export(str(flows["consistency"]), str(tmp_path / "exported"))
    sounds = []
    for source in (flows["consistency"], tmp_path / "exported"):
        pipeline = Pipeline.open(source, mesh=one_device)
        assert isinstance(pipeline.trained.model, FullLatent)
        clips = list(pipeline.generate(PROMPTS, seeds=[0, 1], num_iterations=4))
        assert all(np.isfinite(clip.audio).all() for clip in clips)
        sounds.append([clip.tokens for clip in clips])
    np.testing.assert_array_equal(*sounds)
    with pytest.raises(
        ConfigError, match=r"guidance_scale is 7\.0; allowed: from 1 to 6, what this"
    ):
        pipeline.generate(PROMPTS, guidance_scale=7.0)
    with pytest.raises(ConfigError, match=r"decode\.num_iterations is 9; allowed: from 1 to flow"):
        list(pipeline.generate(PROMPTS, num_iterations=9))
    for asked, named in (
        ({"seconds": 3.0}, r"seconds above 0\.64"),
        ({"loop": True, "seconds": 3.0}, r"loop and seconds above"),
        ({"timeline": "0-0.3 a tone; 0.3-0.6 noise"}, "timeline"),
        ({"known": Known(np.zeros((1, 8, 8), np.float32), np.zeros((1, 8), bool))}, "known"),
    ):
        with pytest.raises(EditError, match=rf"this model cannot have {named}.*: its network"):
            pipeline.generate(PROMPTS, **asked)
    assert all(len(clip.audio) for clip in pipeline.generate(PROMPTS, seconds=0.3))


def test_a_model_may_not_have_learned_to_go_without_guidance(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path, one_device: jax.sharding.Mesh
) -> None:
    """Every clip by its own scale within the range, which holds neither 1 nor 2."""
    flow = with_flow("consistency", guidance_low=3.0).flow
    config = latent_config("consistency", encoded_dataset, flow=flow)
    folder = save_flow(tmp_path / "run", config, encoded_dataset)
    pipeline = Pipeline.open(folder, mesh=one_device)

    def tokens(seeds: list[int], scale: float | list[float]) -> np.ndarray:
        prompts = PROMPTS[: len(seeds)]
        clips = pipeline.generate(prompts, seeds=seeds, guidance_scale=scale, batch_size=2)
        return np.stack([clip.tokens for clip in clips])

    weak, strong = tokens([4, 5], 3.0), tokens([4, 5], 6.0)
    assert not np.allclose(weak, strong)
    np.testing.assert_array_equal(tokens([4, 5], [6.0, 3.0]), [strong[0], weak[1]])
    with pytest.raises(ConfigError, match=r"guidance_scale is 1\.0; allowed: from 3 to 6, what"):
        tokens([4], 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "init_from is ''; allowed: the workdir of a teacher, which"),
        ({"init_from": "student"}, r"model\.network is 'latent'; the teacher in .* has 'masked'"),
        (
            {"init_from": "consistency"},
            "a run of objective 'consistency'; allowed: one of 'flow', where objective is",
        ),
        ({"width": 16}, r"model\.backbone\.width is 16; .* whose backbone has 32"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    changes: dict[str, object],
    message: str,
    flows: dict[str, pathlib.Path],
    runs: dict[str, pathlib.Path],
    encoded_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    one_device: jax.sharding.Mesh,
) -> None:
    config = config_of("consistency", encoded_dataset, flows["flow"])
    if "width" in changes:
        backbone = dataclasses.replace(config.model.backbone, width=changes["width"])
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, backbone=backbone)
        )
    else:
        named = {**flows, **runs, "": ""}[str(changes["init_from"])]
        config = dataclasses.replace(config, init_from=str(named))
    folder = Workdir(tmp_path / "run")
    folder.prepare(config, EncodedDataset(config.data.path))
    with pytest.raises(ConfigError, match=message):
        open_init_from(config, folder, one_device, build_model(config, folder.text()))


@pytest.mark.parametrize("kind", ["meanflow", pytest.param("shortcut", marks=pytest.mark.long)])
def test_a_head_of_jumps_learns_on_the_teachers_backbone(
    kind: str, runs: dict[str, pathlib.Path], encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = helpers.tiny_student_config(
        encoded_dataset,
        runs["teacher"],
        objective=kind,
        num_steps=4,
        evaluate_every=4,
        flow=FlowConfig(endpoint_share=0.2),
        distillation=DistillationConfig(weight=1.0, backbone_from_teacher=True),
    )
    Trainer(config, tmp_path / "run", devices=jax.devices()[:1]).run()
    row = helpers.rows_of(tmp_path / "run")[-1]
    assert {kind, "align", "velocity_error"} <= {name.split("/")[-1] for name in row}
    clips = list(Pipeline.open(tmp_path / "run").generate(PROMPTS, seeds=[0, 1]))
    assert all(np.isfinite(clip.audio).all() for clip in clips)
