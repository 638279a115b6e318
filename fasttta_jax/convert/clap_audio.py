"""CLAP's audio tower, as transformers and as the original project lay it out: names and sizes.

Sources: the key names of transformers' ClapModel, and of github.com/LAION-AI/CLAP, whose audio
branch is HTS-AT. The original has queries, keys and values of a block in one matrix; `split_qkv`
takes them apart.
Dimensions: D width of the first stage, E projection.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fasttta_jax.convert.names import (
    Entry,
    Table,
    axis,
    batch_norm,
    convolution,
    layer_norm,
    linear,
    pointwise,
    projection,
)
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.pretrained.clap_audio import ClapAudioConfig, from_huggingface

Layout = Literal["transformers", "original"]
QKV = ("query", "key", "value")
UNUSED = {
    r"\.relative_position_index$": "computed from the window size",
    r"\.attn_mask$": "computed from the window size",
    r"\.num_batches_tracked$": "a counter of training",
}
"""Keys of the audio tower that are left out, by pattern, and why."""
UNUSED_ORIGINAL = {
    r"^audio_branch\.(tscam_conv|head)\.": "classifier of HTS-AT, behind the embedding",
    r"^audio_branch\.(spectrogram|logmel)_extractor\.": "computed by the front end",
    r"^audio_transform\.": "not a part of the embedding",
}


class _Spelling(NamedTuple):
    """What the parts of the tower are called."""

    tower: str
    batch_norm: str
    norm_1: str
    norm_2: str
    attention: str
    attention_output: str
    mlp_in: str
    mlp_out: str
    projection_in: str
    projection_out: str
    fused_qkv: bool


SPELLINGS: Mapping[Layout, _Spelling] = {
    "transformers": _Spelling(
        tower="audio_model.audio_encoder",
        batch_norm="batch_norm",
        norm_1="layernorm_before",
        norm_2="layernorm_after",
        attention="attention.self",
        attention_output="attention.output.dense",
        mlp_in="intermediate.dense",
        mlp_out="output.dense",
        projection_in="audio_projection.linear1",
        projection_out="audio_projection.linear2",
        fused_qkv=False,
    ),
    "original": _Spelling(
        tower="audio_branch",
        batch_norm="bn0",
        norm_1="norm1",
        norm_2="norm2",
        attention="attn",
        attention_output="attn.proj",
        mlp_in="mlp.fc1",
        mlp_out="mlp.fc2",
        projection_in="audio_projection.0",
        projection_out="audio_projection.2",
        fused_qkv=True,
    ),
}


def table(
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    layout: Layout,
    source_name: str,
) -> tuple[Table, dict[str, str], dict[str, Any]]:
    """What becomes of every key of the audio tower; reads no tensor.

    Args:
      state: keys to StoredTensor; those of other parts are not looked at.
      config: the config.json beside the weights; None where there is none, and the sizes are those
        that the shapes tell.
      layout: whose names the keys have.
      source_name: what to call the checkpoint in errors.

    Returns:
      The table, with paths below "audio"; the keys of the tower that are left out, and why; and the
      fields of ClapAudioConfig, as JSON has them. After `names.take`, `split_qkv` gives the
      parameters of the network.

    Raises:
      ConversionError: the config is not supported, or the shapes do not tell the sizes.
    """
    spelling = SPELLINGS[layout]
    try:
        sizes = _sizes(state, spelling) if config is None else from_huggingface(config)
    except ValueError as error:
        raise ConversionError(f"{source_name}, audio tower: {error}") from error
    unused = UNUSED | (UNUSED_ORIGINAL if layout == "original" else {})
    dropped = {
        key: reason
        for key in state
        for pattern, reason in unused.items()
        if key.startswith("audio_") and re.search(pattern, key)
    }
    fields = dataclasses.asdict(sizes)
    as_json = {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }
    return _entries(sizes, spelling), dropped, as_json


def split_qkv(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters in which ".../qkv/..." has become query, key and value; all others as they are.

    Args:
      params: by path; queries, keys and values are thirds of the last axis, in this order.
    """
    split: dict[str, np.ndarray] = {}
    for path, values in params.items():
        if path.startswith("audio/") and "/qkv/" in path:
            for name, part in zip(QKV, np.split(values, 3, axis=-1), strict=True):
                split[path.replace("/qkv/", f"/{name}/")] = np.ascontiguousarray(part)
        else:
            split[path] = values
    return split


