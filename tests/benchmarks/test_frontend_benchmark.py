"""The benchmark of the front end: every part runs, like torch's in shape, and the table says so."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import beside_torch, frontend, measure
from benchmarks.frontend_parts import PARTS, SIZES, TEXT_PARTS, Part, Sizes, build, draw_inputs
from tests.pretrained.test_clap_mel import decibel_rounding
from tests.support.mel_reference import mel_rounding
from tests.support.tolerance import assert_within

SMALL, PUBLISHED = SIZES["small"], SIZES["published"]
BATCH_SIZE, TEXT_LENGTHS = 2, (5, 9)

HAS_TORCH = all(map(importlib.util.find_spec, beside_torch.TORCH_PACKAGES))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs torch, diffusers and transformers")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    cases = frontend.build_cases(PARTS, [BATCH_SIZE], TEXT_LENGTHS)
    return frontend.benchmark(
        cases, SMALL, dtype="float32", repeats=3, with_torch=HAS_TORCH, num_threads=1
    )


def abstract(name: str, sizes: Sizes, arrays: tuple[np.ndarray, ...], dtype: str) -> Any:
    """Shapes and dtypes of what a part computes."""
    init, function = build(name, sizes, dtype)
    return jax.eval_shape(function, jax.eval_shape(init, jax.random.key(0), *arrays), *arrays)


def shapes(values: Any) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in jax.tree.leaves(values)]


# ---------------------------------------------------------------------------------------- parts


def test_published_inputs_are_those_of_a_clip_of_ten_seconds() -> None:
    expected = {
        "mel": [(3, 163_840)],
        "vae_encode": [(3, 1024, 64)],
        "vae_decode": [(3, 256, 16, 8)],
        "vocoder": [(3, 1024, 64)],
        "codec_encode": [(3, 163_840)],
        "codec_decode": [(3, 256, 128)],
        "t5": [(3, 77)] * 2,
        "clap_text": [(3, 77)] * 2,
        "clap_mel": [(3, 480_000), (3,)],
        "clap_audio": [(3, 1, 1001, 64)],
    }
    assert {name: shapes(draw_inputs(name, PUBLISHED, 3, 77).arrays) for name in PARTS} == expected


def test_what_one_part_gives_the_next_one_takes() -> None:
    chain = ("mel", "vae_encode", "vae_decode", "vocoder")
    for name, following in itertools.pairwise(chain):
        found = abstract(name, SMALL, draw_inputs(name, SMALL, 1, 5).arrays, "float32")
        taken = draw_inputs(following, SMALL, 1, 5).arrays
        assert shapes(found)[0] == shapes(taken)[0]


@needs_torch
@pytest.mark.parametrize("name", PARTS)
def test_torch_computes_arrays_of_the_same_shape(name: str) -> None:
    from benchmarks.frontend_torch import TorchPart

    arrays = draw_inputs(name, SMALL, BATCH_SIZE, 5).arrays
    found = TorchPart(name, SMALL, arrays)()
    assert shapes(found) == shapes(abstract(name, SMALL, arrays, "float32"))
    assert all(bool(values.isfinite().all()) for values in found)


@needs_torch
@pytest.mark.parametrize("name", ["mel", "clap_mel"])
def test_torch_computes_the_same_spectrogram(name: str) -> None:
    """In nepers, and in dB."""
    from benchmarks.frontend_torch import TorchPart

    arrays = draw_inputs(name, SMALL, 1, 5).arrays
    (found,) = TorchPart(name, SMALL, arrays)()
    ours = Part(name, SMALL, arrays, "float32")()
    if name == "mel":
        bound = np.stack([mel_rounding(np.asarray(clip), SMALL.mel) for clip in arrays[0]])
    else:
        bound = decibel_rounding(np.asarray(ours))
    assert_within(found.numpy(), ours, bound)


@needs_torch
def test_torch_orders_tokens_as_we_do() -> None:
    """Encoding picks the same numbers of the same latents: its tokens are the VAE's, rearranged."""
    import torch

    from benchmarks.frontend_torch import TorchPart
    from fasttta_jax.audio.mel import log_mel
    from fasttta_jax.codecs.vae_codec import to_tokens

    (audio,) = draw_inputs("codec_encode", SMALL, 1, 5).arrays
    spectrogram = np.asarray(log_mel(audio, SMALL.mel))
    tokens, _ = TorchPart("codec_encode", SMALL, (audio,))()
    latents, _ = TorchPart("vae_encode", SMALL, (spectrogram,))()
    expected = to_tokens(latents.numpy() * SMALL.vae.scaling_factor, SMALL.patch_size)
    torch.testing.assert_close(tokens, torch.from_numpy(np.array(expected)), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------- cases


def test_text_encoders_are_timed_at_every_length() -> None:
    cases = frontend.build_cases(PARTS, [1, 8], [32, 77])
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) == 2 * (len(PARTS) + len(TEXT_PARTS))
    assert {"t5 32 x 1", "t5 77 x 8", "mel x 8"} <= set(names)
    with pytest.raises(ValueError, match=r"'mel x 1' is asked for more than once"):
        frontend.build_cases(["mel", "mel"], [1], [32])


