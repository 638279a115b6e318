"""Guidance in one pass: where it starts, what is its minimum, and what learns."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import ConfigError, DistillationConfig, GuidedConfig, RunConfig, TextConfig
from fasttta_jax.objectives import Guidance, Guided, Teacher, build_objective
from fasttta_jax.randomness import stream
from fasttta_jax.training import programs
from fasttta_jax.training.initialization import Initialization
from fasttta_jax.training.loop import Trainer
from fasttta_jax.training.step import StepContext
from fasttta_jax.training.step import loss as loss_of
from fasttta_jax.training.transfer import plan_parts
from tests.support import helpers
from tests.support.tolerance import rounding

RUN = helpers.tiny_guided_config("unused", "unused")
BATCH_SIZE = 8


def with_energy(energy: str, *, train_head: bool = False) -> RunConfig:
    return dataclasses.replace(RUN, guided=GuidedConfig(energy=energy, train_head=train_head))


def context_of(config: RunConfig) -> StepContext:
    return programs.default_context(config, helpers.tiny_text_encoder())


def batch() -> dict[str, Any]:
    return helpers.training_batch(BATCH_SIZE)


@functools.cache
def student_and_start() -> tuple[StepContext, Any, Any]:
    """A context, random parameters of its student, and what a run starts with from them."""
    context = context_of(RUN)
    assert context.teacher is not None
    shapes = jax.eval_shape(context.teacher.init, jax.random.key(0))
    student = helpers.random_params(shapes, seed=1, scale=0.2)
    fresh = jax.jit(context.model.init)(jax.random.key(0))
    strength = {name: tree for name, tree in fresh["backbone"].items() if "strength" in name}
    assert set(strength) == {"strength_in", "strength_out"}
    return context, student, {**student, "backbone": {**student["backbone"], **strength}}


def test_it_starts_as_the_student_whatever_the_strength():
    context, student, params = student_and_start()
    assert context.teacher is not None
    rows = batch()
    masked = jnp.arange(helpers.NUM_TOKENS)[None] >= jnp.arange(BATCH_SIZE)[:, None]

    def states(model: Any, params: Any, **more: Any) -> jax.Array:
        conditioning = model.condition(params, rows["text"])
        return model.hidden(params, rows["tokens"], masked, conditioning, **more)

    expected = states(context.teacher, student)
    for strength in (None, jnp.ones(BATCH_SIZE), jnp.linspace(1.0, 6.0, BATCH_SIZE)):
        found = states(context.model, params, strength=strength)
        np.testing.assert_array_equal(found, expected)
    told = jax.tree.map(lambda leaf: leaf + 0.1, params)
    weak, strong = (states(context.model, told, strength=jnp.full(8, s)) for s in (1.0, 2.0))
    assert not np.array_equal(weak, strong)
    with pytest.raises(ValueError, match="this backbone takes none"):
        states(context.teacher, student, strength=jnp.ones(BATCH_SIZE))


def test_a_run_takes_everything_of_the_student_but_the_embedding_of_the_strength():
    context, student, expected = student_and_start()
    shapes = jax.eval_shape(context.model.init, jax.random.key(0))
    report = plan_parts(student, shapes, {})
    assert set(report.fresh.values()) == {"not in the source"}
    assert all("strength" in name for name in report.fresh)
    assert len(report.taken) == len(jax.tree.leaves(student))
    assert isinstance(Initialization(context.model).model.objective, Guided)
    assert jax.tree.structure(expected) == jax.tree.structure(shapes)


# ------------------------------------------------------------------------------------ the minimum


@pytest.mark.parametrize("weighted", [True, False])
def test_a_linear_backbone_learns_the_guided_states_whatever_their_weight(weighted: bool) -> None:
    """The loss is a square of its parameters: one step of Newton's method ends at the minimum."""
    keys = jax.random.split(jax.random.key(0), 4)
    features = jax.random.normal(keys[0], (32, 4, 3))
    with_text, without = jax.random.normal(keys[1], (2, 3, 5))
    strength = jnp.asarray(build_objective(RUN).strengths(keys[2], jnp.ones(32, bool)))
    objective = build_objective(RUN)
    guidance = Guidance(strength, features @ without)
    teacher = Teacher(objective, {}, features @ with_text, guidance)
    others = {"teacher": teacher, "average": {}, "target": None}

    def loss(kernel: jax.Array) -> jax.Array:
        plain, guided = kernel
        hidden = features @ plain + strength[:, None, None] * (features @ guided)
        term = objective.loss({}, hidden, jnp.zeros((32, 4, 2)), keys[3], **others)["guidance"]
        return jnp.mean(term if weighted else term * strength[:, None] ** 2)

    start = jax.random.normal(keys[3], (2, 3, 5))
    hessian = jax.hessian(loss)(start).reshape(start.size, start.size)
    step = jnp.linalg.solve(hessian, jax.grad(loss)(start).reshape(-1))
    found = start - step.reshape(start.shape)
    expected = jnp.stack([without, with_text - without])
    # a solution of equations is as exact as their condition allows
    bound = rounding(start.size) * float(jnp.linalg.cond(hessian))
    assert bound < 1e-2
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)


