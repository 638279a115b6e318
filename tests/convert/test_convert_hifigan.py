"""Converted vocoders compute what transformers' SpeechT5HifiGan computes.

The reference is saved as its users have it: a folder, safetensors or torch's, or a checkpoint of
the original project; then opened, converted, written and loaded. Errors are relative to the largest
sample, and their bound is that of the sums over all kernels: 2e-5 for the small ones, 9e-5 for the
published one. An exchanged axis or tap makes a difference of order 1.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.codecs.chunks import Chunks, in_chunks
from fasttta_jax.convert.hifigan import convert
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.pretrained.hifigan import (
    Hifigan,
    HifiganConfig,
    load,
)
from tests.support.tolerance import assert_close, kernel_terms, rounding

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "model_in_dim": 12,
    "sampling_rate": 8_000,
    "upsample_initial_channel": 32,
    "upsample_rates": [5, 3, 2],
    "upsample_kernel_sizes": [16, 3, 4],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [2]],
    "leaky_relu_slope": 0.2,
    "normalize_before": False,
}
"""No two sizes alike."""
PUBLISHED_KERNELS = {
    "model_in_dim": 8,
    "upsample_initial_channel": 64,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "normalize_before": False,
}
"""With few channels; all that an original checkpoint can have."""


def make_reference(values: dict[str, Any], seed: int = 0) -> Any:
    """SpeechT5HifiGan whose activations, biases and statistics all matter."""
    model = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**values)).eval()
    redraw(model, seed)
    return model


def redraw(model: Any, seed: int = 0) -> None:
    """Random parameters, with the last convolution scaled to what suits a tanh."""
    generator = torch.Generator().manual_seed(seed)
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        drawn = torch.randn(values.shape, generator=generator)
        if values.ndim == 3 and values.shape[1:] != (1, 1):
            drawn /= math.sqrt(values[0].numel())
        elif name == "scale" or values.ndim == 3:
            drawn = 0.5 + torch.rand(values.shape, generator=generator)
        else:
            drawn *= 0.1
        values.data.copy_(drawn)
    outputs = []
    hook = model.conv_post.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        model(torch.randn(2, 20, model.config.model_in_dim, generator=generator))
    hook.remove()
    gain, mean = 0.5 / outputs[0].std(), outputs[0].mean()
    for name, values in model.conv_post.named_parameters():
        if name == "bias":
            values.data -= mean
        if not name.endswith(("weight_v", "original1")):
            values.data *= gain


def spectrograms(num_clips: int, num_frames: int, num_bands: int) -> np.ndarray:
    shape = (num_clips, num_frames, num_bands)
    return np.random.default_rng(num_frames).standard_normal(shape).astype(np.float32)


def converted(path: pathlib.Path, folder: pathlib.Path) -> tuple[HifiganConfig, Any]:
    with open_source(str(path), parts=("vocoder",)) as source:
        conversion = convert(source)
    write_conversion(conversion, folder)
    write_conversion(conversion, folder)  # the same again is no other
    return load(folder)


def assert_agrees(
    loaded: tuple[HifiganConfig, Any], reference: Any, shapes: tuple[tuple[int, int], ...]
) -> None:
    config, params = loaded
    vocode = jax.jit(lambda x: Hifigan(config).apply({"params": params}, x, method="untrimmed"))
    for num_clips, num_frames in shapes:
        spectrogram = spectrograms(num_clips, num_frames, config.model_in_dim)
        with torch.no_grad():
            expected = reference(torch.tensor(spectrogram)).numpy().reshape(num_clips, -1)
        found = np.asarray(vocode(spectrogram))
        assert found.shape == expected.shape
        assert 0.05 < expected.std() < 0.8  # tanh neither idle nor saturated
        assert_close(found, expected, rounding(kernel_terms(params)))


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("safe", [True, False])
def test_folders_of_transformers_agree(
    tmp_path: pathlib.Path, normalize_before: bool, safe: bool
) -> None:
    """Alone, and as part of a pipeline."""
    reference = make_reference(SMALL | {"normalize_before": normalize_before})
    folder = tmp_path / "pipeline" / "vocoder"
    save(reference, folder, safe)
    source = folder if safe else folder.parent
    loaded = converted(source, tmp_path / "converted")
    assert_agrees(loaded, reference, ((1, 1), (2, 37)))
    config, params = loaded
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    expected = jax.eval_shape(Hifigan(config).init, jax.random.key(0), jnp.zeros((1, 3, 12)))
    assert found == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected["params"])
    assert ("mean" in params) == normalize_before


def save(reference: Any, folder: pathlib.Path, safe: bool) -> None:
    reference.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(reference.state_dict(), folder / "pytorch_model.bin")


def original_state(model: Any) -> dict[str, Any]:
    """The state dict under the original project's names."""
    return {
        key.replace("upsampler.", "ups."): value
        for key, value in model.state_dict().items()
        if key not in ("mean", "scale")
    }