def _sizes(state: Mapping[str, Any], spelling: _Spelling) -> ClapAudioConfig:
    """The config that the shapes and names tell; the side of the image is the published one.

    Raises:
      ValueError: a key that tells a size is missing, or the sizes are not supported.
    """
    tower = spelling.tower

    def size(key: str, index: int) -> int:
        found = axis(state, key, index)
        if found is None:
            raise ValueError(f"{key} is missing or has fewer axes than {index + 1}")
        return found

    pattern = re.compile(re.escape(f"{tower}.layers.") + r"(\d{1,2})\.blocks\.(\d{1,3})\.")
    blocks = {(int(match[1]), int(match[2])) for key in state if (match := pattern.match(key))}
    if not blocks:
        raise ValueError(f"no key begins with {tower}.layers.0.blocks.0")
    stages = range(1 + max(stage for stage, _ in blocks))
    depths = tuple(
        1 + max((block for at, block in blocks if at == stage), default=0) for stage in stages
    )
    biases = [
        f"{tower}.layers.{stage}.blocks.0.{spelling.attention}.relative_position_bias_table"
        for stage in stages
    ]
    width = size(f"{tower}.patch_embed.proj.weight", 0)
    fusion = f"{tower}.patch_embed.fusion_model.local_att.0.weight"
    enable_fusion = f"{tower}.patch_embed.mel_conv2d.weight" in state
    return ClapAudioConfig(
        patch_embeds_hidden_size=width,
        depths=depths,
        num_attention_heads=tuple(size(key, 1) for key in biases),
        window_size=(round(size(biases[0], 0) ** 0.5) + 1) // 2,
        mlp_ratio=size(f"{tower}.layers.0.blocks.0.{spelling.mlp_in}.weight", 0) / width,
        num_mel_bins=size(f"{tower}.{spelling.batch_norm}.weight", 0),
        patch_size=size(f"{tower}.patch_embed.proj.weight", 3),
        enable_fusion=enable_fusion,
        aff_block_r=width // size(fusion, 0) if enable_fusion else ClapAudioConfig.aff_block_r,
        projection_dim=size(f"{spelling.projection_out}.weight", 0),
    )


def _entries(sizes: ClapAudioConfig, spelling: _Spelling) -> Table:
    tower = spelling.tower
    entries = batch_norm(f"{tower}.{spelling.batch_norm}", "audio/batch_norm", sizes.num_mel_bins)
    entries |= _patches(sizes, f"{tower}.patch_embed")
    last = len(sizes.depths) - 1
    for stage, (depth, heads) in enumerate(
        zip(sizes.depths, sizes.num_attention_heads, strict=True)
    ):
        width = sizes.patch_embeds_hidden_size * 2**stage
        key, path = f"{tower}.layers.{stage}", f"audio/stage_{stage}"
        for block in range(depth):
            entries |= _block(
                f"{key}.blocks.{block}", f"{path}/block_{block}", sizes, spelling, width, heads
            )
        if stage < last:
            below, merging, joined = f"{key}.downsample", f"{path}/merging", 4 * width
            entries |= layer_norm(f"{below}.norm", f"{merging}/norm", joined)
            entries |= projection(f"{below}.reduction", f"{merging}/reduction", joined, 2 * width)
    hidden, out = sizes.hidden_size, sizes.projection_dim
    entries |= layer_norm(f"{tower}.norm", "audio/norm", hidden)
    entries |= linear(spelling.projection_in, "audio/projection_in", hidden, out)
    return entries | linear(spelling.projection_out, "audio/projection_out", out, out)


def _patches(sizes: ClapAudioConfig, key: str) -> Table:
    width, side, path = sizes.patch_embeds_hidden_size, sizes.patch_size, "audio/patch_embedding"
    entries = convolution(f"{key}.proj", f"{path}/projection", 1, width, (side, side))
    entries |= layer_norm(f"{key}.norm", f"{path}/norm", width)
    if not sizes.enable_fusion:
        return entries
    entries |= convolution(f"{key}.mel_conv2d", f"{path}/mel_conv2d", 1, width, (side, 3 * side))
    inner = width // sizes.aff_block_r
    # the numbers of a torch Sequential, which begins with the pooling where that is global
    for part, first in (("local", 0), ("global", 1)):
        layers, below = f"{key}.fusion_model.{part}_att", f"{path}/fusion/{part}"
        entries |= pointwise(f"{layers}.{first}", f"{below}/linear_in", width, inner)
        entries |= batch_norm(f"{layers}.{first + 1}", f"{below}/norm_in", inner)
        entries |= pointwise(f"{layers}.{first + 3}", f"{below}/linear_out", inner, width)
        entries |= batch_norm(f"{layers}.{first + 4}", f"{below}/norm_out", width)
    return entries


def _block(
    key: str, path: str, sizes: ClapAudioConfig, spelling: _Spelling, width: int, heads: int
) -> Table:
    attention, below = f"{key}.{spelling.attention}", f"{path}/attention"
    inner = int(sizes.mlp_ratio * width)
    entries = layer_norm(f"{key}.{spelling.norm_1}", f"{path}/norm_1", width)
    entries[f"{attention}.relative_position_bias_table"] = Entry(
        f"{below}/relative_position_bias", ((2 * sizes.window_size - 1) ** 2, heads)
    )
    if spelling.fused_qkv:
        entries |= linear(f"{attention}.qkv", f"{below}/qkv", width, 3 * width)
    else:
        for name in QKV:
            entries |= linear(f"{attention}.{name}", f"{below}/{name}", width, width)
    entries |= linear(f"{key}.{spelling.attention_output}", f"{below}/output", width, width)
    entries |= layer_norm(f"{key}.{spelling.norm_2}", f"{path}/norm_2", width)
    entries |= linear(f"{key}.{spelling.mlp_in}", f"{path}/mlp_in", width, inner)
    return entries | linear(f"{key}.{spelling.mlp_out}", f"{path}/mlp_out", inner, width)
