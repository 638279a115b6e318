"""Converted VAEs agree with diffusers' AutoencoderKL, whatever the layout of their keys.

Errors are relative to the largest entry of the result, and their bound is that of the sums over all
kernels of an encoder or a decoder: 2e-5 for the small ones, 7e-5 for the published ones. An
exchanged name, axis or level makes a difference of order 1.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.convert import vae
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.pretrained.vae import Vae, load
from tests.support.conversions import convert
from tests.support.tolerance import assert_close, kernel_terms, rounding

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from safetensors.torch import save_file  # noqa: E402

SCALING_FACTOR = 0.9138255715370178
MIDDLES = ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0")
LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def make_reference(**changes: Any) -> Any:
    """AutoencoderKL with every parameter redrawn, so that activations are of order 1."""
    sizes: dict[str, Any] = {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": SCALING_FACTOR,
    } | changes
    levels = len(sizes["block_out_channels"])
    reference = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **sizes,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in reference.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return reference


@pytest.fixture(scope="module")
def reference() -> Any:
    return make_reference()


def assert_agrees(reference: Any, folder: pathlib.Path, *size: int) -> None:
    """Mean, log-variance and decoded spectrograms, for a batch of spectrograms."""
    config, tree = load(folder)
    model, params = Vae(config), {"params": tree}
    spectrograms = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = reference.encode(spectrograms[:, None]).latent_dist
        latents = posterior.mean + posterior.std
        decoded = reference.decode(latents).sample[:, 0]
    assert all(0.1 < values.std() < 10 for values in (posterior.mean, posterior.logvar, decoded))

    def channels_last(values: Any) -> np.ndarray:
        return values.permute(0, 2, 3, 1).contiguous().numpy()

    mean, log_variance = jax.jit(lambda *args: model.apply(*args, method="encode"))(
        params, spectrograms.numpy()
    )
    spectrograms = jax.jit(lambda *args: model.apply(*args, method="decode"))(
        params, channels_last(latents)
    )
    encoder, decoder = (rounding(kernel_terms(tree[name])) for name in ("encoder", "decoder"))
    assert_close(mean, channels_last(posterior.mean), encoder)
    assert_close(log_variance, channels_last(posterior.logvar), encoder)
    assert_close(spectrograms, decoded, decoder)


def save_diffusers(folder: pathlib.Path, reference: Any, state: Any = None) -> pathlib.Path:
    """A folder of diffusers, with other keys if they are given."""
    reference.save_pretrained(folder)
    if state is not None:
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(state, folder / "diffusion_pytorch_model.bin")
    return folder


def rename_attention(state: Any, num_extra_axes: int = 0) -> dict[str, Any]:
    """The spelling of 2023, with linear weights or with convolutions of size 1."""
    renamed = {}
    for key, value in state.items():
        for middle in MIDDLES:
            for new, old in LEGACY.items():
                if key.startswith(f"{middle}.{new}."):
                    key = key.replace(new, old)
                    value = value.reshape(*value.shape, *(1,) * num_extra_axes * (value.ndim == 2))
        renamed[key] = value
    return renamed


def original_state(state: Any, prefix: str = "", num_levels: int = 3) -> dict[str, Any]:
    """The keys of latent diffusion for a state of diffusers."""
    patterns = (
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])\b", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
        (r"down_blocks\.(\d)", r"down.\1"),
        (r"up_blocks\.(\d)", lambda match: f"up.{num_levels - 1 - int(match[1])}"),
        (r"resnets\.", "block."),
        (r"(down|up)samplers\.0", r"\1sample"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )
    renamed = {}
    for key, value in state.items():
        is_projection = ".attentions." in key and value.ndim == 2
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        renamed[prefix + key] = value[:, :, None, None] if is_projection else value
    return renamed


def whole_checkpoint(state: Any) -> dict[str, Any]:
    """A latent diffusion model around the autoencoder, with two keys of most of its parts."""
    parts = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
        "model.diffusion_model.input_blocks.0.0.bias": torch.zeros(4),
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "cond_stage_model.model.text_branch.embeddings.position_ids": torch.arange(5),
        "cond_stage_model.model.logit_scale_a": torch.tensor(1.0),
        "first_stage_model.vocoder.conv_pre.bias": torch.zeros(3),
        "first_stage_model.vocoder.conv_post.bias": torch.zeros(3),
        "first_stage_model.loss.logvar": torch.tensor(0.0),
        "betas": torch.zeros(1000),
        "logvar": torch.zeros(1000),
        "scale_factor": torch.tensor(SCALING_FACTOR),
    }
    return parts | original_state(state, "first_stage_model.")


def assert_same(found: Any, expected: Any) -> None:
    assert found.params.keys() == expected.params.keys()
    for path, values in found.params.items():
        np.testing.assert_array_equal(values, expected.params[path], err_msg=path)


@pytest.fixture(scope="module")
def published(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The conversion of the folder that diffusers writes, from safetensors."""
    return convert(vae, save_diffusers(tmp_path_factory.mktemp("vae"), reference))


