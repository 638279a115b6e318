"""Runs of a flow that moves all tokens together, with random parameters in place of training."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax

from fasttta_jax.config import DecodeConfig, RunConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.systems import build_model
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import Workdir
from tests.support import helpers


def latent_config(path: str | pathlib.Path, **changes: Any) -> RunConfig:
    """Of tokens in a folder, with other fields."""
    config = helpers.tiny_teacher_config(path, objective="flow")
    backbone = dataclasses.replace(config.model.backbone, encoder_depth=0, decoder_depth=1)
    model = dataclasses.replace(config.model, network="latent", backbone=backbone)
    decode = DecodeConfig(num_iterations=2, guidance_schedule="constant", guidance_scale=2.0)
    return dataclasses.replace(config, **({"model": model, "decode": decode} | changes))


def save_flow(folder: str | pathlib.Path, config: RunConfig, data: str | pathlib.Path) -> str:
    """A workdir with one checkpoint; returns where it is."""
    workdir = Workdir(folder)
    workdir.prepare(config, EncodedDataset(data))
    model = build_model(config, workdir.text())
    params = helpers.random_params(jax.eval_shape(model.init, jax.random.key(0)), scale=0.15)
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"ema": params}, None)
    checkpoints.close()
    return str(folder)
