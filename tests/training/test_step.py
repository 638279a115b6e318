"""A step: parts of a batch add up, options of the loss reach it, a mesh does not change it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fasttta_jax.config import (
    DistillationConfig,
    EnergyConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)
from fasttta_jax.diffusion.loss import diffusion_loss
from fasttta_jax.diffusion.schedule import corrupt, training_schedule
from fasttta_jax.losses.energy import energy_score
from fasttta_jax.models.energy_head import sample_noise
from fasttta_jax.parallel.compile import abstract_state, compile_train_step, shardings_of
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.parallel.sharding import batch_sharding
from fasttta_jax.randomness import stream
from fasttta_jax.systems import build_model
from fasttta_jax.training import programs
from fasttta_jax.training.state import new_state
from fasttta_jax.training.step import (
    StepContext,
    accumulated_gradients,
    draw_clips,
    split_batch,
    step,
    with_noise,
)
from fasttta_jax.training.step import loss as loss_of
from tests.support import helpers
from tests.support.layers_float64 import dense, in_float64
from tests.support.tolerance import (
    ELEMENTARY,
    assert_close,
    assert_within,
    model_terms,
    rounding,
    worst_rounding,
)

BATCH_SIZE = 8


def batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(BATCH_SIZE, helpers.NUM_TOKENS, helpers.TOKEN_DIM))
    return helpers.training_batch(BATCH_SIZE) | {"tokens": jnp.asarray(tokens, jnp.float32)}


def context_of(config: RunConfig) -> StepContext:
    return programs.make_context(config, build_model(config, helpers.tiny_text_encoder()))


def student_config(**changes: Any) -> RunConfig:
    """A student whose head starts fresh."""
    changes = {"distillation": DistillationConfig(weight=10.0), **changes}
    return dataclasses.replace(helpers.tiny_student_config("unused", "unused"), **changes)


def loss_rounding(config: RunConfig) -> float:
    """A square or a distance of what a model gives is off by twice its rounding."""
    return 2 * rounding(model_terms(config.model))


def test_parts_keep_every_clip_once():
    parts = split_batch({"index": jnp.arange(12).reshape(12, 1)}, 3)["index"]
    assert parts.shape == (3, 4, 1)
    assert sorted(parts.ravel().tolist()) == list(range(12))


def test_accumulated_gradient_is_the_mean_of_the_parts():
    """And for a loss that is a mean over clips, that of the whole batch."""
    rows = {"x": jnp.arange(24.0).reshape(8, 3) / 10}
    params = {"w": jnp.asarray([1.0, -2.0, 0.5])}

    def loss(params: Any, rows: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        del key
        value = jnp.mean(jnp.tanh(rows["x"] @ params["w"]))
        return value, {"loss": value}

    key = jax.random.key(0)
    whole = accumulated_gradients(loss, params, rows, key, 1)
    for parts in (2, 4, 8):
        found = accumulated_gradients(loss, params, rows, key, parts)
        # a product of 3, a tanh, and the mean over 8 clips
        bound = rounding(3 + ELEMENTARY + 8)
        jax.tree.map(lambda a, b, bound=bound: assert_close(a, b, bound), found, whole)


def test_parts_draw_independent_randomness():
    def loss(params: Any, rows: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        draw = jax.random.normal(key)
        return params["x"] * draw, {"square": draw**2}

    gradient, metrics = accumulated_gradients(
        loss, {"x": jnp.float32(1.0)}, {"x": jnp.zeros((4, 1))}, jax.random.key(0), 4
    )
    draws = jax.vmap(jax.random.normal)(jax.random.split(jax.random.key(0), 4))
    assert_within(gradient["x"], draws.mean(), worst_rounding(2 * 4) * np.abs(draws).mean())
    np.testing.assert_allclose(metrics["square"], (draws**2).mean(), rtol=worst_rounding(2 * 5))


def test_noise_on_visible_tokens_has_a_uniform_deviation():
    shape = (4000, 6, 4)
    noise = np.asarray(with_noise(jax.random.key(0), jnp.ones(shape), 0.3)) - 1
    # of a deviation u that is uniform to s: E[u^2] = s^2 / 3, E[u^4] = s^4 / 5; a row has n values
    square, n = (noise**2).mean(axis=(1, 2)), 24
    spread = math.sqrt((1 + 2 / n) * 0.3**4 / 5 - 0.3**4 / 9)
    assert abs(square.mean() - 0.03) < 4 * spread / math.sqrt(len(square))
    assert square.std() == pytest.approx(spread, rel=0.1)
    assert abs(noise.mean()) < 4 * math.sqrt(0.03 / noise.size)


def test_only_training_sees_noise_and_targets_have_none():
    config = helpers.tiny_teacher_config("unused")
    masking = dataclasses.replace(config.masking, visible_noise=0.3)
    plain, noisy = context_of(config), context_of(dataclasses.replace(config, masking=masking))
    for context, train in ((plain, True), (plain, False), (noisy, False)):
        clips = draw_clips(context, batch(), jax.random.key(0), train=train)
        np.testing.assert_array_equal(clips.visible, batch()["tokens"])
    clips = draw_clips(noisy, batch(), jax.random.key(0), train=True)
    np.testing.assert_array_equal(clips.tokens, batch()["tokens"])
    assert (np.asarray(clips.visible) != batch()["tokens"]).all()


@pytest.mark.slow
def test_a_teacher_on_one_device_equals_one_on_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same three losses and parameters; students are in `multiprocess/test_layouts`.

    Sums are taken in another order. Adam divides by the gradient's own size, so that an error moves
    a parameter by the learning rate times its share of the gradient: where of N gradients that are
    spread around zero the least are a share of 1 / sqrt(N) of their size in two steps, rounding
    grows by sqrt(N).
    """
    monkeypatch.setattr("fasttta_jax.parallel.sharding.MIN_FSDP_SIZE", 64)
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, ema_decay=0.9)
    config = helpers.tiny_teacher_config("unused", num_steps=3, optimizer=optimizer)
    # with what MAR has not, so that it is split, too
    backbone = dataclasses.replace(config.model.backbone, neighbours=2)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, backbone=backbone),
        diffusion=dataclasses.replace(config.diffusion, regression=1.0),
        masking=dataclasses.replace(config.masking, visible_noise=0.3),
    )
    context = context_of(config)
    fresh = programs.fresh_state(context)
    start = jax.tree.map(np.asarray, jax.jit(fresh)(jax.random.key(0)))
    losses, params = [], []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
        abstract = abstract_state(fresh, mesh)
        split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(abstract)]
        assert any(split) == (mesh.size > 1)
        state = jax.device_put(start, shardings_of(abstract))
        program = compile_train_step(programs.train_step(context), abstract, {}, mesh)
        rows = jax.device_put(batch(), batch_sharding(mesh))
        found = []
        for _ in range(3):
            state, metrics = program(state, {}, rows, jax.random.key(1))
            found.append(float(metrics["loss"]))
        losses.append(found)
        params.append(flatten_dict(jax.tree.map(np.asarray, state.params), sep="/"))
    np.testing.assert_allclose(losses[1], losses[0], rtol=loss_rounding(config))
    size = sum(value.size for value in params[0].values())
    bound = rounding(model_terms(config.model))
    moved = 3 * optimizer.learning_rate * bound * math.sqrt(size)
    assert moved < 0.02 * optimizer.learning_rate
    for name, expected in params[0].items():
        value = params[1][name]
        if name.endswith("qkv/bias"):
            # A key bias shifts all logits of a query alike: its gradient is zero but for
            # rounding, which Adam blows up to full steps.
            value, expected = np.delete(value, 1, axis=0), np.delete(expected, 1, axis=0)
        np.testing.assert_allclose(value, expected, rtol=0, atol=moved, err_msg=name)


