"""Runs of networks that move all tokens together: their configs, parameters, clips and workdirs."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from fasttta_jax.config import DecodeConfig, FlowConfig, RunConfig
from fasttta_jax.input_pipeline.pairs import NOISE_SEEDS
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.systems import FullLatent, build_model
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import Workdir
from tests.support import helpers

BATCH_SIZE = 8
FLOWS = {
    "flow": FlowConfig(),
    "reflow": FlowConfig(distance="huber"),
    "consistency": FlowConfig(
        guidance_low=1.0, guidance_high=6.0, target_decay=0.95, sampler="renoise"
    ),
    "trajectory": FlowConfig(guidance_low=2.0, guidance_high=5.0, target_decay=0.99),
    "meanflow": FlowConfig(endpoint_share=0.2, target_guidance=1.5, kappa=0.5),
    "shortcut": FlowConfig(target_guidance=1.5, bootstrap_share=0.5),
}
SCALES = {"flow": 3.0, "reflow": 1.5, "consistency": 3.0, "trajectory": 3.0}


def latent_config(kind: str, path: str | pathlib.Path = "unused", **changes: Any) -> RunConfig:
    """A run of one of `FLOWS` on tokens in a folder, with other fields."""
    run = helpers.tiny_teacher_config(path)
    backbone = dataclasses.replace(run.model.backbone, encoder_depth=0, decoder_depth=2)
    taught = kind in ("consistency", "trajectory")
    decode = DecodeConfig(
        num_iterations=2, guidance_schedule="constant", guidance_scale=SCALES.get(kind, 1.0)
    )
    run = dataclasses.replace(
        run,
        objective=kind,
        init_from="unused" if taught else "",
        model=dataclasses.replace(run.model, network="latent", backbone=backbone),
        flow=FLOWS[kind],
        decode=decode,
    )
    return dataclasses.replace(run, **changes)


def with_flow(kind: str, **changes: Any) -> RunConfig:
    """The same with other fields of `flow`."""
    return latent_config(kind, flow=dataclasses.replace(FLOWS[kind], **changes))


def system(kind: str) -> FullLatent:
    """What such a run trains."""
    model = build_model(latent_config(kind), helpers.tiny_text_encoder())
    assert isinstance(model, FullLatent)
    return model


@functools.cache
def params_of(kind: str, seed: int = 0) -> Any:
    """Random ones, zero-initialised layers included."""
    shapes = jax.eval_shape(system(kind).init, jax.random.key(0))
    return helpers.random_params(shapes, seed=seed, scale=0.2)


def batch() -> dict[str, Any]:
    """Clips with captions and seeds of noise."""
    seeds = jnp.arange(BATCH_SIZE, dtype=jnp.uint32)
    return helpers.training_batch(BATCH_SIZE) | {NOISE_SEEDS: seeds}


def save_flow(folder: str | pathlib.Path, config: RunConfig, data: str | pathlib.Path) -> str:
    """A workdir with one checkpoint, of random parameters; returns where it is."""
    workdir = Workdir(folder)
    workdir.prepare(config, EncodedDataset(data))
    model = build_model(config, workdir.text())
    params = helpers.random_params(jax.eval_shape(model.init, jax.random.key(0)), scale=0.15)
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"ema": params}, None)
    checkpoints.close()
    return str(folder)