def test_strengths_are_one_without_text_and_uniform_in_their_inverse():
    objective = build_objective(RUN)
    has_text = jnp.arange(20_000) % 10 > 0
    found = np.asarray(objective.strengths(jax.random.key(0), has_text))
    assert (found[~np.asarray(has_text)] == 1).all()
    kept = found[np.asarray(has_text)]
    guided = kept[kept != 1]
    share = 1 - len(guided) / len(kept)
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(kept))
    assert 1 < guided.min() <= guided.max() <= 6
    inverse = 1 / guided
    width = 5 / 6
    error = width / np.sqrt(12 * len(guided))
    assert abs(inverse.mean() - (1 / 6 + width / 2)) < 5 * error


# ------------------------------------------------------------------------------------ what learns


@pytest.mark.parametrize(
    ("energy", "train_head"),
    [("none", False), ("unguided", False), ("mixture", True)],
)
def test_gradients_reach_the_embedding_and_never_the_student(energy, train_head):
    """Nor its head, unless that is to train."""
    _, student, params = student_and_start()
    context = context_of(with_energy(energy, train_head=train_head))

    def loss(params: Any, frozen: Any) -> jax.Array:
        others = {"frozen": frozen, "average": params, "target": None}
        return loss_of(context, params, batch(), jax.random.key(3), **others, train=True)[0]

    moved, frozen = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, student)
    assert np.any(moved["backbone"]["strength_out"]["kernel"])
    assert np.any(moved["text"]["embedding"])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(moved["head"])) == train_head
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen))


def test_the_energy_of_a_mixture_is_that_of_the_unguided_states_at_the_minimum():
    """Where the states are the guided ones, their mixture is the state with text: all clips score
    as they would unguided.
    """
    objective = build_objective(with_energy("mixture"))
    assert isinstance(objective, Guided)
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, unconditional = jax.random.normal(keys[0], (2, 6, 8, 32))
    tokens = jax.random.normal(keys[1], (6, 8, 8))
    head = helpers.random_params(objective.init(keys[2]))
    strength = jnp.linspace(1.0, 6.0, 6)
    teacher = Teacher(objective, head, hidden, Guidance(strength, unconditional))
    guided = unconditional + strength[:, None, None] * (hidden - unconditional)
    others = {"teacher": teacher, "average": head, "target": None}
    found = objective.loss(head, guided, tokens, keys[3], **others)
    expected = objective.student.loss(head, hidden, tokens, keys[3], **others)["energy"]
    # an error of the guided state is divided by the strength that has made it larger
    np.testing.assert_allclose(found["energy"], expected, rtol=rounding(64), atol=rounding(64))
    np.testing.assert_allclose(found["guidance"], 0, atol=rounding(8))
    alone = build_objective(with_energy("unguided")).loss(head, guided, tokens, keys[3], **others)
    np.testing.assert_array_equal(alone["energy"][1:], 0)
    np.testing.assert_allclose(alone["energy"][0], expected[0], rtol=rounding(64))