@pytest.mark.parametrize("objective", ["diffusion", "energy"])
def test_an_accumulating_step_moves_and_counts_once(objective):
    config = student_config() if objective == "energy" else helpers.tiny_teacher_config("unused")
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, accumulation_steps=4)
    context = context_of(dataclasses.replace(config, optimizer=optimizer))
    state = new_state(context.transformation, jax.jit(context.model.init)(jax.random.key(0)))
    after, metrics = jax.jit(lambda state: step(context, state, {}, batch(), jax.random.key(1)))(
        state
    )
    assert int(after.step) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert not np.array_equal(
        after.params["head"]["mlp"]["final"]["kernel"],
        state.params["head"]["mlp"]["final"]["kernel"],
    )


def evaluated(
    context: StepContext, params: Any, key: jax.Array, frozen: Any = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics without dropout."""
    others = {"frozen": frozen or {}, "average": params, "target": None}
    return loss_of(context, params, batch(), key, **others, train=False)


@pytest.mark.parametrize(
    "energy",
    [
        EnergyConfig(num_draws=3, alpha=1.5, noise_dim=8),
        EnergyConfig(
            num_draws=4,
            alpha=0.5,
            temperature=0.9,
            noise_dim=5,
            roles="context_stream",
            noise="uniform",
        ),
    ],
    ids=["noise_stream", "context_stream"],
)
def test_the_loss_is_the_energy_score_of_the_configs_draws(energy):
    config = student_config(energy=energy)
    context = context_of(config)
    shapes = jax.eval_shape(context.model.init, jax.random.key(0))
    params = helpers.random_params(shapes, scale=0.1)
    key = jax.random.key(3)
    loss, metrics = evaluated(context, params, key)
    shape = (energy.num_draws, BATCH_SIZE, helpers.NUM_TOKENS, energy.noise_dim)
    noise = sample_noise(stream(key, "objective"), shape, energy.noise)

    # every token of the batch, then the mean over those that the step masks

    clips = draw_clips(context, batch(), key, train=False)
    streams = context.model.condition_clips(params, clips)
    hidden = context.model.hidden(params, batch()["tokens"], clips.masked, streams)
    scores = energy_score(
        context.model.objective.draw(params["head"], noise, hidden),
        batch()["tokens"],
        alpha=energy.alpha,
        temperature=energy.temperature,
    )
    expected = np.asarray(scores)[np.asarray(clips.masked)].mean()
    bound = loss_rounding(config)
    np.testing.assert_allclose(loss, expected, rtol=bound)
    np.testing.assert_allclose(metrics["energy"], expected, rtol=bound)


@pytest.mark.parametrize("regression", [0.0, 3.0])
def test_the_loss_is_the_diffusion_loss_of_the_configs_draws(regression):
    config = helpers.tiny_teacher_config("unused")
    diffusion = dataclasses.replace(config.diffusion, regression=regression)
    config = dataclasses.replace(config, diffusion=diffusion)
    context = context_of(config)
    objective = context.model.objective
    shapes = jax.eval_shape(context.model.init, jax.random.key(0))
    params, key = helpers.random_params(shapes, scale=0.1), jax.random.key(3)
    loss, metrics = evaluated(context, params, key)

    tokens = batch()["tokens"]
    shape = (config.diffusion.batch_multiplier, *tokens.shape)
    own = stream(key, "objective")
    noise = jax.random.normal(stream(own, "noise"), shape, jnp.float32)
    schedule = training_schedule(config.diffusion.num_steps)
    time = jax.random.randint(stream(own, "time"), shape[:-1], 0, schedule.num_steps)
    clips = draw_clips(context, batch(), key, train=False)
    streams = context.model.condition_clips(params, clips)
    hidden = context.model.hidden(params, tokens, clips.masked, streams)
    clean = jnp.broadcast_to(tokens, shape)
    noisy = corrupt(clean, time, noise, schedule)
    terms = diffusion_loss(
        objective.head.apply({"params": params["head"]}, noisy, time, hidden[None]),
        clean,
        noisy,
        time,
        noise,
        schedule=schedule,
        prediction="v",
    )
    masked = np.asarray(clips.masked)
    expected = {name: np.asarray(term)[:, masked].mean() for name, term in terms.items()}
    if regression:
        guess = dense(np.float64(hidden), in_float64(params["head"]["regression"]))
        errors = np.square(guess - np.float64(tokens)).mean(axis=-1)
        expected["regression"] = regression * errors[masked].mean()
    assert set(metrics) == {"loss", *expected}
    bound = loss_rounding(config)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=bound, err_msg=name)
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=bound)


@pytest.mark.parametrize("objective", ["diffusion", "energy"])
@pytest.mark.parametrize("positions", ["all", "masked"])
def test_alignment_is_one_addition_to_any_objective(objective, positions):
    """Its weight times the distance to the states of the teacher, on the tokens that count."""
    alone = helpers.tiny_teacher_config("unused", objective=objective)
    following = dataclasses.replace(
        alone, distillation=DistillationConfig(weight=7.0, positions=positions)
    )
    model = build_model(alone, helpers.tiny_text_encoder())
    teacher = build_model(helpers.tiny_teacher_config("unused"), helpers.tiny_text_encoder())
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = helpers.random_params(shapes, scale=0.1)
    frozen = helpers.random_params(
        jax.eval_shape(teacher.init, jax.random.key(0)), seed=1, scale=0.1
    )
    key = jax.random.key(3)
    loss, metrics = evaluated(programs.make_context(alone, model), params, key)
    context = programs.make_context(following, model, teacher)
    aligned, found = evaluated(context, params, key, frozen)

    clips = draw_clips(context, batch(), key, train=False)
    states = [
        one.hidden(values, batch()["tokens"], clips.masked, one.condition_clips(values, clips))
        for one, values in ((model, params), (teacher, frozen))
    ]
    distance = np.mean((np.asarray(states[0]) - np.asarray(states[1])) ** 2, axis=-1)
    counted = np.asarray(clips.masked) if positions == "masked" else np.ones_like(distance, bool)
    bound = loss_rounding(alone)
    np.testing.assert_allclose(found["align"], distance[counted].mean(), rtol=bound)
    np.testing.assert_allclose(aligned, loss + 7.0 * found["align"], rtol=bound)
    for name in model.objective.terms:
        np.testing.assert_allclose(found[name], metrics[name], rtol=bound, err_msg=name)
