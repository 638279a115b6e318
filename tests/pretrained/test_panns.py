"""Cnn14: sizes that fit or are refused, frames and lengths, and clips that stay by themselves."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.pretrained.panns import (
    CNN14_16K,
    CNN14_32K,
    Panns,
    PannsConfig,
    load_panns,
    panns_mel,
)
from fasttta_jax.storage.weights import ConvertedError
from tests.support.tolerance import assert_close, kernel_terms, rounding

NARROW = dataclasses.replace(CNN14_16K, widths=(4, 4, 6, 6, 8, 8), embedding_size=8, num_classes=5)


@functools.cache
def narrow() -> Any:
    """Random parameters."""
    audio = jax.ShapeDtypeStruct((1, NARROW.min_samples), jnp.float32)
    shapes = jax.eval_shape(Panns(NARROW).init, jax.random.key(0), audio)
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) / 2)
        if path[-1].key in ("scale", "variance"):
            values = 1 + 0.3 * np.tanh(values)
        if [path[-2].key, path[-1].key] == ["norm", "mean"]:
            values = values - 30
        return np.float32(values)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def noise(num_clips: int, num_samples: int) -> np.ndarray:
    return np.float32(0.1 * np.random.default_rng(1).normal(size=(num_clips, num_samples)))


@pytest.mark.parametrize(
    ("config", "num_samples", "num_frames"),
    [
        (CNN14_16K, 160_000, 1001),
        (CNN14_32K, 320_000, 1001),
        (CNN14_16K, 163_840, 1025),
        (CNN14_16K, 32_000, 201),
    ],
)
def test_published_networks_give_a_vector_a_clip(
    config: PannsConfig, num_samples: int, num_frames: int
) -> None:
    audio = jax.ShapeDtypeStruct((3, num_samples), jnp.float32)
    mel = jax.eval_shape(functools.partial(panns_mel, config=config), audio)
    assert mel.shape == (3, num_frames, 64)
    params = jax.eval_shape(Panns(config).init, jax.random.key(0), audio)
    for dtype in (jnp.float32, jnp.bfloat16):
        found = jax.eval_shape(Panns(config, dtype).apply, params, audio)
        assert (found.embeddings.shape, found.logits.shape) == ((3, 2048), (3, 527))
        assert found.embeddings.dtype == found.logits.dtype == jnp.float32


def test_short_clips_are_refused_and_the_shortest_is_not() -> None:
    """Five halvings leave a row of 32 frames."""
    assert CNN14_16K.min_samples == 31 * 160
    assert CNN14_32K.min_samples == 31 * 320
    assert dataclasses.replace(CNN14_16K, hop_length=2).min_samples == 257
    run = jax.jit(Panns(NARROW).apply)
    found = run(narrow(), noise(2, NARROW.min_samples))
    assert np.isfinite(found.logits).all()
    for num_samples in (NARROW.min_samples - 1, 1, 0):
        with pytest.raises(ValueError, match=f"have {num_samples} samples; allowed: at least 4960"):
            run(narrow(), np.zeros((1, num_samples), np.float32))


def test_clips_stay_by_themselves() -> None:
    run = jax.jit(Panns(NARROW).apply)
    audio = noise(2, NARROW.min_samples)
    together = run(narrow(), audio)
    beside_silence = audio * np.array([[1], [0]], np.float32)
    assert_close(
        run(narrow(), beside_silence).logits[0],
        together.logits[0],
        rounding(kernel_terms(narrow())),
    )
    assert np.isfinite(run(narrow(), beside_silence).embeddings).all()


def test_half_precision_is_close_and_gives_float32() -> None:
    audio = noise(2, NARROW.min_samples)
    fine = jax.jit(Panns(NARROW).apply)(narrow(), audio)
    coarse = jax.jit(Panns(NARROW, jnp.bfloat16).apply)(narrow(), audio)
    assert coarse.embeddings.dtype == coarse.logits.dtype == jnp.float32
    error = np.abs(coarse.embeddings - fine.embeddings).max() / np.abs(fine.embeddings).max()
    # bfloat16 keeps 8 bits; a rounding of inputs, kernels and results in each of 14 layers
    assert 0 < error < rounding(3 * 14, jnp.bfloat16)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 0}, "sample_rate is 0; allowed: a whole number from 1"),
        ({"num_classes": 527.0}, r"num_classes is 527\.0; allowed"),
        ({"widths": (1, 2, 3)}, r"widths is \(1, 2, 3\); allowed: a whole number for each of 6"),
        ({"widths": (1, 2, 3, 4, 5, -6)}, r"widths\[5\] is -6"),
        ({"num_mels": 31}, "num_mels is 31; allowed: at least 32"),
        ({"f_max": 9_000.0}, r"f_max = 9000\.0 must satisfy"),
    ],
)
def test_unsupported_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CNN14_16K, **changes)


def test_other_folders_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConvertedError, match=r"weights\.json is missing"):
        load_panns(tmp_path)
