"""First parameters from weights and runs in either form: taken as far as they fit, and recorded."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from fasttta_jax.config import (
    BackboneConfig,
    ConfigError,
    DiffusionConfig,
    DistillationConfig,
    MeshConfig,
    RunConfig,
)
from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.models.stacking import unstack_layers
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.training.initialization import open_init_from
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import (
    ORIGIN_FILE,
    Workdir,
    WorkdirError,
)
from tests.support import helpers
from tests.support.tolerance import assert_close, model_terms, rounding

NUM_SLOTS, NUM_IMAGE_TOKENS = 6, 12


def image_config(**model: Any) -> RunConfig:
    """The model that the converted weights are of: other lengths, other tokens, the same blocks."""
    config = helpers.tiny_teacher_config("unused")
    text = dataclasses.replace(config.model.text, num_positions=NUM_SLOTS)
    sizes = {"num_tokens": NUM_IMAGE_TOKENS, "token_dim": 4, "text": text, **model}
    return dataclasses.replace(config, model=helpers.tiny_model_config(**sizes))


def convert(
    folder: pathlib.Path,
    *,
    seed: int = 1,
    config: RunConfig | None = None,
    extra: Sequence[str] = (),
    **metadata: Any,
) -> dict[str, np.ndarray]:
    """Writes weights as `python -m fasttta_jax.convert mar` does; returns them by path.

    `extra` are names that no model of ours has.
    """
    config = config or image_config()
    model = build_model(config, abstract_text_encoder(config.model.text))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = flatten_dict(helpers.random_params(shapes, seed), sep="/")
    params = {
        name: np.asarray(leaf)
        for name, leaf in params.items()
        if not name.startswith(("text/", "backbone/text_"))
    }
    params |= {name: np.zeros((2, 2), np.float32) for name in extra}
    described = {
        "kind": "mar",
        "source": "checkpoint-last.pth",
        "sha256": "0" * 64,
        "weights": "ema",
        "num_text": NUM_SLOTS,
        "num_tokens": NUM_IMAGE_TOKENS,
        "token_dim": 4,
        "backbone": dataclasses.asdict(config.model.backbone),
        "head": {"width": 32, "depth": 1},
        "diffusion": {"num_steps": 1000, "prediction": "v"},
        "dropped": {},
    }
    write_conversion(Conversion(params, described | metadata), folder)
    return params


@pytest.fixture
def mesh() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def start(config: RunConfig, folder: pathlib.Path, mesh: Any) -> tuple[Any, dict[str, Any]]:
    """The source of a run in a new workdir, and its first parameters by path."""
    workdir = Workdir(folder)
    workdir.prepare(config, EncodedDataset(config.data.path))
    model = build_model(config, workdir.text())
    source = open_init_from(config, workdir, mesh, model)
    assert source is not None
    run = jax.jit(source.initialization(model))
    return source, flatten_dict(run(jax.random.key(0), source.params), sep="/")


def test_blocks_come_in_and_text_and_tokens_are_fresh(encoded_dataset, tmp_path, mesh):
    weights = convert(tmp_path / "weights")
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "weights"))
    source, params = start(config, tmp_path / "run", mesh)
    report = source.report
    same = {name for name in weights if np.array_equal(params[name], weights[name])}
    assert same == set(report.taken)
    assert {name for name in weights if "coder_0/" in name} <= same
    assert {"backbone/null_text", "backbone/mask_token", "backbone/decoder_norm/scale"} <= same
    positions = {f"backbone/{name}_positions" for name in ("encoder", "decoder", "head")}
    assert set(report.resized) == positions
    assert "backbone/token_projection/kernel" in report.fresh
    assert "text/embedding" in report.fresh
    assert {name for name in report.fresh if name.startswith("head/")} == {
        name for name in params if name.startswith("head/")
    }, "tokens of another size need another head"
    origin = json.loads((tmp_path / "run" / ORIGIN_FILE).read_text())
    assert origin["file"] == "checkpoint-last.pth"
    assert origin["parameters"]["taken"] == report.taken


def test_a_backbone_of_another_size_is_named(encoded_dataset, tmp_path, mesh):
    theirs = dataclasses.asdict(BackboneConfig(width=32, encoder_depth=3, num_heads=2))
    convert(tmp_path / "weights", backbone=theirs)
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "weights"))
    with pytest.raises(ConfigError, match=r"model\.backbone\.encoder_depth is 1; .* has 3"):
        start(config, tmp_path / "run", mesh)


def test_a_head_that_predicts_something_else_is_fresh(encoded_dataset, tmp_path, mesh):
    convert(tmp_path / "weights")
    config = helpers.tiny_teacher_config(
        encoded_dataset,
        init_from=str(tmp_path / "weights"),
        diffusion=DiffusionConfig(prediction="epsilon"),
    )
    source, _ = start(config, tmp_path / "run", mesh)
    reasons = {reason for name, reason in source.report.fresh.items() if name.startswith("head/")}
    assert reasons == {"the source's diffusion.prediction is 'v', not 'epsilon'"}


def test_a_student_cannot_follow_converted_weights(encoded_dataset, tmp_path, mesh):
    convert(tmp_path / "weights")
    config = helpers.tiny_student_config(encoded_dataset, tmp_path / "weights")
    with pytest.raises(ConfigError, match="converted weights; allowed: the workdir of a trained"):
        start(config, tmp_path / "run", mesh)


def test_other_weights_in_the_same_place_are_refused(encoded_dataset, tmp_path, mesh):
    convert(tmp_path / "weights")
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "weights"))
    start(config, tmp_path / "run", mesh)
    shutil.rmtree(tmp_path / "weights")
    convert(tmp_path / "weights", seed=2)
    with pytest.raises(WorkdirError, match="whose parameters are not those now in"):
        start(config, tmp_path / "run", mesh)


def test_a_run_that_has_saved_needs_its_source_no_more(encoded_dataset, tmp_path):
    devices = jax.devices()[:1]
    convert(tmp_path / "weights")
    config = helpers.tiny_teacher_config(
        encoded_dataset, init_from=str(tmp_path / "weights"), num_steps=4, evaluate_every=4
    )
    Trainer(config, tmp_path / "run", devices=devices).run()
    shutil.rmtree(tmp_path / "weights")
    assert int(Trainer(config, tmp_path / "run", devices=devices).run().step) == 4


# ------------------------------------------------------------------------- blocks apart, stacked

DEEP = dataclasses.replace(helpers.tiny_model_config().backbone, encoder_depth=2, decoder_depth=3)


def deep_config(config: RunConfig, *, scan_layers: bool) -> RunConfig:
    backbone = dataclasses.replace(DEEP, scan_layers=scan_layers)
    model = dataclasses.replace(config.model, backbone=backbone)
    return dataclasses.replace(config, model=model)


def trained_run(
    folder: pathlib.Path, dataset: pathlib.Path, *, scan_layers: bool
) -> dict[str, np.ndarray]:
    """A teacher's workdir with one checkpoint of random averages; returns them, blocks apart."""
    config = deep_config(helpers.tiny_teacher_config(dataset), scan_layers=scan_layers)
    workdir = Workdir(folder)
    workdir.prepare(config, EncodedDataset(dataset))
    shapes = jax.eval_shape(build_model(config, workdir.text()).init, jax.random.key(0))
    average = helpers.random_params(shapes, seed=5, scale=0.15)
    checkpoints = Checkpoints(folder)
    checkpoints.save(4, {"rest": {"step": np.int32(4)}, "ema": average}, {"loss": 1.0})
    checkpoints.close()
    return flatten_dict(unstack_layers(average, DEEP), sep="/")


