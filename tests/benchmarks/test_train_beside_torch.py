"""The training step beside torch's: both train the same sizes, and what is shown was measured."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax
import pytest

from benchmarks import train_beside_torch
from benchmarks.train_beside_torch import SIDES, Side, check_run, measure_side, summarize
from fasttta_jax.config import RunConfig, TextConfig
from fasttta_jax.performance.flops import training_step_flops
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from tests.support import helpers

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
STREAMS = (("clap", 1, 12), ("t5", 3, 10))


def frozen_run() -> RunConfig:
    """A tiny teacher whose text is two frozen streams."""
    run = helpers.tiny_teacher_config("unused")
    text = TextConfig(encoder="frozen", streams=STREAMS, token_dropout=0.0)
    model = dataclasses.replace(run.model, text=text)
    diffusion = dataclasses.replace(run.diffusion, prediction="epsilon")
    return dataclasses.replace(run, model=model, diffusion=diffusion)


@needs_torch
def test_torch_trains_as_many_parameters_and_finds_losses_like_those_of_a_fresh_model() -> None:
    from benchmarks.train_torch import TorchTraining

    run = frozen_run()
    training = TorchTraining(run)
    system = build_model(run, abstract_text_encoder(run.model.text))
    ours = jax.tree.leaves(jax.eval_shape(system.init, jax.random.key(0)))
    assert sum(value.numel() for value in training.model.parameters()) == sum(
        leaf.size for leaf in ours
    )
    final = training.model.head.final.weight  # zero at first, and all that has a gradient then
    assert not final.any()
    assert 0 < training() < 1e4
    assert final.any()


@needs_torch
@pytest.mark.long
def test_both_sides_are_measured() -> None:
    for side in SIDES:
        found = measure_side(side, frozen_run(), steps=2, num_threads=1)
        assert len(found["seconds"]) == len(found["cpu_seconds"]) == 2
        assert (found["compile_seconds"] > 0) == (side == "ours")
        assert found["peak_bytes"] > 0


def turn(seconds: list[float], cpu: list[float]) -> dict[str, Any]:
    return {
        "compile_seconds": 5.0,
        "first_seconds": 9.0,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": 2**30,
    }


def test_the_ratio_is_that_of_rounds() -> None:
    """Where one round was slow for both, it counts no more than the others."""
    run = frozen_run()
    turns: dict[Side, list[dict[str, Any]]] = {
        "ours": [turn([1.0, 1.0], [2.0, 2.0]), turn([10.0, 10.0], [2.0, 4.0])],
        "torch": [turn([2.0, 2.0], [3.0, 3.0]), turn([20.0, 20.0], [6.0, 6.0])],
    }
    results = summarize(turns, run, 1)
    assert results["faster_than_torch"]["seconds"] == {"median": 2.0, "rounds": [2.0, 2.0]}
    assert results["faster_than_torch"]["cpu_seconds"]["rounds"] == [1.5, 2.0]
    ours = results["rows"][0]
    assert ours["median_seconds"] == 5.5
    flops = run.data.batch_size * training_step_flops(run).total
    assert ours["flops_per_cpu_second"] * ours["cpu_seconds"] == pytest.approx(flops)
    text = train_beside_torch.report(results)
    assert "torch's seconds over ours: 2.00 (2.00 to 2.00 over 2 rounds)" in text


def test_runs_that_the_published_step_does_not_train_are_refused() -> None:
    run = frozen_run()
    check_run(run)
    for field, wrong in (
        ("objective", dataclasses.replace(run, objective="energy")),
        ("model.text.encoder", helpers.tiny_teacher_config("unused")),
    ):
        if field == "model.text.encoder":
            wrong = dataclasses.replace(wrong, diffusion=run.diffusion)
        with pytest.raises(ValueError, match=f"{field} is '.*'; allowed beside torch"):
            check_run(wrong)
