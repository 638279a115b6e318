"""VGGish: patches of a clip, sizes that fit or are refused, and clips that stay by themselves."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.pretrained.vggish import (
    MIN_SAMPLES,
    Vggish,
    VggishConfig,
    load_vggish,
    num_patches,
    vggish_patches,
)
from fasttta_jax.storage.weights import ConvertedError
from tests.support.tolerance import assert_close, kernel_terms, rounding

NARROW = VggishConfig(widths=(3, 4, 4, 4, 4, 6), hidden_size=16, embedding_size=8, pca=False)


@pytest.mark.parametrize(
    ("num_samples", "number"),
    [(160_000, 10), (163_840, 10), (152_000, 9), (15_600, 1), (15_599, 0), (399, 0), (0, 0)],
)
def test_patches_of_a_clip(num_samples: int, number: int) -> None:
    """A clip that is shorter than a patch is refused."""
    assert num_patches(num_samples) == number
    audio = jax.ShapeDtypeStruct((2, num_samples), jnp.float32)
    if number:
        assert jax.eval_shape(vggish_patches, audio).shape == (2, number, 96, 64)
        return
    with pytest.raises(ValueError, match=f"have {num_samples} samples; allowed: at least 15600"):
        jax.eval_shape(vggish_patches, audio)


def test_published_network_gives_a_vector_a_patch() -> None:
    audio = jax.ShapeDtypeStruct((3, 160_000), jnp.float32)
    for options in ({}, {"pca": True, "quantize": True}, {"dtype": jnp.bfloat16}):
        model = Vggish(VggishConfig(), **options)
        params = jax.eval_shape(model.init, jax.random.key(0), audio)
        assert ("pca" in params["params"]) == ("pca" in options)
        found = jax.eval_shape(model.apply, params, audio)
        assert (found.shape, found.dtype) == ((3, 10, 128), jnp.float32)


def test_clips_stay_by_themselves() -> None:
    """Nor does what follows the last patch make a difference."""
    rng = np.random.default_rng(0)
    audio = np.float32(0.1 * rng.normal(size=(2, MIN_SAMPLES + 5_000)))
    model = Vggish(NARROW, final_relu=False)
    params = jax.jit(model.init)(jax.random.key(0), audio)
    run = jax.jit(model.apply)
    together = run(params, audio)
    audio[1] = 0
    audio[:, MIN_SAMPLES:] = 1
    found = run(params, audio)
    assert_close(found[0], together[0], rounding(kernel_terms(params)))
    assert np.isfinite(found).all()
    coarse = jax.jit(Vggish(NARROW, final_relu=False, dtype=jnp.bfloat16).apply)(params, audio)
    assert coarse.dtype == jnp.float32
    error = np.abs(coarse - found).max() / np.abs(found).max()
    # bfloat16 keeps 8 bits; a rounding of inputs, kernels and results in each of 9 layers
    assert 0 < error < rounding(3 * 9, jnp.bfloat16)


def test_options_that_do_not_fit_are_refused() -> None:
    audio = jax.ShapeDtypeStruct((1, MIN_SAMPLES), jnp.float32)
    for model, message in (
        (Vggish(NARROW, pca=True), "the weights have no principal components"),
        (Vggish(NARROW, quantize=True), "quantize is True and pca False; allowed: both"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, jax.random.key(0), audio)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [1] * 6}, r"widths is \[1, .* allowed: a whole number for each of 6"),
        ({"widths": (1, 2, 3, 4, 5, 0)}, r"widths\[5\] is 0; allowed: a whole number from 1"),
        ({"embedding_size": 128.0}, r"embedding_size is 128\.0; allowed"),
        ({"pca": 1}, "pca is 1; allowed: true, false"),
    ],
)
def test_unsupported_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NARROW, **changes)


def test_other_folders_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConvertedError, match=r"weights\.json is missing"):
        load_vggish(tmp_path)