def apart(params: dict[str, Any]) -> dict[str, Any]:
    """The same with blocks apart; by path, both of them."""
    return flatten_dict(unstack_layers(unflatten_dict(params, sep="/"), DEEP), sep="/")


EITHER_WAY = pytest.mark.parametrize(
    ("source_scans", "target_scans"), [(False, True), (True, False), (True, True)]
)


@EITHER_WAY
def test_a_run_starts_from_blocks_in_either_form(
    encoded_dataset, tmp_path, mesh, source_scans, target_scans
):
    average = trained_run(tmp_path / "old", encoded_dataset, scan_layers=source_scans)
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "old"))
    config = deep_config(config, scan_layers=target_scans)
    source, params = start(config, tmp_path / "new", mesh)
    found = apart(params)
    assert set(found) == set(average)
    for name, leaf in average.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    # named as the run that starts has them, every one of them taken
    assert set(source.report.taken) == set(params)
    assert ("backbone/encoder_stack/norm_1/scale" in params) == target_scans
    assert not source.report.fresh
    assert not source.report.unused


def test_converted_weights_go_into_stacked_blocks(encoded_dataset, tmp_path, mesh):
    weights = convert(tmp_path / "weights", config=image_config(backbone=DEEP))
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "weights"))
    source, params = start(deep_config(config, scan_layers=True), tmp_path / "run", mesh)
    found = apart(params)
    blocks = {name for name in weights if "coder_0/" in name or "coder_1/" in name}
    blocks |= {name for name in weights if "decoder_2/" in name}
    assert len(blocks) == 12 * 5
    for name in blocks:
        np.testing.assert_array_equal(found[name], weights[name], err_msg=name)
    assert {f"backbone/{stage}_stack/mlp_in/bias" for stage in ("encoder", "decoder")} <= set(
        source.report.taken
    )


