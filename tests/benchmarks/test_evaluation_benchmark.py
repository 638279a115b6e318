"""The benchmark of the networks that judge sounds: all run and are shown; torch's are alike."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import beside_torch, evaluation, measure
from benchmarks.evaluation_parts import SIZES, build, draw_inputs

SMALL, PUBLISHED = SIZES["small"], SIZES["published"]
ONE_OF_EACH = ("panns_16k", "vggish", "clap_tiny")
HAS_TORCH = all(map(importlib.util.find_spec, beside_torch.TORCH_PACKAGES))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return evaluation.benchmark(
        ONE_OF_EACH, [1], SMALL, dtype="float32", repeats=3, with_torch=HAS_TORCH, num_threads=1
    )


def shapes(config: evaluation.Config) -> list[tuple[int, ...]]:
    """Of what a network computes from two clips."""
    audio = draw_inputs(config, 2)
    init, function = build(config, "float32")
    params = jax.eval_shape(init, jax.random.key(0), audio)
    return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(function, params, audio))]


def test_published_networks_give_the_features_that_metrics_take() -> None:
    assert shapes(PUBLISHED["panns_32k"]) == [(2, 2048), (2, 527)]
    assert shapes(PUBLISHED["vggish"]) == [(2, 10, 128)]


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch, diffusers and transformers")
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_torch_computes_arrays_of_the_same_shape(name: str) -> None:
    from benchmarks.evaluation_torch import TorchNetwork

    found = TorchNetwork(SMALL[name], draw_inputs(SMALL[name], 2))()
    found = found if isinstance(found, tuple) else (found,)
    assert [tuple(values.shape) for values in found] == shapes(SMALL[name])
    assert all(bool(values.isfinite().all()) for values in found)


def test_there_is_a_row_for_every_network(results: dict[str, Any]) -> None:
    assert [row["part"] for row in results["rows"]] == list(ONE_OF_EACH)
    for row, entry in zip(results["rows"], results["whole_sets"], strict=True):
        assert np.isclose(60 * entry["minutes"] * row["clips_per_second"], 1000)
        assert ("torch" in row) == ("torch_minutes" in entry) == HAS_TORCH


def test_what_is_printed_is_written(results: dict[str, Any], tmp_path, capsys) -> None:
    out = tmp_path / "networks.json"
    measure.finish(results, evaluation.report(results), str(out))
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert (written["rows"], written["whole_sets"]) == (results["rows"], results["whole_sets"])
    for row in written["rows"]:
        assert f"{1e3 * row['seconds_per_clip']:.2f}" in printed
        assert f"{row['part']} in " in printed
    assert "Load of the machine" in printed


@pytest.mark.parametrize("names", [["panns"], []])
def test_unknown_networks_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--networks holds .*; allowed: panns_16k, panns_32k"):
        evaluation.benchmark(
            names, [1], SMALL, dtype="float32", repeats=3, with_torch=False, num_threads=1
        )