@pytest.mark.parametrize("size", [(1, 64, 8), (3, 20, 16)])
def test_both_directions_agree(
    size: tuple[int, ...], reference: Any, published: Any, tmp_path: pathlib.Path
) -> None:
    """Two lengths, widths and batch sizes."""
    write_conversion(published, tmp_path)
    assert_agrees(reference, tmp_path, *size)


@pytest.mark.parametrize("channels", [(24, 8), (8, 16, 32)])
def test_other_depths_agree(channels: tuple[int, ...], tmp_path: pathlib.Path) -> None:
    """Levels of two blocks in other groups: channels that shrink, and the published depth."""
    reference = make_reference(block_out_channels=channels, layers_per_block=2, norm_num_groups=4)
    write_conversion(
        convert(vae, save_diffusers(tmp_path / "vae", reference)), tmp_path / "converted"
    )
    assert_agrees(reference, tmp_path / "converted", 2, 24, 16)


def test_tree_is_complete(reference: Any, published: Any, tmp_path: pathlib.Path) -> None:
    """Every parameter that our initialisation makes, in its shape; a second run changes nothing."""
    write_conversion(published, tmp_path)
    write_conversion(published, tmp_path)
    config, params = load(tmp_path)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)

    expected = jax.eval_shape(Vae(config).init, jax.random.key(0), np.zeros((1, 4, 4), np.float32))
    assert shapes(params) == shapes(expected["params"])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(value.numel() for value in reference.parameters())


def test_description(published: Any, tmp_path: pathlib.Path) -> None:
    metadata = published.metadata
    assert (metadata["kind"], metadata["weights"], metadata["dropped"]) == ("vae", "diffusers", {})
    assert re.fullmatch("[0-9a-f]{64}", metadata["sha256"])
    write_conversion(published, tmp_path)
    config, _ = load(tmp_path)
    assert (config.scaling_factor, config.block_out_channels) == (SCALING_FACTOR, (32, 64, 64))


@pytest.mark.parametrize("num_extra_axes", [0, 1, 2])
def test_legacy_attention(
    num_extra_axes: int, reference: Any, published: Any, tmp_path: pathlib.Path
) -> None:
    state = rename_attention(reference.state_dict(), num_extra_axes)
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in state
    found = convert(vae, save_diffusers(tmp_path, reference, state))
    assert_same(found, published)
    assert found.metadata["weights"] == "diffusers_legacy"
    assert found.metadata["config"] == published.metadata["config"]


def test_torch_files_of_half_precision(
    reference: Any, published: Any, tmp_path: pathlib.Path
) -> None:
    state = {key: value.half() for key, value in reference.state_dict().items()}
    found = convert(vae, save_diffusers(tmp_path, reference, state))
    for path, values in found.params.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, published.params[path].astype(np.float16))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_whole_original_checkpoints(
    suffix: str, reference: Any, published: Any, tmp_path: pathlib.Path
) -> None:
    """Sizes come from the shapes, the scaling factor from its buffer in float32."""
    path = tmp_path / f"audioldm{suffix}"
    state = whole_checkpoint(reference.state_dict())
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    found = convert(vae, path)
    assert_same(found, published)
    assert found.metadata["weights"] == "original"
    factor = float(np.float32(SCALING_FACTOR))
    assert found.metadata["config"] == published.metadata["config"] | {"scaling_factor": factor}
    assert found.metadata["dropped"] == {
        "betas": "part of the diffusion model's training, 1 key",
        "cond_stage_model.*": "the text encoder, 2 keys",
        "first_stage_model.loss.*": "the losses and discriminator of training, 1 key",
        "first_stage_model.vocoder.*": "the vocoder, a kind of its own, 2 keys",
        "logvar": "part of the diffusion model's training, 1 key",
        "model.*": "the diffusion model, 2 keys",
        "model_ema.*": "averages of the diffusion model, 2 keys",
        "scale_factor": "read as scaling_factor, 1 key",
    }


def test_original_vae_alone(reference: Any, published: Any, tmp_path: pathlib.Path) -> None:
    """Its checkpoint has no scaling factor, which must be said; the losses are left out."""
    path = tmp_path / "vae_mel_16k_64bins.ckpt"
    others = {
        "loss.discriminator.main.0.weight": torch.zeros(4, 1, 4, 4),
        "vocoder.conv_pre.bias": torch.zeros(3),
    }
    torch.save({"state_dict": others | original_state(reference.state_dict())}, path)
    with pytest.raises(ConversionError, match=r"bins\.ckpt does not say .*--scaling_factor=NUMBER"):
        convert(vae, path)
    with pytest.raises(ConversionError, match=r"scaling_factor is -1; allowed: a positive number"):
        convert(vae, path, scaling_factor=-1)
    found = convert(vae, path, scaling_factor=SCALING_FACTOR)
    assert_same(found, published)
    assert found.metadata["config"] == published.metadata["config"]
    assert found.metadata["dropped"].keys() == {"loss.*", "vocoder.*"}