def old_weight_norm(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            torch.nn.utils.weight_norm(module)


@pytest.mark.parametrize("place", ["bare", "generator", "audioldm"])
@pytest.mark.parametrize("weight_norm", ["folded", "old", "new"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_original_checkpoints_agree(tmp_path: pathlib.Path, place: str, weight_norm: str) -> None:
    """Sizes from the shapes, weight norm in either spelling."""
    reference = make_reference(PUBLISHED_KERNELS)
    if weight_norm == "old":
        old_weight_norm(reference)
    elif weight_norm == "new":
        reference.apply_weight_norm()
    if weight_norm != "folded":
        redraw(reference, seed=1)
        endings = ("weight_g", "weight_v") if weight_norm == "old" else ("original0", "original1")
        assert "conv_pre.weight" not in reference.state_dict()
        assert sum(key.endswith(endings) for key in reference.state_dict()) == 2 * (2 + 5 + 5 * 18)
    state: dict[str, Any] = original_state(reference)
    dropped = {}
    if place == "generator":
        state, dropped = {"generator": state, "steps": 7}, {"steps": "not the generator"}
    elif place == "audioldm":
        state = {f"first_stage_model.vocoder.{key}": value for key, value in state.items()}
        others = ("model.a.weight", "model.b", "first_stage_model.encoder.c", "scale_factor")
        state |= {key: torch.ones(2) for key in others}
        state = {"state_dict": state, "epoch": 1}
        one, two = (f"another part of the checkpoint, {number} keys" for number in (1, 2))
        dropped = {"model.*": two, "first_stage_model.encoder.*": one, "scale_factor": one}
    torch.save(state, tmp_path / "original.ckpt")
    with open_source(str(tmp_path / "original.ckpt")) as source:
        metadata = convert(source).metadata
    assert metadata["weights"] == "original"
    assert metadata["kind"] == "hifigan"
    assert metadata["dropped"] == dropped
    loaded = converted(tmp_path / "original.ckpt", tmp_path / "converted")
    expected = HifiganConfig(model_in_dim=8, upsample_initial_channel=64)
    assert loaded[0] == expected
    assert_agrees(loaded, reference, ((2, 9),))


def test_weight_norm_is_folded_in_transformers_layout(tmp_path: pathlib.Path) -> None:
    reference = make_reference(SMALL)
    reference.apply_weight_norm()
    redraw(reference, seed=2)
    save(reference, tmp_path / "vocoder", safe=False)
    loaded = converted(tmp_path / "vocoder", tmp_path / "converted")
    assert_agrees(loaded, reference, ((1, 11),))


def refused(path: pathlib.Path) -> str:
    with open_source(str(path)) as source, pytest.raises(ConversionError) as error:
        convert(source)
    return str(error.value)


def saved(path: pathlib.Path, state: Any) -> pathlib.Path:
    torch.save(state, path)
    return path


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: pathlib.Path) -> None:
    state = original_state(make_reference(PUBLISHED_KERNELS))
    path = tmp_path / "original.pth"

    message = refused(saved(path, {"encoder.weight": torch.ones(2)}))
    assert "holds no HiFi-GAN vocoder" in message
    assert "ups.*" in message
    assert "begin with encoder.weight" in message

    other = original_state(make_reference(SMALL))
    message = refused(saved(path, other))
    assert "upsample_rates, resblock_dilation_sizes and sampling_rate are unknown" in message
    assert "(16, 16, 8, 4, 4)" in message
    assert "found (16, 3, 4), (3, 7) and [3, 1]" in message

    without = {key: value for key, value in state.items() if not key.startswith("conv_pre.w")}
    assert "conv_pre.weight is missing" in refused(saved(path, without))

    broken = state | {"conv_post.weight": torch.ones(1, 3, 7), "extra": torch.ones(4)}
    del broken["resblocks.14.convs2.2.bias"]
    message = refused(saved(path, broken))
    assert "3 keys are wrong" in message
    assert "conv_post.weight: found shape (1, 3, 7), expected (1, 2, 7)" in message
    assert "resblocks.14.convs2.2.bias: missing, expected shape (2)" in message
    assert "extra: not expected, found of shape (4)" in message

    lengths = {"conv_pre.weight_g": torch.ones(3, 1, 1), "conv_pre.weight_v": torch.ones(64, 8, 7)}
    message = refused(saved(path, without | lengths))
    assert "conv_pre.weight_g: found float32 of shape (3, 1, 1), expected" in message
    assert "(64, 1, 1)" in message


def test_folders_that_do_not_fit_are_refused(tmp_path: pathlib.Path) -> None:
    reference = make_reference(SMALL)
    folder = tmp_path / "vocoder"
    save(reference, folder, safe=True)
    assert "there is no config.json" in refused(folder / "model.safetensors")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"speecht5_hifigan"', '"univnet"'))
    assert "config.json of vocoder: model_type is 'univnet'" in refused(folder)
    (folder / "config.json").write_text(text.replace('"normalize_before"', '"normalise"'))
    assert "normalize_before missing" in refused(folder)
    (folder / "config.json").write_text(text.replace('"model_in_dim": 12', '"model_in_dim": 13'))
    message = refused(folder)
    assert "conv_pre.weight: found shape (32, 12, 7), expected (32, 13, 7)" in message


@pytest.mark.long
def test_a_published_clip_of_ten_seconds_agrees(tmp_path: pathlib.Path) -> None:
    """1024 frames at the published sizes, and the same in windows of 512."""
    config = HifiganConfig()
    reference = make_reference(
        PUBLISHED_KERNELS | {"model_in_dim": 64, "upsample_initial_channel": 1024}
    )
    save(reference, tmp_path / "vocoder", safe=True)
    found, params = converted(tmp_path / "vocoder", tmp_path / "converted")
    assert found == config
    count = sum(value.numel() for value in reference.parameters())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    spectrogram = spectrograms(1, 1024, 64)
    with torch.no_grad():
        expected = reference(torch.tensor(spectrogram)).numpy()[:, :163_840]
    model = Hifigan(config)
    chunks = Chunks(512, 2 * max(config.context), max(config.context))

    @jax.jit
    def whole(params: Any, spectrogram: jax.Array) -> jax.Array:
        return model.apply({"params": params}, spectrogram)

    @jax.jit
    def windows(params: Any, spectrogram: jax.Array) -> jax.Array:
        return in_chunks(lambda x: model.apply({"params": params}, x), spectrogram, chunks)

    for run in (whole, windows):
        assert_close(run(params, spectrogram), expected, rounding(kernel_terms(params)))