@pytest.mark.parametrize("parts", [["mel", "vae"], []])
def test_an_unknown_part_is_refused_with_the_known_ones(parts: list[str]) -> None:
    with pytest.raises(ValueError, match=f"--parts holds .*; allowed: {', '.join(PARTS)}"):
        frontend.build_cases(parts, [1], [32])


def test_threads_are_those_that_there_are() -> None:
    before = os.sched_getaffinity(0)
    assert beside_torch.bind_threads(None) == len(before)
    with pytest.raises(ValueError, match=f"allowed: 1 to {len(before)}"):
        beside_torch.bind_threads(len(before) + 1)
    try:
        assert beside_torch.bind_threads(1) == 1
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_torch_takes_part_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not beside_torch.wants_torch("no")
    monkeypatch.setattr(beside_torch, "TORCH_PACKAGES", ("numpy",))
    assert beside_torch.wants_torch("auto")
    assert beside_torch.wants_torch("yes")
    monkeypatch.setattr(beside_torch, "TORCH_PACKAGES", ("numpy", "absent_package"))
    assert not beside_torch.wants_torch("auto")
    with pytest.raises(ValueError, match="needs absent_package, which is not installed"):
        beside_torch.wants_torch("yes")


# -------------------------------------------------------------------------------------- results


def test_there_is_a_row_for_every_part(results: dict[str, Any]) -> None:
    rows = results["rows"]
    counts = {name: sum(row["part"] == name for row in rows) for name in PARTS}
    assert counts == {name: 2 if name in TEXT_PARTS else 1 for name in PARTS}
    for row in rows:
        assert row["repeats"] >= 3
        assert row["compile_seconds"] > 0
        sides = [row, row["torch"]] if HAS_TORCH else [row]
        for side in sides:
            low, high = side["p10_seconds_per_clip"], side["p90_seconds_per_clip"]
            assert 0 < low <= side["seconds_per_clip"] <= high
            assert np.isclose(side["clips_per_second"] * side["seconds_per_clip"], 1)
        assert row["median_seconds"] == BATCH_SIZE * row["seconds_per_clip"]
        if HAS_TORCH:
            ratio = row["torch"]["seconds_per_clip"] / row["seconds_per_clip"]
            assert np.isclose(row["faster_than_torch"], ratio)


def test_a_whole_dataset_follows_from_the_rate_of_the_codec(results: dict[str, Any]) -> None:
    by_part = {row["part"]: row for row in results["rows"]}
    derived = {entry["part"]: entry for entry in results["whole_dataset"]}
    assert list(derived) == ["codec_encode", "codec_decode"]
    for name, entry in derived.items():
        seconds = 60 * entry["minutes"]
        assert np.isclose(seconds * by_part[name]["clips_per_second"], 50_000)
        assert entry["clip_seconds"] == SMALL.num_samples / SMALL.mel.sample_rate
        assert ("torch_minutes" in entry) == HAS_TORCH


def test_short_parts_are_repeated_more_often(results: dict[str, Any]) -> None:
    by_part = {row["part"]: row["repeats"] for row in results["rows"]}
    assert 3 < by_part["t5"] <= beside_torch.MOST_REPEATS


def test_what_is_printed_is_written(results, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "frontend.json"
    measure.finish(results, frontend.report(results), str(out))
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["rows"] == results["rows"]
    assert written["whole_dataset"] == results["whole_dataset"]
    assert written["machine"]["jax"] == jax.__version__
    assert len(written["conditions"]["load_before"]) == 3
    assert ("torch" in written["conditions"]["torch_versions"]) == HAS_TORCH
    for row in written["rows"]:
        line = next(
            line
            for line in printed.splitlines()
            if line.split()[:1] == [row["part"]] and row["input"] in line
        )
        assert f"{1e3 * row['seconds_per_clip']:.2f}" in line.split()
        if HAS_TORCH:
            assert line.endswith(f"{row['faster_than_torch']:.2f}")
    for word in ("encode in", "decode in", "Load of the machine"):
        assert word in printed


def test_without_torch_there_are_no_columns_for_it(results: dict[str, Any]) -> None:
    alone = {
        "rows": [
            {key: value for key, value in row.items() if "torch" not in key}
            for row in results["rows"]
        ],
        "whole_dataset": [],
        "conditions": {**results["conditions"], "torch_versions": {}},
    }
    assert "torch" in frontend.report(results) or not HAS_TORCH
    assert "torch" not in frontend.report(alone)


@pytest.mark.parametrize("name", ["codec_encode", "vocoder", "t5"])
def test_results_are_float32_whatever_the_products(name: str) -> None:
    arrays = draw_inputs(name, SMALL, 1, 5).arrays
    for values in jax.tree.leaves(abstract(name, SMALL, arrays, "bfloat16")):
        assert values.dtype == np.float32
