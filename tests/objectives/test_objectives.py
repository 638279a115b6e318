"""The seam of objectives: a third one trains by its name, and a loss is handed what it may need."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fasttta_jax
from fasttta_jax.config import (
    ConfigError,
    DiffusionConfig,
    DistillationConfig,
    EnergyConfig,
    HeadConfig,
    RunConfig,
)
from fasttta_jax.objectives import OBJECTIVES, Diffusion, Energy, build_objective
from fasttta_jax.performance.flops import sampling_flops, training_step_flops
from fasttta_jax.randomness import stream
from fasttta_jax.systems import build_model
from fasttta_jax.training import programs
from fasttta_jax.training.loop import Trainer
from fasttta_jax.training.state import from_items, to_items
from fasttta_jax.training.step import step
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.metrics_log import read_metrics
from tests.support import helpers
from tests.support.regression import Regression, regression  # noqa: F401

RUN = helpers.tiny_teacher_config("unused")


ONE = jax.devices()[:1]


def test_a_third_objective_trains_evaluates_and_samples(
    encoded_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    regression: str,  # noqa: F811
) -> None:
    """By its name in a config and the code of `support/regression.py` alone."""
    config = helpers.tiny_teacher_config(
        encoded_dataset,
        objective=regression,
        num_steps=40,
        evaluate_every=20,
        best_metric="square",
        sample_prompts=("a loud tone",),
        optimizer=dataclasses.replace(RUN.optimizer, learning_rate=4e-3),
    )
    Trainer(config, tmp_path, devices=ONE).run()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    curve = [row["train/square"] for row in rows if "train/square" in row]
    assert len(curve) == 40
    assert np.mean(curve[-5:]) < 0.9 * np.mean(curve[:5])
    assert [row["train/loss"] for row in rows if "train/loss" in row] == curve
    assert sum("validation/square" in row for row in rows) == 2
    assert Checkpoints(tmp_path, best_metric="square").best_step() == 40
    assert (tmp_path / "samples" / "00000040" / "00.wav").is_file()
    assert json.loads((tmp_path / "config.json").read_text())["config"]["objective"] == regression

    pipeline = fasttta_jax.load(tmp_path)
    clips = [clip.tokens for clip in pipeline.generate(["a loud tone"] * 3, seeds=[0, 0, 1])]
    np.testing.assert_array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2]), "the order of revealing is still drawn"
    assert sampling_flops(config).head > 0
    assert training_step_flops(config).head == 8 * build_objective(config).flops().training


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="objective is 'pupil'; allowed: one of 'diffusion', 'e"):
        build_objective(RunConfig(objective="pupil"))


@pytest.mark.parametrize(
    ("objective", "weight", "allowed"),
    [
        ("diffusion", 0.0, r"\('loss', 'mse', 'vb'\)"),
        ("energy", 0.0, r"\('loss', 'energy'\)"),
        ("energy", 1.0, r"\('loss', 'energy', 'align'\)"),
        ("diffusion", 1.0, r"\('loss', 'mse', 'vb', 'align'\)"),
    ],
)
def test_the_best_metric_is_a_loss_that_the_run_has(objective, weight, allowed):
    run = RunConfig(
        objective=objective, best_metric="x", distillation=DistillationConfig(weight=weight)
    )
    with pytest.raises(ConfigError, match=f"best_metric is 'x'; allowed: one of {allowed}"):
        build_objective(run)
    names = ("loss", *build_objective(dataclasses.replace(run, best_metric="loss")).terms)
    for name in (*names, *(("align",) if weight else ())):
        build_objective(dataclasses.replace(run, best_metric=name))


@pytest.mark.parametrize("name", ["diffusion", "energy"])
def test_objectives_and_systems_are_equal_by_value(name):
    config = dataclasses.replace(RUN, objective=name)
    first = build_model(config, helpers.tiny_text_encoder())
    second = build_model(dataclasses.replace(config), helpers.tiny_text_encoder())
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert first.objective == second.objective
    assert programs.train_step(programs.make_context(config, first)) is programs.train_step(
        programs.make_context(config, second)
    )
    other = dataclasses.replace(config, diffusion=DiffusionConfig(num_steps=7, sampling_steps=2))
    other = dataclasses.replace(other, energy=EnergyConfig(alpha=0.5))
    assert build_model(other, helpers.tiny_text_encoder()) != first


# --------------------------------------------------------------------------------- named streams


def test_streams_are_independent_and_none_depends_on_how_many_there_are():
    key = jax.random.key(5)
    names = ["mask", "drop", "hide", "dropout", "objective", "a new one"]
    draws = {name: float(jax.random.normal(stream(key, name))) for name in names}
    assert len(set(draws.values())) == len(names)
    for name in names:
        assert float(jax.random.normal(stream(key, name))) == draws[name]
    # the number behind a name is part of what makes a run reproducible: CRC-32
    np.testing.assert_array_equal(
        jax.random.key_data(stream(key, "mask")),
        jax.random.key_data(jax.random.fold_in(key, 0x7F6FC330)),
    )


# ------------------------------------------------------------- the head of a teacher as the start


V_TEACHER = Diffusion(RUN.model, RUN.diffusion)
ENERGY = EnergyConfig(noise_dim=helpers.TOKEN_DIM)


def teacher_head() -> Any:
    return V_TEACHER.init(jax.random.key(0))


def test_a_head_from_a_teacher_is_minus_its_velocity_near_the_last_step():
    head = helpers.random_params(teacher_head())
    found = Energy(RUN.model, ENERGY).head_from(V_TEACHER, head)
    noise = jax.random.normal(jax.random.key(1), (3, helpers.TOKEN_DIM))
    hidden = jax.random.normal(jax.random.key(2), (3, 32))
    samples = Energy(RUN.model, ENERGY).draw(found, noise[None], hidden)[0]
    time = jnp.full(3, round(0.997 * 999))
    velocity = V_TEACHER.head.apply({"params": head}, noise, time, hidden)
    # the same products in one order; the time embedding is added to the context's bias, not after
    np.testing.assert_allclose(samples, -velocity[:, : helpers.TOKEN_DIM], rtol=1e-4, atol=1e-4)


def test_a_head_from_a_teacher_leaves_its_regression_behind():
    config = dataclasses.replace(V_TEACHER.config, regression=1.0)
    regressing = dataclasses.replace(V_TEACHER, config=config)
    head = helpers.random_params(regressing.init(jax.random.key(0)))
    ours = Energy(RUN.model, ENERGY)
    expected = jax.tree.structure(ours.init(jax.random.key(0)))
    assert jax.tree.structure(ours.head_from(regressing, head)) == expected


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (EnergyConfig(noise_dim=5), r"energy\.noise_dim is 5; allowed: 8 where distillation\.head"),
        (
            dataclasses.replace(ENERGY, roles="context_stream"),
            r"energy\.roles is 'context_stream'; allowed: 'noise_stream' where",
        ),
        (
            dataclasses.replace(ENERGY, noise="uniform"),
            r"energy\.noise is 'uniform'; allowed: 'gaussian' where",
        ),
    ],
)
def test_a_head_that_cannot_be_the_teachers_is_refused(energy, message):
    with pytest.raises(ConfigError, match=message):
        Energy(RUN.model, energy).head_from(V_TEACHER, teacher_head())


def test_a_teacher_whose_head_says_nothing_of_the_token_is_refused():
    ours = Energy(RUN.model, ENERGY)
    epsilon = Diffusion(RUN.model, DiffusionConfig(prediction="epsilon"))
    for teacher in (epsilon, ours):
        with pytest.raises(ConfigError, match="and its diffusion"):
            ours.head_from(teacher, teacher_head())
    wider = dataclasses.replace(RUN.model, head=HeadConfig(width=48, depth=1))
    with pytest.raises(ConfigError, match=r"model\.head\.width is 48; allowed: 32 where"):
        Energy(wider, ENERGY).head_from(V_TEACHER, teacher_head())
    with pytest.raises(ConfigError, match=r"Diffusion does not say .* from that of Energy"):
        V_TEACHER.head_from(ours, teacher_head())


# ------------------------------------------------------------- what a loss is given beside the head


@dataclasses.dataclass(frozen=True)
class Following(Regression):
    """Compares its prediction with the teacher's head, the average's and the target's."""

    terms: ClassVar = {name: name for name in ("square", "teacher", "average", "target")}

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def target_decay(self) -> float:
        return 0.5

    def loss(self, head, hidden, tokens, key, *, teacher, average, target):
        assert isinstance(teacher.objective, Diffusion)
        ours = self.predict(head, hidden)
        time = jnp.zeros(tokens.shape[:2], jnp.int32)
        variables = {"params": teacher.head}
        theirs = teacher.objective.head.apply(variables, tokens, time, teacher.hidden)
        others = {
            "square": tokens,
            "teacher": theirs[..., : tokens.shape[-1]],
            "average": self.predict(average, hidden),
            "target": self.predict(target, hidden),
        }
        return {name: jnp.mean((ours - other) ** 2, axis=-1) for name, other in others.items()}


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(OBJECTIVES, "following", lambda run: Following(run.model))
    return "following"


