"""Operations of jumps, of networks and of heads, are those of their programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fasttta_jax.config import DataConfig, DecodeConfig, FlowConfig, RunConfig
from fasttta_jax.objectives import build_objective
from fasttta_jax.performance import flops
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.training import programs
from fasttta_jax.training.step import loss as step_loss
from tests.support.products import MODEL, TEXT, traced


def jump_config(kind: str, network: str = "latent", **flow: Any) -> RunConfig:
    """A run of that kind, at the sizes of `MODEL`."""
    told = kind in ("consistency", "trajectory")
    flow = {"guidance_low": 1.0, "guidance_high": 6.0, **flow} if told else flow
    flow = {"sampler": "renoise", **flow} if kind == "consistency" else flow
    latent = network == "latent"
    backbone = dataclasses.replace(
        MODEL.backbone, encoder_depth=0, attention_dropout=0.0, projection_dropout=0.0
    )
    model = dataclasses.replace(MODEL, network="latent", backbone=backbone) if latent else MODEL
    jumps = DecodeConfig(
        2, guidance_schedule="constant", guidance_scale=2.0 if kind == "flow" or told else 1.0
    )
    changes = {"model": model, "decode": jumps if latent else DecodeConfig(num_iterations=6)}
    changes |= {"data": DataConfig(batch_size=32)}
    return RunConfig(**{"objective": kind, "model": MODEL, "flow": FlowConfig(**flow), **changes})


def losses_counted(run: RunConfig) -> float:
    """Products of the forward pass of a loss, for each of four clips."""
    context = programs.default_context(run, abstract_text_encoder(TEXT))
    params = jax.eval_shape(context.model.init, jax.random.key(0))
    frozen = (
        {} if context.teacher is None else jax.eval_shape(context.teacher.init, jax.random.key(0))
    )
    batch = {
        "tokens": jnp.zeros((4, MODEL.num_tokens, MODEL.token_dim)),
        "weight": jnp.ones(4),
        "text": context.model.text.tokenize([""] * 4),
        "noise_seeds": jnp.arange(4, dtype=jnp.uint32),
    }

    def loss(params, frozen, batch):
        others = {"frozen": frozen, "average": params, "target": None}
        return step_loss(context, params, batch, jax.random.key(0), **others, train=False)[0]

    return traced(loss, params, frozen, batch) / 4


@pytest.mark.parametrize(
    ("kind", "flow"),
    [
        ("flow", {}),
        ("reflow", {}),
        ("consistency", {}),
        ("consistency", {"solver": "euler"}),
        ("shortcut", {}),
        ("shortcut", {"target_guidance": 1.5}),
    ],
)
def test_jumps_of_a_network_count_every_product_of_their_loss(kind, flow):
    run = jump_config(kind, **flow)
    found = flops.training_step_flops(run)
    assert losses_counted(run) == found.forward
    assert found.backward == 2 * (found.backbone + found.head)


def test_a_derivative_by_time_takes_little_more_than_a_pass():
    """Attention is a product of what depends on the time on both sides, so that its derivative is
    two; text projections do not depend on it."""
    for flow in ({}, {"kappa": 0.5}, {"tangent": "predicted"}):
        run = jump_config("meanflow", **flow)
        assert 1.0 <= losses_counted(run) / flops.training_step_flops(run).forward < 1.1


@pytest.mark.parametrize("kind", ["meanflow", "shortcut"])
def test_jumps_of_a_head_count_the_products_of_their_loss(kind):
    """To the derivative's projection of the context, which does not depend on the time."""
    run = jump_config(kind, "masked")
    counted, found = losses_counted(run), flops.training_step_flops(run).forward
    assert counted == found if kind == "shortcut" else 0.98 < counted / found <= 1.0


def test_a_trajectory_counts_the_mean_of_its_steps():
    """Of h in 1, 2, ... m, drawn in proportion to h: (2 m + 1) / 3."""
    passes = [build_objective(jump_config("trajectory", max_skip=m)).passes() for m in (1, 2, 3)]
    for m, found in zip((1, 2, 3), passes, strict=True):
        mean = sum(h * h for h in range(1, m + 1)) / sum(range(1, m + 1))
        assert found.teacher == pytest.approx(4 * mean)
        assert (found.online, found.target) == (2, 1)


@pytest.mark.parametrize("kind", ["flow", "consistency", "meanflow"])
def test_jumps_count_every_product_of_sampling(kind):
    run = jump_config(kind)
    model = build_model(run, abstract_text_encoder(TEXT))
    params = jax.eval_shape(model.init, jax.random.key(0))
    text, keys = model.text.tokenize(["", ""]), jax.random.split(jax.random.key(0))

    def sample(params, text, keys):
        return model.generate(params, model.condition(params, text), keys, run.decode).tokens

    assert traced(sample, params, text, keys) == 2 * flops.sampling_flops(run).total
