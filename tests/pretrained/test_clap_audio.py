"""Converted CLAP audio towers compute what transformers computes with the same weights.

The reference has random weights, drawn so that activations keep their size from layer to layer, is
saved as its users have it, and converted. Errors are relative to the largest entry of the result,
and their bound is that of the sums in a row of all stages: 1e-5 for the small tower, 5e-5 for the
published one. An exchanged name, axis, window or head makes a difference of order 0.1, another
epsilon in a norm of the small tower one of order 1e-4.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.convert import clap_audio, names
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.pretrained.clap_audio import (
    ClapAudio,
    ClapAudioConfig,
    load_audio,
)
from fasttta_jax.pretrained.clap_patches import bicubic_matrix
from fasttta_jax.pretrained.clap_swin import (
    merge,
    partition,
    relative_position_index,
    shift_mask,
)
from fasttta_jax.storage.weights import ConvertedError
from tests.support.clap_rounding import audio_rounding
from tests.support.clap_sizes import COMMON, PUBLISHED
from tests.support.tolerance import (
    assert_close,
    worst_rounding,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NUM_FRAMES = 251
NUM_MELS = 16
SMALL = {
    "patch_embeds_hidden_size": 12,
    "hidden_size": 48,
    "depths": [2, 1, 2],
    "num_attention_heads": [2, 3, 4],
    "window_size": 4,
    "spec_size": 64,
    "num_mel_bins": NUM_MELS,
    "aff_block_r": 3,
    "layer_norm_eps": 1e-3,
}
"""Grids of 16, 8 and 4 tokens: windows that are shifted, and at last a single one."""


def redraw(model: Any, seed: int = 0) -> None:
    """All weights anew, biases, norms and running statistics included, at a scale that carries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if not values.is_floating_point():
                continue
            if name.endswith("running_var"):
                values.uniform_(0.03, 1.0, generator=generator)
            elif name.endswith("relative_position_bias_table"):
                values.normal_(generator=generator)
            elif values.ndim > 1:
                fan_in = values[0].numel()
                values.normal_(std=(2.0 / fan_in) ** 0.5, generator=generator)
            else:
                mean = 1.0 if name.endswith("weight") else 0.0
                values.normal_(mean, 0.2, generator=generator)


def make_reference(enable_fusion: bool) -> Any:
    config = transformers.ClapConfig(
        audio_config={**SMALL, "enable_fusion": enable_fusion},
        text_config={
            "vocab_size": 8,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "intermediate_size": 8,
            "max_position_embeddings": 4,
        },
        projection_dim=20,
    )
    model = transformers.ClapModel(config).eval()
    redraw(model)
    return model


def convert(path: pathlib.Path, layout: Any = "transformers") -> Conversion:
    """The audio tower of a checkpoint; other parts are dropped."""
    with open_source(str(path)) as source:
        table, dropped, config = clap_audio.table(source.state, source.config, layout, source.name)
        other = {key: "another part" for key in source.state if not key.startswith("audio_")}
        names.check(source.state, table, {**dropped, **other}, source=source.name)
        params = clap_audio.split_qkv(names.take(source.state, table))
        metadata = {
            "kind": "clap",
            "source": source.name,
            "sha256": source.sha256,
            "weights": layout,
            "config": {"audio": config},
            "dropped": dropped,
        }
    return Conversion(params, metadata)


def read_back(conversion: Conversion, folder: pathlib.Path) -> tuple[ClapAudioConfig, Any]:
    write_conversion(conversion, folder)
    write_conversion(conversion, folder)  # the same again is allowed: its JSON is the same
    return load_audio(folder)


class Tower(NamedTuple):
    """The reference and ours, with the same weights."""

    reference: Any
    saved: pathlib.Path
    config: ClapAudioConfig
    params: Any
    apply: Callable[..., jax.Array]


def build(fusion: bool, folder: pathlib.Path) -> Tower:
    reference = make_reference(fusion)
    reference.save_pretrained(folder / "saved")
    config, params = read_back(convert(folder / "saved"), folder / "converted")
    apply = jax.jit(ClapAudio(config).apply)
    return Tower(reference, folder / "saved", config, {"params": params}, apply)


