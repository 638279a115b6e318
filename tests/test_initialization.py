"""First parameters from converted weights: taken as far as they fit, and recorded."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fasttta_jax.config import BackboneConfig, ConfigError, DiffusionConfig, MeshConfig, RunConfig
from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.input_pipeline import EncodedDataset
from fasttta_jax.models.text_to_audio import build_model
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.training.initialization import initial_params, open_source
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir import ORIGIN_FILE, Workdir, WorkdirError
from tests import helpers

NUM_SLOTS, NUM_IMAGE_TOKENS = 6, 12


def image_config() -> RunConfig:
    """The model that the converted weights are of: other lengths, other tokens, the same blocks."""
    config = helpers.tiny_teacher_config("unused")
    text = dataclasses.replace(config.model.text, num_positions=NUM_SLOTS)
    model = helpers.tiny_model_config(num_tokens=NUM_IMAGE_TOKENS, token_dim=4, text=text)
    return dataclasses.replace(config, model=model)


def convert(folder: pathlib.Path, *, seed: int = 1, **metadata: Any) -> dict[str, np.ndarray]:
    """Writes weights as `python -m fasttta_jax.convert mar` does; returns them by path."""
    config = image_config()
    model = build_model(config, abstract_text_encoder(config.model.text))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = flatten_dict(helpers.random_params(shapes, seed), sep="/")
    params = {
        name: np.asarray(leaf)
        for name, leaf in params.items()
        if not name.startswith(("text/", "backbone/text_"))
    }
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
    source = open_source(config, workdir, mesh, model)
    assert source is not None
    params = initial_params(config, model, source, jax.random.key(0), source.params)
    return source, flatten_dict(params, sep="/")


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


def test_a_run_that_has_saved_needs_its_source_no_more(encoded_dataset, tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    convert(tmp_path / "weights")
    config = helpers.tiny_teacher_config(
        encoded_dataset, init_from=str(tmp_path / "weights"), num_steps=4, evaluate_every=4
    )
    Trainer(config, tmp_path / "run").run()
    shutil.rmtree(tmp_path / "weights")
    assert int(Trainer(config, tmp_path / "run").run().step) == 4