def test_a_pipeline_is_entered(reference: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    save_diffusers(tmp_path / "vae", reference)
    with open_source(str(tmp_path), parts=("vae",)) as source:
        assert vae.convert(source).metadata["source"].endswith("/vae")


def change_config(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "-"}))


def test_scaling_factor_that_the_config_lacks(reference: Any, tmp_path: pathlib.Path) -> None:
    """May be given by hand; one that is there may not be said again."""
    save_diffusers(tmp_path, reference)
    with pytest.raises(ConversionError, match=r"is 1\.0, but .* says 0\.9138.*leave"):
        convert(vae, tmp_path, scaling_factor=1.0)
    change_config(tmp_path, scaling_factor="-")
    with pytest.raises(ConversionError, match=f"{tmp_path.name} does not say its scaling factor"):
        convert(vae, tmp_path)
    assert convert(vae, tmp_path, scaling_factor=0.5).metadata["config"]["scaling_factor"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "mish"}, "act_fn 'mish'; allowed: 'silu'"),
        ({"layers_per_block": 2}, r"down_blocks\.0\.resnets\.1\.norm1\.weight: missing"),
    ],
)
def test_a_config_of_another_network(
    changes: dict[str, Any], message: str, reference: Any, tmp_path: pathlib.Path
) -> None:
    change_config(save_diffusers(tmp_path, reference), **changes)
    with pytest.raises(ConversionError, match=rf"(?s){tmp_path.name}.*{message}"):
        convert(vae, tmp_path)


@pytest.mark.parametrize("layout", ["diffusers", "legacy", "original"])
def test_wrong_keys_are_all_named(layout: str, reference: Any, tmp_path: pathlib.Path) -> None:
    """Missing, unexpected, misshapen and of integers, at once, in the file's own spelling."""
    state = dict(reference.state_dict())
    if layout == "original":
        state = whole_checkpoint(state)
    elif layout == "legacy":
        state = rename_attention(state)
    missing, misshapen, integers = (
        next(key for key in state if key.endswith(ending))
        for ending in ("norm1.bias", "conv_out.weight", "conv_in.bias")
    )
    extra = re.sub(r"conv_out\.weight", "attn.0.weight", misshapen)
    del state[missing]
    state[misshapen] = state[misshapen][:, :, :1]
    state[integers] = state[integers].long()
    state[extra] = torch.zeros(2)
    if layout == "original":
        path = tmp_path / "model.ckpt"
        torch.save(state, path)
    else:
        path = save_diffusers(tmp_path, reference, state)
    with pytest.raises(ConversionError, match="4 keys are wrong") as raised:
        convert(vae, path)
    message = str(raised.value)
    assert f"{missing}: missing, expected shape (32)" in message
    assert re.search(
        re.escape(misshapen) + r": found shape \(.*, 1, 3\), expected .* 3, 3\)", message
    )
    assert f"{integers}: found type int64" in message
    assert f"{extra}: not expected, found of shape (2)" in message


def test_a_size_that_is_missing_from_an_original(reference: Any, tmp_path: pathlib.Path) -> None:
    state = whole_checkpoint(reference.state_dict())
    key = "first_stage_model.encoder.down.1.block.0.conv1.weight"
    del state[key]
    torch.save(state, tmp_path / "model.ckpt")
    with pytest.raises(ConversionError, match=f"{key} is missing .* a size is read off it"):
        convert(vae, tmp_path / "model.ckpt")
    state = whole_checkpoint(reference.state_dict()) | {"scale_factor": torch.ones(2)}
    torch.save(state, tmp_path / "model.ckpt")
    with pytest.raises(ConversionError, match=r"scale_factor .* allowed: one number"):
        convert(vae, tmp_path / "model.ckpt")


def test_files_that_are_no_vae(reference: Any, tmp_path: pathlib.Path) -> None:
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ConversionError, match=r"holds no VAE: .* begin with conv\.weight"):
        convert(vae, tmp_path / "other.ckpt")
    save_file(reference.state_dict(), tmp_path / "alone.safetensors")
    with pytest.raises(ConversionError, match=r"without its config\.json; give the folder"):
        convert(vae, tmp_path / "alone.safetensors")


def test_a_file_cut_short(reference: Any, tmp_path: pathlib.Path) -> None:
    save_diffusers(tmp_path, reference)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConversionError, match="no readable safetensors file"):
        convert(vae, tmp_path)


@pytest.mark.long
def test_published_size_agrees(tmp_path: pathlib.Path) -> None:
    """A clip of 10.24 s at the sizes of cvssp/audioldm, there and back."""
    reference = make_reference(
        block_out_channels=(128, 256, 512), layers_per_block=2, latent_channels=8
    )
    conversion = convert(vae, save_diffusers(tmp_path / "vae", reference))
    assert sum(values.size for values in conversion.params.values()) == 55_376_873
    write_conversion(conversion, tmp_path / "converted")
    assert_agrees(reference, tmp_path / "converted", 1, 1024, 64)