def test_a_loss_is_given_the_teacher_the_average_and_the_target(following: str) -> None:
    """At the first step average and target are the head itself; then each moves by its decay."""
    optimizer = dataclasses.replace(
        RUN.optimizer, warmup_steps=0, decay_steps=0, ema_decay=0.9, ema_warmup=False
    )
    config = dataclasses.replace(RUN, objective=following, optimizer=optimizer)
    context = programs.default_context(config, helpers.tiny_text_encoder())
    assert context.teacher is not None
    frozen = jax.jit(context.teacher.init)(jax.random.key(1))
    state = jax.jit(programs.fresh_state(context))(jax.random.key(0))
    tokens = jax.random.normal(jax.random.key(2), (4, helpers.NUM_TOKENS, helpers.TOKEN_DIM))
    text = context.model.text.tokenize(["a loud tone"] * 4)
    batch = {"tokens": tokens, "weight": jnp.ones(4), "text": text}
    run = jax.jit(lambda state: step(context, state, frozen, batch, jax.random.key(3)))
    first, metrics = run(state)
    assert {"square", "teacher", "average", "target"} < set(metrics)
    assert metrics["average"] == metrics["target"] == 0
    assert metrics["teacher"] > 0
    second, metrics = run(first)
    assert metrics["average"] > metrics["target"] > 0, "the average lags further behind"

    def moved(old: Any, new: Any, decay: float) -> Any:
        return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), old, new)

    for found, decay in ((second.target, 0.5), (second.ema["head"], 0.9)):
        before = first.target if decay == 0.5 else first.ema["head"]
        expected = moved(before, second.params["head"], decay)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, expected
        )
    again = from_items(to_items(second))
    jax.tree.map(np.testing.assert_array_equal, again, second)