@pytest.fixture(scope="module")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    return build(False, tmp_path_factory.mktemp("unfused"))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    return build(True, tmp_path_factory.mktemp("fused"))


def features(
    batch_size: int, channels: int, num_frames: int = NUM_FRAMES, num_mels: int = NUM_MELS
) -> np.ndarray:
    """Noise whose level depends on the clip, the band and the time, so that clips differ."""
    rng = np.random.default_rng(batch_size + channels)
    level = rng.normal(size=(batch_size, channels, 1, num_mels))
    trend = rng.normal(size=(batch_size, channels, 8, 1)).repeat(-(-num_frames // 8), axis=2)
    noise = rng.normal(size=(batch_size, channels, num_frames, num_mels))
    return (level + trend[:, :, :num_frames] + 0.5 * noise).astype(np.float32)


def expected(reference: Any, inputs: np.ndarray, is_longer: list[bool]) -> np.ndarray:
    with torch.no_grad():
        out = reference.get_audio_features(
            input_features=torch.tensor(inputs), is_longer=torch.tensor(is_longer)[:, None]
        )
    return out.pooler_output.numpy()


def assert_agrees(ours: Any, reference: np.ndarray, config: ClapAudioConfig) -> None:
    assert ours.dtype == jnp.float32
    assert_close(ours, reference, audio_rounding(config))


@pytest.mark.parametrize(("batch_size", "num_frames"), [(3, NUM_FRAMES), (1, 256)])
def test_embeddings_agree_without_fusion(unfused: Tower, batch_size: int, num_frames: int) -> None:
    """Stretched in time, and not."""
    inputs = features(batch_size, 1, num_frames)
    is_longer = [False] * batch_size
    reference = expected(unfused.reference, inputs, is_longer)
    assert_agrees(unfused.apply(unfused.params, inputs), reference, unfused.config)
    if batch_size > 1:
        assert np.linalg.norm(reference[0] - reference[1]) > 0.1


@pytest.mark.parametrize(
    "is_longer",
    [[True], [False, False, False], [True, True, True], [False, True, False], [True, False, True]],
)
def test_embeddings_agree_with_fusion(fused: Tower, is_longer: list[bool]) -> None:
    """Excerpts count in the clips that are longer, and in no other."""
    inputs = features(len(is_longer), 4)
    ours = fused.apply(fused.params, inputs, jnp.asarray(is_longer))
    assert_agrees(ours, expected(fused.reference, inputs, is_longer), fused.config)
    flipped = expected(fused.reference, inputs, [not longer for longer in is_longer])
    changes = np.linalg.norm(np.asarray(ours) - flipped, axis=-1)
    assert changes.min() > 1e-2, "the fusion has no effect that could be seen"


def assert_normalised(embeddings: Any) -> None:
    """A sum of squares, ours and that of the test."""
    bound = worst_rounding(2 * embeddings.shape[-1])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1.0, rtol=bound)


def test_order_in_the_batch_does_not_matter(fused: Tower) -> None:
    inputs, is_longer = features(3, 4), np.array([True, False, True])
    order = np.array([2, 0, 1])
    straight = np.asarray(fused.apply(fused.params, inputs, is_longer))
    permuted = np.asarray(fused.apply(fused.params, inputs[order], is_longer[order]))
    assert_agrees(permuted, straight[order], fused.config)
    assert_normalised(straight)


def test_half_precision_products_stay_close(unfused: Tower) -> None:
    """bfloat16 has 8 bits, so a product is off by 0.4 %; the result is float32 of length 1."""
    inputs = features(3, 1)
    full = np.asarray(unfused.apply(unfused.params, inputs))
    half = jax.jit(ClapAudio(unfused.config, jnp.bfloat16).apply)(unfused.params, inputs)
    assert half.dtype == jnp.float32
    cosines = np.sum(np.asarray(half) * full, axis=-1)
    assert cosines.min() > 0.999
    assert_normalised(half)


def test_trees_are_complete(unfused: Tower, fused: Tower) -> None:
    """Conversion gives every parameter that our initialisation makes, in its shape, no more."""
    for tower in (unfused, fused):
        channels = tower.config.num_spectrograms
        model = ClapAudio(tower.config)
        init = jax.eval_shape(
            model.init,
            jax.random.key(0),
            jnp.zeros((1, channels, 256, NUM_MELS)),
            jnp.zeros(1, bool),
        )

        def shapes(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)

        assert shapes(tower.params) == shapes(init)


def test_dropped_keys_have_reasons(fused: Tower) -> None:
    dropped = convert(fused.saved).metadata["dropped"]
    assert {key.rsplit(".", 1)[1] for key in dropped} == {
        "relative_position_index",
        "num_batches_tracked",
    }
    assert all(dropped.values())


def test_torch_files_and_bare_towers_convert_alike(fused: Tower, tmp_path: pathlib.Path) -> None:
    """pytorch_model.bin, and ClapAudioModelWithProjection on its own."""
    state = fused.reference.state_dict()
    whole = json.loads((fused.saved / "config.json").read_text())
    audio = fused.reference.config.audio_config.to_dict()
    bare = {key: value for key, value in state.items() if key.startswith("audio_")}
    want = convert(fused.saved).params
    for name, values, config in (("whole", state, whole), ("bare", bare, audio)):
        folder = tmp_path / name
        folder.mkdir()
        torch.save(values, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(config))
        conversion = convert(folder)
        assert_equal(conversion.params, want)
        assert read_back(conversion, tmp_path / f"{name}_converted")[0] == fused.config


def assert_equal(found: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == want.keys()
    for path, values in want.items():
        np.testing.assert_array_equal(found[path], values, err_msg=path)


RENAMED = {
    "audio_model.audio_encoder.batch_norm.": "audio_branch.bn0.",
    "audio_model.audio_encoder.": "audio_branch.",
    "attention.self.": "attn.",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "audio_projection.linear1": "audio_projection.0",
    "audio_projection.linear2": "audio_projection.2",
}


def original_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The audio tower under the names of the original project, with what else stands there."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("audio_"):
            for new, old in RENAMED.items():
                key = key.replace(new, old)
            renamed[key] = value
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [renamed.pop(key.replace(".query.", f".{name}.")) for name in clap_audio.QKV]
        renamed[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed | {
        "audio_branch.layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
        "audio_branch.tscam_conv.weight": torch.zeros(3, 48, 2, 3),
        "audio_branch.head.weight": torch.zeros(3, 3),
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.zeros(5, 1, 8),
        "audio_branch.logmel_extractor.melW": torch.zeros(5, 4),
        "audio_transform.sequential.0.weight": torch.zeros(4, 4),
    }


@pytest.mark.parametrize("fusion", [False, True])
def test_the_original_layout_gives_the_same(
    fusion: bool, unfused: Tower, fused: Tower, tmp_path: pathlib.Path
) -> None:
    """Parameters to the bit; sizes are read off the shapes, others are the published ones."""
    tower = fused if fusion else unfused
    path = tmp_path / "original.pt"
    torch.save({"state_dict": original_state(tower.reference.state_dict())}, path)
    conversion = convert(path, "original")
    assert_equal(conversion.params, convert(tower.saved).params)
    config, _ = read_back(conversion, tmp_path / "converted")
    published = {"spec_size": 256, "layer_norm_eps": 1e-5}
    if not fusion:
        published["aff_block_r"] = 4
    assert config == dataclasses.replace(tower.config, **published)
    dropped = " ".join(conversion.metadata["dropped"])
    for part in ("attn_mask", "tscam_conv", "head", "melW", "conv_real", "audio_transform"):
        assert part in dropped


def test_wrong_checkpoints_are_refused_by_key(fused: Tower, tmp_path: pathlib.Path) -> None:
    state = fused.reference.state_dict()
    missing = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.key.weight"
    misshapen = "audio_projection.linear1.weight"
    del state[missing]
    state[misshapen] = state[misshapen][:, 1:]
    state["audio_model.audio_encoder.surplus.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((fused.saved / "config.json").read_text())
    with pytest.raises(ConversionError, match="3 keys are wrong") as caught:
        convert(tmp_path)
    for text in (f"{missing}: missing", "(20, 47), expected (20, 48)", "surplus.weight: not exp"):
        assert text in str(caught.value)
    original = tmp_path / "original.pt"
    broken = original_state(fused.reference.state_dict())
    del broken["audio_branch.bn0.weight"]
    torch.save(broken, original)
    with pytest.raises(ConversionError, match=r"original.pt, audio tower: audio_branch.bn0.weight"):
        convert(original, "original")


def test_wrong_arguments_are_refused(fused: Tower) -> None:
    model = ClapAudio(fused.config)
    with pytest.raises(ValueError, match="is_longer is None"):
        model.apply(fused.params, jnp.zeros((1, 4, NUM_FRAMES, NUM_MELS)))
    for shape in ((1, 1, NUM_FRAMES, NUM_MELS), (1, 4, 257, NUM_MELS), (1, 4, NUM_FRAMES, 64)):
        with pytest.raises(ValueError, match=r"features have shape .* \(clips, 4, up to 256 fra"):
            model.apply(fused.params, jnp.zeros(shape), jnp.zeros(1, bool))


def test_folders_without_the_tower_are_refused(unfused: Tower, tmp_path: pathlib.Path) -> None:
    params, metadata, _ = convert(unfused.saved)
    text = Conversion({"text/x": params["audio/norm/bias"]}, {**metadata, "config": {"text": {}}})
    other = Conversion(params, {**metadata, "kind": "t5"})
    for name, conversion, message in (
        ("text", text, "without its audio part"),
        ("t5", other, "'t5'"),
    ):
        write_conversion(conversion, tmp_path / name)
        with pytest.raises(ConvertedError, match=message):
            load_audio(tmp_path / name)


@pytest.mark.parametrize(("num_in", "num_out"), [(1001, 1024), (251, 256), (2, 7), (1, 4)])
def test_bicubic_matrix_is_that_of_torch(num_in: int, num_out: int) -> None:
    matrix = bicubic_matrix(num_out, num_in)
    # both round their places alike; a weight is a cubic of six operations on values up to 6
    bound = 6 * worst_rounding(6)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=0, atol=4 * bound)
    np.testing.assert_array_equal(matrix[[0, -1]], np.eye(num_in, dtype=np.float32)[[0, -1]])
    assert (matrix != 0).sum(axis=1).max() <= 4
    impulses = torch.eye(num_in)[None, None]
    reference = torch.nn.functional.interpolate(
        impulses, (num_out, num_in), mode="bicubic", align_corners=True
    )
    np.testing.assert_allclose(matrix, reference[0, 0].numpy(), rtol=0, atol=bound)


def test_windows_are_those_of_the_reference(unfused: Tower) -> None:
    """Bias rows and shift masks, and that windows can be put back."""
    block = unfused.reference.audio_model.audio_encoder.layers[0].blocks[1]
    index = block.attention.self.relative_position_index.numpy()
    np.testing.assert_array_equal(relative_position_index(4), index)
    mask = block.get_attn_mask(16, 12, torch.float32, "cpu").numpy()
    np.testing.assert_array_equal(shift_mask(16, 12, 4, 2), mask)
    grid = jnp.arange(2.0 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    np.testing.assert_array_equal(merge(partition(grid, 4), 8, 12), grid)


NARROW = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "num_attention_heads": [1, 2, 4, 8]}


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize(
    "width",
    [
        pytest.param(NARROW, id="narrow"),
        pytest.param({}, id="published", marks=pytest.mark.long),
    ],
)
def test_embeddings_agree_at_the_published_depth(
    width: dict[str, Any], fusion: bool, tmp_path: pathlib.Path
) -> None:
    """HTSAT-tiny on ten seconds, narrow and as it is."""
    sizes = {**COMMON, **PUBLISHED["tiny"], **width, "enable_fusion": fusion}
    reference = transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig(**sizes))
    reference = reference.eval()
    redraw(reference)
    reference.save_pretrained(tmp_path / "saved")
    ours, params = read_back(convert(tmp_path / "saved"), tmp_path / "converted")
    inputs = features(2, ours.num_spectrograms, 1001, 64)
    is_longer = [True, False]
    with torch.no_grad():
        out = reference(torch.tensor(inputs), torch.tensor(is_longer)[:, None]).audio_embeds
    want = torch.nn.functional.normalize(out, dim=-1).numpy()
    found = jax.jit(ClapAudio(ours).apply)({"params": params}, inputs, jnp.asarray(is_longer))
    assert_agrees(found, want, ours)
