"""The VAE by itself: sizes that fit or are refused, shapes, and what its gaussian is."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.pretrained.vae import (
    LOG_VARIANCE_RANGE,
    Upsample,
    Vae,
    VaeConfig,
    load,
    sample,
)
from fasttta_jax.storage.weights import ConvertedError
from tests.support.tolerance import assert_close, kernel_terms, rounding, worst_rounding

PUBLISHED = VaeConfig(scaling_factor=0.9227914214134216)
SMALL = VaeConfig(
    scaling_factor=0.9,
    latent_channels=3,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
)


def shapes(config: VaeConfig, *size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Mean, log-variance and reconstruction of spectrograms of a size, without computing them."""

    def run(spectrogram: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        params = Vae(config).init(jax.random.key(0), spectrogram)
        mean, log_variance = Vae(config).apply(params, spectrogram, method="encode")
        return mean, log_variance, Vae(config).apply(params, mean, method="decode")

    return jax.eval_shape(run, jax.ShapeDtypeStruct(size, jnp.float32))


@pytest.fixture(scope="module")
def params() -> Any:
    """Random, also where an initialisation is zero or one."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(size=leaf.shape, scale=leaf.size**-0.25).astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(Vae(SMALL).init, jax.random.key(0), PICTURES))


PICTURES = np.random.default_rng(1).normal(size=(3, 12, 6)).astype(np.float32)
LATENTS = np.random.default_rng(2).normal(size=(3, 6, 3, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="dtype")
def run(
    params: Any, spectrograms: np.ndarray, latents: np.ndarray, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and log-variance of spectrograms, and spectrograms of latents."""
    model = Vae(SMALL, dtype)
    moments = model.apply(params, spectrograms, method="encode")
    return (*moments, model.apply(params, latents, method="decode"))


def test_published_shapes() -> None:
    mean, log_variance, spectrogram = shapes(PUBLISHED, 1, 1024, 64)
    assert (mean.shape, mean.dtype) == ((1, 256, 16, 8), jnp.float32)
    assert (log_variance.shape, log_variance.dtype) == (mean.shape, jnp.float32)
    assert (spectrogram.shape, spectrogram.dtype) == ((1, 1024, 64), jnp.float32)


@pytest.mark.parametrize("num_levels", [1, 2, 4])
@pytest.mark.parametrize("num_columns", [1, 7])
def test_stride(num_levels: int, num_columns: int) -> None:
    config = dataclasses.replace(SMALL, block_out_channels=(8,) * num_levels)
    stride = config.stride
    assert stride == 2 ** (num_levels - 1)
    mean, _, spectrogram = shapes(config, 2, num_columns * stride, 3 * stride)
    assert mean.shape == (2, num_columns, 3, 3)
    assert spectrogram.shape == (2, num_columns * stride, 3 * stride)


def test_upsampling_is_nearest_and_a_convolution() -> None:
    """Four products a place give what nine do on the large spectrogram, edges included."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 8, 8), scale=0.1).astype(np.float32)
    bias = np.arange(8, dtype=np.float32)
    padded = np.pad(x.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("bhwiyx,yxio->bhwo", windows, kernel) + bias
    found = jax.jit(Upsample(jnp.float32).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    assert_close(found, expected, rounding(9 * 8))


def test_clips_do_not_see_each_other(params: Any) -> None:
    louder = np.ones((3, 1, 1), np.float32)
    louder[1:] = 100
    expected = run(params, PICTURES, LATENTS)
    found = run(params, PICTURES * louder, LATENTS * louder[..., None])
    for alone, together in zip(found, expected, strict=True):
        np.testing.assert_array_equal(alone[0], together[0])
        assert not np.isclose(alone[1:], together[1:]).all()


def test_calling_goes_there_and_back(params: Any) -> None:
    mean, _, _ = run(params, PICTURES, LATENTS)
    _, _, expected = run(params, PICTURES, mean)
    there_and_back = jax.jit(Vae(SMALL).apply)(params, PICTURES)
    assert_close(there_and_back, expected, rounding(kernel_terms(params)))


def test_half_precision_is_close_and_gives_float32(params: Any) -> None:
    exact = run(params, PICTURES, LATENTS)
    coarse = run(params, PICTURES, LATENTS, dtype=jnp.bfloat16)
    for ours, expected in zip(coarse, exact, strict=True):
        assert ours.dtype == expected.dtype == jnp.float32
        error = np.abs(ours - expected).max() / np.abs(expected).max()
        # bfloat16 keeps 8 bits; ten products in a row
        assert 0 < error < 10 * 2**-8


def test_log_variance_is_clamped(params: Any) -> None:
    far = np.array([0, 0, 0, -1000, 0, 1000], np.float32)
    layer = params["params"]["quant_conv"] | {"bias": far}
    moved = {"params": params["params"] | {"quant_conv": layer}}
    _, log_variance, _ = run(moved, PICTURES, LATENTS)
    np.testing.assert_array_equal(log_variance[..., 0], LOG_VARIANCE_RANGE[0])
    np.testing.assert_array_equal(log_variance[..., 2], LOG_VARIANCE_RANGE[1])
    middle = np.asarray(log_variance[..., 1])
    assert LOG_VARIANCE_RANGE[0] < middle.min() < middle.max() < LOG_VARIANCE_RANGE[1]


def test_draws_have_the_mean_and_the_variance() -> None:
    """Within five standard errors: sigma / sqrt(n) of a mean, sigma^2 sqrt(2 / n) of a variance."""
    num_draws = 40_000
    mean = jnp.linspace(-3, 3, 12).reshape(1, 2, 2, 3)
    log_variance = jnp.linspace(-4, 2, 12).reshape(mean.shape)
    keys = jax.random.split(jax.random.key(0), num_draws)
    draws = np.asarray(jax.vmap(sample, (0, None, None))(keys, mean, log_variance), np.float64)
    variance = np.exp(np.asarray(log_variance, np.float64))
    z_mean = (draws.mean(axis=0) - np.asarray(mean)) / np.sqrt(variance / num_draws)
    z_variance = (draws.var(axis=0) / variance - 1) / np.sqrt(2 / num_draws)
    assert np.abs(z_mean).max() < 5
    assert np.abs(z_variance).max() < 5
    noise = (draws - np.asarray(mean)) / np.sqrt(variance)
    correlation = np.corrcoef(noise.reshape(num_draws, -1).T) - np.eye(12)
    assert np.abs(correlation).max() < 5 / np.sqrt(num_draws)


def test_a_draw_belongs_to_its_key() -> None:
    mean, log_variance = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3))
    first, again, other = (sample(jax.random.key(seed), mean, log_variance) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()
    certain = sample(jax.random.key(0), mean, jnp.full_like(mean, LOG_VARIANCE_RANGE[0]))
    deviation = np.exp(LOG_VARIANCE_RANGE[0] / 2)
    np.testing.assert_allclose(certain, mean, rtol=worst_rounding(1), atol=5 * deviation)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(1, 13, 6), (1, 12, 5), (1, 0, 6), (12, 6), (1, 12, 6, 1)])
def test_pictures_that_do_not_fit_are_refused(shape: tuple[int, ...], params: Any) -> None:
    with pytest.raises(ValueError, match=r"spectrograms have shape \(.* multiples of 2"):
        Vae(SMALL).apply(params, jnp.zeros(shape), method="encode")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(1, 6, 3, 4), (1, 6, 3)])
def test_latents_that_do_not_fit_are_refused(shape: tuple[int, ...], params: Any) -> None:
    with pytest.raises(ValueError, match=r"latents have shape \(.* rows, 3 channels\)"):
        Vae(SMALL).apply(params, jnp.zeros(shape), method="decode")


def published(**changes: Any) -> dict[str, Any]:
    """A config.json as the Hub has it; "-" takes a field away."""
    values = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.15.0.dev0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "in_channels": 1,
        "latent_channels": 8,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 1,
        "sample_size": 512,
        "scaling_factor": 0.9227914214134216,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    } | changes
    return {name: value for name, value in values.items() if value != "-"}


def test_published_values_are_read() -> None:
    assert VaeConfig.from_huggingface(published()) == PUBLISHED
    newer = published(
        force_upcast=True,
        latents_mean=None,
        latents_std=None,
        mid_block_add_attention=True,
        shift_factor=None,
        use_post_quant_conv=True,
        use_quant_conv=True,
        _name_or_path="somewhere",
    )
    config = VaeConfig.from_huggingface(newer)
    assert config == PUBLISHED
    assert hash(config) == hash(PUBLISHED)
    assert config.stride == 4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": "-"}, "lacks scaling_factor"),
        ({"latent_channels": "-", "up_block_types": "-"}, "lacks latent_channels, up_block_types"),
        ({"_class_name": "VQModel"}, "_class_name 'VQModel'; allowed: 'AutoencoderKL'"),
        ({"act_fn": "relu"}, "act_fn 'relu'; allowed: 'silu'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention False; allowed: True"),
        ({"use_quant_conv": False}, "use_quant_conv False"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv False"),
        ({"shift_factor": 0.1}, r"shift_factor 0\.1; allowed: None"),
        ({"latents_mean": [0.0] * 8}, "latents_mean .* allowed: None"),
        ({"latents_std": [1.0] * 8}, "latents_std .* allowed: None"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 2}, "down_block_types .* allowed: "),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types .*'Attn"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "up_block_types .*'Attn"),
        ({"dropout": 0.1}, "not known: dropout; allowed: .*act_fn"),
        ({"block_out_channels": 128}, "block_out_channels 128; allowed: a list"),
        ({"block_out_channels": [128, 256, 500]}, r"block_out_channels .*groups = 32"),
        ({"block_out_channels": [128, 256, 512.0]}, r"block_out_channels is \(128, 256, 512\.0\)"),
        ({"in_channels": 3}, "in_channels is 3; allowed: 1"),
        ({"out_channels": 3}, "out_channels is 3; allowed: 1"),
        ({"latent_channels": 0}, "latent_channels is 0; allowed: a positive integer"),
        ({"layers_per_block": True}, "layers_per_block is True; allowed: a positive integer"),
        ({"norm_num_groups": None}, "norm_num_groups is None; allowed: a positive integer"),
        ({"scaling_factor": None}, "scaling_factor is None; allowed: a positive number"),
        ({"scaling_factor": 0}, "scaling_factor is 0; allowed: a positive number"),
        ({"scaling_factor": float("nan")}, "scaling_factor is nan; allowed: a positive number"),
    ],
)
def test_unsupported_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VaeConfig.from_huggingface(published(**changes))


def test_an_empty_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block_out_channels is \(\); allowed: for every level"):
        VaeConfig(scaling_factor=1.0, block_out_channels=())


def test_other_weights_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConvertedError, match=r"weights\.json is missing"):
        load(tmp_path)
    described = {"source": "", "sha256": "", "weights": "", "dropped": {}}
    sizes = json.loads(json.dumps(dataclasses.asdict(SMALL)))
    for folder, values, message in (
        ("other", {"kind": "hifigan"}, "kind 'hifigan', not 'vae'"),
        ("empty", {"kind": "vae"}, "does not say scaling_factor, latent_channels"),
        (
            "damaged",
            {"kind": "vae", "config": sizes | {"depth": 3}},
            "does not describe a vae: .*depth",
        ),
    ):
        conversion = Conversion({"x": np.zeros(1, np.float32)}, described | values)
        write_conversion(conversion, tmp_path / folder)
        with pytest.raises(ConvertedError, match=message):
            load(tmp_path / folder)