def test_a_target_is_saved_and_restored(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path, following: str
) -> None:
    """An interrupted run with a teacher, an average and a target goes on as if it had not been."""
    Trainer(helpers.tiny_teacher_config(encoded_dataset), tmp_path / "teacher", devices=ONE).run()
    config = helpers.tiny_teacher_config(
        encoded_dataset, objective=following, init_from=str(tmp_path / "teacher")
    )
    whole = Trainer(config, tmp_path / "whole", devices=ONE).run()
    part = Trainer(config, tmp_path / "part", devices=ONE)
    steps, run = [], part.train_step

    def stops(*arguments: Any) -> Any:
        steps.append(len(steps))
        if len(steps) == 5:
            raise KeyboardInterrupt
        return run(*arguments)

    part.train_step = stops
    with pytest.raises(KeyboardInterrupt):
        part.run()
    resumed = Trainer(config, tmp_path / "part", devices=ONE).run()
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert whole.target is not None
    with pytest.raises(ConfigError, match=r"init_from is .* objective .following. needs"):
        Trainer(dataclasses.replace(config, init_from=""), tmp_path / "none", devices=ONE)


# --------------------------------------------------------------------------- one program a process


def test_equal_runs_share_their_programs(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A run that differs in what no program reads compiles no step, evaluation or birth anew."""
    config = helpers.tiny_teacher_config(
        encoded_dataset,
        model=helpers.tiny_model_config(head=HeadConfig(width=24, depth=1)),
        optimizer=dataclasses.replace(RUN.optimizer, decay_steps=0),
    )
    other = dataclasses.replace(
        config,
        seed=7,
        num_steps=4,
        log_every=2,
        evaluate_every=2,
        data=dataclasses.replace(config.data, num_threads=2, prefetch=1),
    )
    first = Trainer(config, tmp_path / "first", devices=ONE)
    before = first.train_step
    state = first.run()
    sizes = [program.jitted._cache_size() for program in (before, first.opened.evaluate_step)]
    second = Trainer(other, tmp_path / "second", devices=ONE)
    assert second.train_step is before
    assert second.opened.evaluate_step is first.opened.evaluate_step
    traces = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fasttta_jax.training.step.make_optimizer", lambda *_, **__: traces.append("traced")
        )
        found = second.run()
    assert not traces, "a step was traced again"
    assert second.train_step is first.train_step, "the compiled one, too"
    evaluate = second.opened.evaluate_step
    assert sizes == [program.jitted._cache_size() for program in (before, evaluate)]
    assert int(found.step) == 4
    assert not np.array_equal(found.params["text"]["embedding"], state.params["text"]["embedding"])
