"""The vocoder: sizes that fit or are refused, lengths, and how far a frame is heard."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.pretrained.hifigan import (
    Hifigan,
    HifiganConfig,
    load,
)
from fasttta_jax.storage.weights import ConvertedError
from tests.support.hifigan_models import SMALL, build, spectrograms


@pytest.mark.parametrize(("num_frames", "num_samples"), [(1024, 163_872), (512, 81_952)])
def test_the_published_stack_yields_32_samples_too_many(num_frames: int, num_samples: int) -> None:
    model = Hifigan(HifiganConfig())
    shape = jax.ShapeDtypeStruct((1, num_frames, 64), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), shape)
    untrimmed = jax.eval_shape(lambda *args: model.apply(*args, method="untrimmed"), params, shape)
    assert untrimmed.shape == (1, num_samples)
    trimmed = jax.eval_shape(model.apply, params, shape)
    assert (trimmed.shape, trimmed.dtype) == ((1, num_frames * 160), jnp.float32)


@pytest.mark.parametrize("num_frames", [1, 33])
def test_the_first_samples_are_kept(num_frames: int) -> None:
    model, params = build(SMALL)
    spectrogram = spectrograms(SMALL, num_frames, 2)
    whole = jax.jit(functools.partial(model.apply, method="untrimmed"))(params, spectrogram)
    assert whole.shape == (2, num_frames * 10 + 2)
    found = jax.jit(model.apply)(params, spectrogram)
    np.testing.assert_array_equal(found, whole[:, : num_frames * 10])


def heard(config: HifiganConfig, num_frames: int) -> tuple[int, int]:
    """Frames before and after a frame that move its samples, by moving each frame in turn.

    With positive kernels and no biases an activation is positive where it sees the one frame that
    is, and exactly 0 elsewhere.
    """
    model = Hifigan(config)
    spectrogram = 1e25 * jnp.broadcast_to(
        jnp.eye(num_frames)[..., None], (num_frames, num_frames, config.model_in_dim)
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), spectrogram)
    params = jax.tree.map(  # means over what a kernel sees, so that nothing overflows
        lambda leaf: jnp.full(leaf.shape, 1 / math.prod(leaf.shape[:2]) if leaf.ndim > 1 else 0.0),
        shapes,
    )
    at = num_frames // 2
    audio = np.asarray(jax.jit(model.apply)(params, spectrogram))
    samples = audio[:, at * config.stride : (at + 1) * config.stride]
    frames = np.flatnonzero(samples.max(axis=1))
    return at - int(frames[0]), int(frames[-1]) - at


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resblock_dilation_sizes": ((1,), (1,))},
        {"upsample_rates": (4, 4), "upsample_kernel_sizes": (4, 8)},
        {"upsample_rates": (2, 3), "upsample_kernel_sizes": (9, 4)},
    ],
)
def test_context_is_the_receptive_field(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **changes)
    assert heard(config, 31) == config.context


def test_context_of_the_published_sizes() -> None:
    """Channels make no difference; both sides fit into a spectrogram of 50 frames."""
    config = HifiganConfig(model_in_dim=1, upsample_initial_channel=32)
    assert config.context == HifiganConfig().context == (23, 23)
    assert heard(config, 50) == (23, 23)


def test_clips_do_not_hear_each_other() -> None:
    model, params = build(SMALL)
    spectrogram = spectrograms(SMALL, 12, 3)
    together = np.asarray(jax.jit(model.apply)(params, spectrogram))
    louder = spectrogram.at[1:].multiply(100)
    np.testing.assert_array_equal(jax.jit(model.apply)(params, louder)[0], together[0])


def test_half_precision_is_close_and_gives_float32() -> None:
    model, params = build(SMALL)
    spectrogram = spectrograms(SMALL, 12)
    audio = jax.jit(model.apply)(params, spectrogram)
    coarse = jax.jit(Hifigan(SMALL, jnp.bfloat16).apply)(params, spectrogram)
    assert coarse.dtype == audio.dtype == jnp.float32
    error = np.abs(coarse - audio).max() / np.abs(audio).max()
    # bfloat16 keeps 8 bits; eight roundings in a row
    assert 0 < error < 8 * 2**-8


def test_a_picture_of_other_bands_is_refused() -> None:
    model, params = build(SMALL)
    with pytest.raises(ValueError, match=r"shape \(1, 9, 7\); allowed: \[B, T, 6\]"):
        model.apply(params, jnp.zeros((1, 9, 7)))


def published(**changes: Any) -> dict[str, Any]:
    values = dataclasses.asdict(HifiganConfig()) | {"model_type": "hifigan"} | changes
    return json.loads(json.dumps({name: value for name, value in values.items() if value != "-"}))


def test_published_values_are_read() -> None:
    values = published(model_in_dim=80, torch_dtype="float32", initializer_range=0.01)
    config = HifiganConfig.from_huggingface(values)
    assert config == HifiganConfig(model_in_dim=80)
    assert hash(config) == hash(HifiganConfig(model_in_dim=80))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "univnet"}, "model_type is 'univnet'; allowed: hifigan, speecht5_hifigan"),
        ({"model_type": "-"}, "model_type is None"),
        ({"normalize_before": "-", "sampling_rate": "-"}, "sampling_rate, normalize_before miss"),
        ({"normalize_before": 1}, "normalize_before is 1; allowed: true or false"),
        ({"model_in_dim": 0}, "model_in_dim is 0; allowed: a positive integer"),
        ({"sampling_rate": 16000.0}, r"sampling_rate is 16000\.0; allowed: a positive integer"),
        ({"upsample_rates": []}, r"upsample_rates is \(\); allowed: positive integers"),
        ({"upsample_rates": 160}, r"upsample_rates is 160; allowed: positive integers"),
        ({"upsample_kernel_sizes": [16]}, r"upsample_kernel_sizes is \(16,\); allowed: one per"),
        ({"upsample_kernel_sizes": [4, 16, 8, 4, 4]}, "each at least the rate"),
        ({"upsample_initial_channel": 48}, "upsample_initial_channel is 48; .* multiple of 32"),
        ({"resblock_kernel_sizes": [3, 4, 11]}, r"resblock_kernel_sizes is .* odd"),
        ({"resblock_dilation_sizes": [[1, 3, 5]]}, "resblock_dilation_sizes is .* 3 kernels"),
        ({"resblock_dilation_sizes": [1, 3, 5]}, "resblock_dilation_sizes is .* 3 kernels"),
        ({"leaky_relu_slope": "0.1"}, "leaky_relu_slope is '0.1'; allowed: a number from 0 to 1"),
        ({"leaky_relu_slope": 2}, "leaky_relu_slope is 2"),
    ],
)
def test_unsupported_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HifiganConfig.from_huggingface(published(**changes))


def test_other_weights_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConvertedError, match=r"weights\.json is missing"):
        load(tmp_path)
    metadata = {"kind": "t5", "source": "", "sha256": "", "weights": "", "dropped": {}}
    for folder, values, message in (
        ("other", metadata, "kind 't5', not 'hifigan'"),
        (
            "damaged",
            metadata | {"kind": "hifigan", "config": {}},
            "does not say model_in_dim, sampling_rate",
        ),
    ):
        conversion = Conversion({"mean": np.zeros(1, np.float32)}, values)
        write_conversion(conversion, tmp_path / folder)
        with pytest.raises(ConvertedError, match=message):
            load(tmp_path / folder)