@EITHER_WAY
def test_a_student_follows_a_teacher_in_the_other_form(
    encoded_dataset, tmp_path, mesh, source_scans, target_scans
):
    """The teacher runs in its own form; a student that has its backbone has its features."""
    average = trained_run(tmp_path / "teacher", encoded_dataset, scan_layers=source_scans)
    config = helpers.tiny_student_config(encoded_dataset, tmp_path / "teacher")
    config = deep_config(config, scan_layers=target_scans)
    source, params = start(config, tmp_path / "student", mesh)
    found = apart(params)
    for name in average:
        if not name.startswith("head/"):
            np.testing.assert_array_equal(found[name], average[name], err_msg=name)
    teacher = source.teacher
    assert teacher.model.config.backbone.scan_layers == source_scans
    student = build_model(config, teacher.model.text)
    tokens = jax.random.normal(jax.random.key(1), (2, helpers.NUM_TOKENS, helpers.TOKEN_DIM))
    masked = jnp.asarray([[True, False] * 4, [True] * 6 + [False] * 2])
    captions = student.text.tokenize(["a quiet tone", "noise that is loud"])

    def features(model: Any, params: Any) -> jax.Array:
        return model.hidden(params, tokens, masked, model.condition(params, captions))

    theirs = jax.jit(functools.partial(features, teacher.model))(source.params)
    ours = jax.jit(functools.partial(features, student))(unflatten_dict(params, sep="/"))
    assert_close(ours, theirs, rounding(model_terms(student.config)))


# ------------------------------------------------------------------------------ what is recorded


def test_every_name_is_recorded_and_the_log_is_short(encoded_dataset, tmp_path, mesh, caplog):
    extra = [f"backbone/extra_{index}/kernel" for index in range(6)]
    convert(tmp_path / "weights", config=image_config(backbone=DEEP), extra=extra)
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "weights"))
    with caplog.at_level(logging.INFO):
        _, params = start(deep_config(config, scan_layers=True), tmp_path / "run", mesh)
    recorded = json.loads((tmp_path / "run" / ORIGIN_FILE).read_text())["parameters"]
    named = [*recorded["taken"], *recorded["resized"], *recorded["fresh"]]
    assert sorted(named) == sorted(params)
    assert all(recorded["fresh"].values()), "a reason for each"
    assert [name for name in recorded["unused"] if "extra" in name] == extra
    head = [name for name in recorded["fresh"] if name.startswith("head/")]
    assert len(head) > 4
    (line,) = [record.getMessage() for record in caplog.records if "starting from" in record.msg]
    assert f"and {len(head) - 4} more" in line
    assert head[-1] not in line
    assert extra[0] in line
    assert extra[-1] not in line


def test_a_students_record_names_what_it_left(encoded_dataset, tmp_path, mesh):
    average = trained_run(tmp_path / "teacher", encoded_dataset, scan_layers=False)
    config = helpers.tiny_student_config(
        encoded_dataset,
        tmp_path / "teacher",
        distillation=DistillationConfig(backbone_from_teacher=True),
    )
    _, params = start(deep_config(config, scan_layers=True), tmp_path / "student", mesh)
    origin = json.loads((tmp_path / "student" / ORIGIN_FILE).read_text())
    recorded = origin["parameters"]
    assert not origin["features_followed"]
    head = {name for name in params if name.startswith("head/")}
    assert set(recorded["taken"]) == set(params) - head
    assert recorded["fresh"] == dict.fromkeys(head, "distillation.head_from_teacher is false")
    assert set(recorded["unused"]) == {name for name in average if name.startswith("head/")}


def test_only_the_first_host_writes_and_every_host_compares(
    encoded_dataset, tmp_path, mesh, monkeypatch
):
    convert(tmp_path / "weights")
    config = helpers.tiny_teacher_config(encoded_dataset, init_from=str(tmp_path / "weights"))
    workdir = Workdir(tmp_path / "run")
    workdir.prepare(config, EncodedDataset(config.data.path))
    model = build_model(config, workdir.text())
    record = tmp_path / "run" / ORIGIN_FILE
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    open_init_from(config, workdir, mesh, model)
    assert not record.exists()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    open_init_from(config, workdir, mesh, model)
    written = record.read_bytes()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    shutil.rmtree(tmp_path / "weights")
    convert(tmp_path / "weights", seed=2)
    with pytest.raises(WorkdirError, match="whose parameters are not those now in"):
        open_init_from(config, workdir, mesh, model)
    assert record.read_bytes() == written
