"""A network that moves all tokens together: where it starts, what it is told, how it samples."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import (
    ConfigError,
    DecodeConfig,
    DistillationConfig,
    FlowConfig,
    MeshConfig,
)
from fasttta_jax.decoding.loop import Guidance, Known
from fasttta_jax.generation.sampler import Sampler
from fasttta_jax.input_pipeline.pairs import NOISE_SEEDS
from fasttta_jax.objectives import build_objective
from fasttta_jax.objectives.targets import TARGETS
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance import compilations
from fasttta_jax.systems.latent import noise_of
from fasttta_jax.training import programs
from fasttta_jax.training.step import StepContext, step
from fasttta_jax.training.step import loss as loss_of
from fasttta_jax.typing import unconditional
from tests.support import helpers
from tests.support.latent_runs import (
    BATCH_SIZE,
    batch,
    latent_config,
    params_of,
    system,
    with_flow,
)
from tests.support.tolerance import ELEMENTARY, assert_close


def arguments() -> tuple[jax.Array, jax.Array, jax.Array]:
    """z, r and t."""
    keys = jax.random.split(jax.random.key(4), 3)
    r, t = jnp.sort(jax.random.uniform(keys[0], (2, BATCH_SIZE)), axis=0)
    return jax.random.normal(keys[1], batch()["tokens"].shape), r, t


# -------------------------------------------------------------------------------- the network


def test_what_has_learned_velocities_gives_them_for_every_stretch():
    """Until the layer of stretches has learned something, which is zero in a flow."""
    model, params = system("flow"), params_of("flow")
    still = {
        **params["head"],
        "stretch_in": jax.tree.map(jnp.zeros_like, params["head"]["stretch_in"]),
    }
    fresh = jax.jit(model.init)(jax.random.key(0))["head"]["stretch_in"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh))
    text = model.condition(params, batch()["text"])
    z, r, t = arguments()
    flow = jax.jit(lambda head, r: model.velocity({**params, "head": head}, text)(z, r, t))
    np.testing.assert_array_equal(flow(still, r), flow(still, t))
    assert not np.array_equal(flow(params["head"], r), flow(params["head"], t))
    gradient = jax.jit(jax.grad(lambda head: jnp.sum(flow(head, t) ** 2)))(params["head"])
    assert not np.any(gradient["stretch_in"]["kernel"]), "a stretch of 0 teaches it nothing"


def test_without_text_the_times_are_still_told():
    model, params = system("flow"), params_of("flow")
    text = unconditional(model.condition(params, batch()["text"]))
    z, _, t = arguments()
    u = jax.jit(lambda text, t: model.velocity(params, text)(z, t, t))
    assert not np.allclose(u(text, t), u(text, 0.5 * t))
    other = unconditional(model.condition(params, model.text.tokenize(["silence"] * BATCH_SIZE)))
    np.testing.assert_array_equal(u(text, t), u(other, t))


def test_guidance_mixes_two_velocities():
    model, params = system("flow"), params_of("flow")
    text = model.condition(params, batch()["text"])
    z, r, t = arguments()
    scale = jnp.linspace(0.0, 5.0, BATCH_SIZE)
    found = jax.jit(model.guided(params, text, unconditional(text), scale))(z, r, t)
    with_text, without = (
        jax.jit(model.velocity(params, streams))(z, r, t) for streams in (text, unconditional(text))
    )
    expected = without + scale[:, None, None] * (with_text - without)
    assert_close(found, expected, ELEMENTARY)


# ------------------------------------------------------------------------------------ training


def context_of(kind: str) -> StepContext:
    return programs.default_context(latent_config(kind), helpers.tiny_text_encoder())


@pytest.mark.parametrize("kind", TARGETS)
def test_a_step_moves_all_of_it_and_its_targets_by_their_decay(kind: str) -> None:
    context = context_of(kind)
    frozen = {} if context.teacher is None else params_of("flow", 1)
    state = jax.jit(programs.fresh_state(context))(jax.random.key(0))
    state = dataclasses.replace(state, params=params_of(kind))
    run = jax.jit(lambda state: step(context, state, frozen, batch(), jax.random.key(3)))
    state, _ = run(state)  # at the rate 0 with which warming up begins
    new, metrics = run(state)
    objective = context.model.objective
    assert {*objective.terms, "velocity_error", "loss", "gradient_norm"} == set(metrics)
    assert metrics["loss"] == pytest.approx(sum(metrics[name] for name in objective.terms))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, new.params)
    still = {"mask_token"}
    for name, is_moved in moved["backbone"].items():
        assert name in still or any(jax.tree.leaves(is_moved)), name
    assert all(jax.tree.leaves(moved["head"]["mlp"]))
    decay = objective.target_decay
    assert (new.target is None) == (decay is None)
    if decay is not None:
        expected = jax.tree.map(
            lambda old, now: old + (1 - decay) * (now - old), state.target, new.params
        )
        jax.tree.map(lambda a, b: assert_close(a, b, ELEMENTARY), new.target, expected)


@pytest.mark.parametrize("kind", ["consistency", "trajectory"])
def test_no_gradient_reaches_teacher_target_or_average(kind: str) -> None:
    context = context_of(kind)

    def loss(others: dict[str, Any]) -> jax.Array:
        params = params_of(kind)
        return loss_of(context, params, batch(), jax.random.key(3), **others, train=True)[0]

    others = {"frozen": params_of("flow", 1), "average": params_of(kind), "target": params_of(kind)}
    gradients = jax.jit(jax.grad(loss))(others)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_reflow_regresses_on_the_noise_of_the_seeds():
    """A network that is e - x everywhere would have loss 0; one that is 0 has the size of e - x."""
    context, rows = context_of("reflow"), batch()
    mse = dataclasses.replace(context.model.objective, config=FlowConfig())
    context = dataclasses.replace(context, model=dataclasses.replace(context.model, objective=mse))
    params = jax.tree.map(jnp.zeros_like, params_of("reflow"))
    others = {"frozen": {}, "average": params, "target": None}
    found = jax.jit(
        lambda rows: loss_of(context, params, rows, jax.random.key(3), **others, train=True)
    )
    noise = noise_of(rows[NOISE_SEEDS], rows["tokens"].shape[1:])
    expected = jnp.mean(jnp.square(noise - rows["tokens"]))
    assert found(rows)[0] == pytest.approx(float(expected), rel=1e-5)
    alone = noise_of(rows[NOISE_SEEDS][3:4], rows["tokens"].shape[1:])
    np.testing.assert_array_equal(alone[0], noise[3])


# ------------------------------------------------------------------------------------ sampling


@functools.cache
def sampler(kind: str, **changes: Any) -> Sampler:
    decode = dataclasses.replace(latent_config(kind).decode, **changes)
    return Sampler(system(kind), decode, make_mesh(MeshConfig(), jax.devices()[:1]), 4)


def test_one_jump_is_one_pass_from_noise():
    model, params = system("meanflow"), params_of("meanflow")
    texts, seeds = ["a tone", "noise"], [3, 4]
    found, _ = sampler("meanflow", num_iterations=1, temperature=0.5)(params, texts, seeds)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    noise = 0.5 * jax.vmap(lambda key: jax.random.normal(key, found.shape[1:]))(keys)
    text = model.condition(params, model.text.tokenize(texts))
    u = jax.jit(model.velocity(params, text))(noise, jnp.zeros(2), jnp.ones(2))
    assert_close(found, noise - u, ELEMENTARY)


@pytest.mark.parametrize("kind", ["flow", "consistency"])
def test_a_clip_does_not_know_its_neighbours_and_ends_in_its_last_state(kind: str) -> None:
    params = params_of(kind)
    run = sampler(kind)
    some, _ = run(params, ["a tone", "noise", "clicks"], [3, 4, 5])
    alone, _ = run(params, ["noise"], [4])
    np.testing.assert_array_equal(alone[0], some[1])
    with_states = dataclasses.replace(run, with_states=True)
    tokens, states = with_states(params, ["noise"], [4])
    assert states is not None
    assert states.tokens.shape == (1, 2, *tokens.shape[1:])
    np.testing.assert_array_equal(states.tokens[:, -1], tokens)
    assert not states.masked.any()


@pytest.mark.parametrize("kind", ["flow", "consistency"])
def test_strengths_are_of_clips_and_another_compiles_nothing(kind: str) -> None:
    run, params, texts = sampler(kind), params_of(kind), ["a tone", "a tone"]
    both, _ = run(params, texts, [3, 3], scales=[2.0, 5.0])
    before = compilations.count()
    again, _ = dataclasses.replace(run, config=dataclasses.replace(run.config, guidance_scale=5.0))(
        params, texts, [3, 3]
    )
    assert compilations.count().since(before).programs == 0
    np.testing.assert_array_equal(again[1], both[1])
    assert not np.allclose(both[0], both[1])


def test_guidance_leads_away_from_a_text_where_two_passes_guide():
    params = params_of("flow")
    plain, _ = sampler("flow")(params, ["a tone"] * 2, [3, 3], negatives=["", "noise"])
    assert not np.array_equal(plain[0], plain[1])
    with pytest.raises(
        ValueError, match=r"negative prompts are \['noise'\]; allowed: none, as this"
    ):
        sampler("consistency")(params_of("consistency"), ["a tone"], [3], negatives=["noise"])


def test_what_reveals_tokens_is_refused():
    model, mesh = system("flow"), make_mesh(MeshConfig(), jax.devices()[:1])
    decode = latent_config("flow").decode
    for more, message in (
        ({"num_known": 2}, "known tokens is 2; allowed: none, as this network moves all tokens"),
        ({"num_texts": 2}, "texts of a clip is 2; allowed: 1, as this network moves all tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            Sampler(model, decode, mesh, 2, **more)
    for changes, message in (
        ({"counts": "linear"}, r"decode\.counts is 'linear'; allowed: 'cosine' where"),
        ({"guidance_schedule": "linear"}, r"decode\.guidance_schedule is 'linear'; allowed: 'con"),
        ({"guided": (0.0, 0.5)}, r"decode\.guided is \(0\.0, 0\.5\); allowed: \(0\.0, 1\.0\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            Sampler(model, dataclasses.replace(decode, **changes), mesh, 2)
    shape = (1, helpers.NUM_TOKENS, helpers.TOKEN_DIM)
    known = Known(jnp.zeros(shape), jnp.zeros(shape[:2], bool))
    params, keys = params_of("flow"), jax.random.split(jax.random.key(0), 1)
    text = model.condition(params, model.text.tokenize([""]))
    guidance = Guidance(jnp.ones((1, 2)), None)
    with pytest.raises(ConfigError, match="known is given; allowed: None"):
        model.generate(params, text, keys, decode, known=known, guidance=guidance)


# --------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: dataclasses.replace(helpers.tiny_teacher_config("unused"), objective="flow"),
            r"model\.network is 'masked'; allowed: 'latent' where objective is 'flow', which moves",
        ),
        (
            lambda: dataclasses.replace(latent_config("flow"), objective="energy"),
            r"model\.network is 'latent'; allowed: 'masked' where objective is 'energy', of heads",
        ),
        (
            lambda: latent_config("flow", distillation=DistillationConfig(weight=1.0)),
            r"distillation\.weight is 1\.0; allowed: 0 where model\.network is 'latent'",
        ),
        (
            lambda: with_flow("meanflow", distance="adaptive"),
            r"best_metric is 'loss'; allowed: 'velocity_error' where flow\.distance is 'adaptive'",
        ),
        (
            lambda: with_flow("shortcut", grid_steps=6),
            r"flow\.grid_steps is 6; allowed: a power of two where objective is 'shortcut'",
        ),
        (
            lambda: latent_config(
                "shortcut", decode=DecodeConfig(3, guidance_schedule="constant", guidance_scale=1.0)
            ),
            r"decode\.num_iterations is 3; allowed: a divisor of flow\.grid_steps = 8",
        ),
        (
            lambda: latent_config(
                "consistency",
                decode=DecodeConfig(2, guidance_schedule="constant", guidance_scale=7.0),
            ),
            r"decode\.guidance_scale is 7\.0; allowed: from flow\.guidance_low = 1 to",
        ),
        (
            lambda: latent_config("flow", best_metric="align"),
            r"best_metric is 'align'; allowed: one of \('loss', 'flow', 'velocity_error'\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(run: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(run())


def test_an_encoder_is_refused():
    model = helpers.tiny_teacher_config("unused").model
    message = r"model\.backbone\.encoder_depth is 1; allowed: 0 where model\.network is 'latent'"
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(model, network="latent")


def test_what_was_never_without_text_cannot_be_guided_by_that():
    run = latent_config("flow")
    text = dataclasses.replace(run.model.text, drop_rate=0.0)
    with pytest.raises(ConfigError, match=r"model\.text\.drop_rate is 0\.0; allowed: above 0"):
        build_objective(dataclasses.replace(run, model=dataclasses.replace(run.model, text=text)))