def test_masks_are_those_before_the_iterations_of_decoding():
    context = context_of(RUN)
    masks = np.asarray(context.masks.sample(stream(jax.random.key(0), "mask"), 4096, 8))
    visible = (~masks).sum(axis=1)
    counts = [np.mean(visible == number) for number in (0, 2, 4)]
    assert sum(counts) == 1
    assert np.abs(np.asarray(counts) - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 4096)
    assert context.masks.max_visible(8) == 4
    assert context.masks.mean_visible(8) == 2
    shares = masks[visible == 4].mean(axis=0)
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / np.sqrt(4096 / 3)


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distillation": DistillationConfig(head_from_teacher=True)},
            r"distillation\.backbone_from_teacher is False; allowed: True where objective is 'gui",
        ),
        (
            {"distillation": DistillationConfig(backbone_from_teacher=True)},
            r"distillation\.head_from_teacher is False; allowed: True where objective is 'guided'",
        ),
        (
            {"distillation": dataclasses.replace(RUN.distillation, weight=1.0)},
            r"distillation\.weight is 1\.0; allowed: 0 where objective is 'guided'",
        ),
        (
            {"distillation": dataclasses.replace(RUN.distillation, freeze_backbone=True)},
            r"distillation\.freeze_backbone is True; allowed: False where objective is 'guided'",
        ),
        (
            {"decode": dataclasses.replace(RUN.decode, guidance_scale=7.0)},
            r"decode\.guidance_scale is 7\.0; allowed: from 1 to guided\.max_strength = 6",
        ),
        (
            {
                "decode": dataclasses.replace(RUN.decode, guidance_scale=1.0),
                "model": helpers.tiny_model_config(
                    text=TextConfig(encoder="none", token_dropout=0.0, drop_rate=0.0)
                ),
            },
            r"model\.text\.encoder is 'none'; allowed: 'learned' or 'frozen' where objective",
        ),
        (
            {"energy": dataclasses.replace(RUN.energy, sample_guidance=0.5)},
            r"energy\.sample_guidance is 0\.5; allowed: 0 where objective is 'guided'",
        ),
    ],
)
def test_what_it_cannot_learn_by_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(dataclasses.replace(RUN, **changes))


def test_a_run_without_its_student_is_refused(
    encoded_dataset: pathlib.Path, runs: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """And one that names a run of another objective, or a student with another head."""

    def refuses(source: pathlib.Path | str, message: str, **changes: Any) -> None:
        config = helpers.tiny_guided_config(encoded_dataset, source, **changes)
        with pytest.raises(ConfigError, match=message):
            Trainer(config, tmp_path / "run", devices=jax.devices()[:1])
        assert not (tmp_path / "run" / "config.json").exists()

    refuses("", "init_from is ''; allowed: the workdir of a teacher")
    refuses(runs["teacher"], "a run of objective 'diffusion'; allowed: one of 'energy', where obj")
    energy = dataclasses.replace(RUN.energy, noise="uniform")
    refuses(runs["student"], r"energy\.noise is 'uniform'; allowed: 'gaussian'", energy=energy)
    backbone = dataclasses.replace(RUN.model.backbone, decoder_depth=2)
    model = dataclasses.replace(RUN.model, backbone=backbone)
    refuses(runs["student"], "decoder_depth is 2; .*init_blocks says which", model=model)
    message = "which names block 1 of the decoder; allowed: 0 to 0, those of the source"
    refuses(runs["student"], message, model=model, init_blocks="0/0,1")
