"""AutoencoderKL checkpoints of AudioLDM: diffusers' two spellings and the original project's files.

Sources: the key names of github.com/huggingface/diffusers and github.com/haoheliu/AudioLDM. An
original checkpoint is a whole latent diffusion model, of which the autoencoder is the part below
`first_stage_model.`, or an autoencoder by itself, and its sizes are read off the shapes.
Dimensions: D channels of a level, C latent channels.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fasttta_jax.convert import layouts, names
from fasttta_jax.convert.names import Table, axis
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.write import Conversion
from fasttta_jax.pretrained.vae import KIND, VaeConfig

FIRST_STAGE = "first_stage_model."
SCALE_FACTOR = "scale_factor"
ORIGINAL_GROUPS = 32
"""Groups of every norm in the original code; the shapes do not tell them."""

_OTHER_PARTS = {
    "model": "the diffusion model",
    "model_ema": "averages of the diffusion model",
    "cond_stage_model": "the text encoder",
    "cond_stage_models": "the text encoders",
    "clap": "CLAP, which ranks results",
    SCALE_FACTOR: "read as scaling_factor",
}
_FIRST_STAGE_PARTS = {
    "vocoder": "the vocoder, a kind of its own",
    "loss": "the losses and discriminator of training",
}


class Layout(NamedTuple):
    """How a code base spells the keys.

    Attributes:
      name: of the layout, in the description of the result.
      prefix: before every key.
      down, up: a level, by its number; of `up`, 0 is the coarsest level where `up_from_coarsest`.
      block: a residual block of a level, by its number.
      downsample, upsample: of a level.
      shortcut: of a residual block.
      middle: the parts in the middle: a block, the attention, a block.
      attention: norm, query, key, value and output of the attention.
      norm_out: the last norm.
    """

    name: str
    prefix: str
    down: str
    up: str
    up_from_coarsest: bool
    block: str
    downsample: str
    upsample: str
    shortcut: str
    middle: tuple[str, str, str]
    attention: tuple[str, str, str, str, str]
    norm_out: str


DIFFUSERS = Layout(
    name="diffusers",
    prefix="",
    down="down_blocks.{}",
    up="up_blocks.{}",
    up_from_coarsest=True,
    block="resnets.{}",
    downsample="downsamplers.0.conv",
    upsample="upsamplers.0.conv",
    shortcut="conv_shortcut",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    norm_out="conv_norm_out",
)
DIFFUSERS_LEGACY = DIFFUSERS._replace(
    name="diffusers_legacy", attention=("group_norm", "query", "key", "value", "proj_attn")
)
ORIGINAL = Layout(
    name="original",
    prefix="",
    down="down.{}",
    up="up.{}",
    up_from_coarsest=False,
    block="block.{}",
    downsample="downsample.conv",
    upsample="upsample.conv",
    shortcut="nin_shortcut",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    attention=("norm", "q", "k", "v", "proj_out"),
    norm_out="norm_out",
)


def convert(source: Source, *, scaling_factor: float | None = None) -> Conversion:
    """The parameters of `fasttta_jax.pretrained.vae.Vae` from a checkpoint.

    Args:
      source: a diffusers folder, or an original checkpoint.
      scaling_factor: for a checkpoint that does not say it; comes from the training run of the
        generative model, as one over the standard deviation of the raw latents.

    Raises:
      ConversionError: the checkpoint is neither, a key is missing, unexpected or misshapen, the
        config asks for what the network has not, or the scaling factor is unknown or said twice.
    """
    found = layouts.choose(source.state, _fits, source.name)
    source = dataclasses.replace(source, state=found.state)
    layout = _layout(source)
    config = _config(source, layout, scaling_factor)
    dropped = dict(_dropped(source, layout))
    table = _table(config, layout, source.state)
    names.check(
        source.state,
        table,
        {key: reason for key, (_, reason) in dropped.items()},
        source=f"{source.name} (as {layout.name} VAE)",
    )
    metadata = source.describe(KIND, layout.name, _grouped(dropped), config=config, **found.said)
    return Conversion(names.take(source.state, table), metadata)


def _fits(state: Mapping[str, Any]) -> bool:
    return any(str(key).startswith((f"{FIRST_STAGE}encoder.down", "encoder.down")) for key in state)


def _layout(source: Source) -> Layout:
    """Tells the layouts apart by the config and the beginnings of the keys."""
    if source.config is not None:
        legacy = f"encoder.{DIFFUSERS.middle[1]}.{DIFFUSERS_LEGACY.attention[1]}.weight"
        return DIFFUSERS_LEGACY if legacy in source.state else DIFFUSERS
    keys = [str(key) for key in source.state]
    for prefix in (FIRST_STAGE, ""):
        if any(key.startswith(f"{prefix}encoder.down.") for key in keys):
            return ORIGINAL._replace(prefix=prefix)
    if any(key.startswith("encoder.down_blocks.") for key in keys):
        raise ConversionError(
            f"{source.name} is a VAE of diffusers without its config.json; give the folder that "
            "has both"
        )
    raise ConversionError(
        f"{source.name} holds no VAE: no key begins with {FIRST_STAGE}encoder.down. or "
        f"encoder.down.; {layouts.beginning(source.state)}"
    )


def _dropped(source: Source, layout: Layout) -> Iterator[tuple[str, tuple[str, str]]]:
    """Keys of other parts; for each the part, as a pattern, and why it is left out."""
    if layout.name != ORIGINAL.name:
        return
    for key in map(str, source.state):
        inside = key.startswith(layout.prefix)
        prefix = layout.prefix if inside else ""
        part, dot, _ = key.removeprefix(prefix).partition(".")
        if inside and part not in _FIRST_STAGE_PARTS:
            continue
        reasons = _FIRST_STAGE_PARTS if inside else _OTHER_PARTS
        reason = reasons.get(part, "part of the diffusion model's training")
        yield key, (f"{prefix}{part}{dot and '.*'}", reason)


def _grouped(dropped: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Parts with the reason and the number of their keys."""
    counts = collections.Counter(dropped.values())
    return {
        part: f"{reason}, {count} {'key' if count == 1 else 'keys'}"
        for (part, reason), count in sorted(counts.items())
    }


def _config(source: Source, layout: Layout, scaling_factor: float | None) -> VaeConfig:
    """The sizes, from the config.json or the shapes.

    Raises:
      ConversionError: the scaling factor is not known or said twice, a key is missing that tells a
        size, or the sizes are not supported.
    """
    values = dict(_original_sizes(source, layout) if source.config is None else source.config)
    said = values.get("scaling_factor")
    if said is None and scaling_factor is None:
        raise ConversionError(
            f"{source.name} does not say its scaling factor, by which raw latents are multiplied; "
            "say it with --scaling_factor=NUMBER"
        )
    if said is not None and scaling_factor is not None:
        raise ConversionError(
            f"--scaling_factor is {scaling_factor}, but {source.name} says {said}; leave "
            "--scaling_factor out"
        )
    values["scaling_factor"] = scaling_factor if said is None else said
    try:
        return VaeConfig(**values) if source.config is None else VaeConfig.from_huggingface(values)
    except ValueError as error:
        raise ConversionError(f"{source.name}: {error}") from error


def _original_sizes(source: Source, layout: Layout) -> dict[str, Any]:
    """The fields of `VaeConfig` that shapes and names determine."""
    state, encoder = source.state, f"{layout.prefix}encoder"

    def size(key: str, index: int) -> int:
        found = axis(state, key, index)
        if found is None:
            raise ConversionError(
                f"{source.name}: {key} is missing or has no axis {index}; a size is read off it"
            )
        return found

    levels = max(1, names.count(state, f"{encoder}.down."))
    factor = state.get(SCALE_FACTOR) if layout.prefix else None
    return {
        "scaling_factor": None if factor is None else _scalar(factor, source),
        "latent_channels": size(f"{layout.prefix}post_quant_conv.weight", 1),
        "block_out_channels": tuple(
            size(f"{encoder}.down.{level}.block.0.conv1.weight", 0) for level in range(levels)
        ),
        "layers_per_block": max(1, names.count(state, f"{encoder}.down.0.block.")),
        "norm_num_groups": ORIGINAL_GROUPS,
        "in_channels": size(f"{encoder}.conv_in.weight", 1),
        "out_channels": size(f"{layout.prefix}decoder.conv_out.weight", 0),
    }


def _scalar(value: Any, source: Source) -> float:
    if isinstance(value, StoredTensor) and value.dtype in names.FLOATS:
        values = np.asarray(value.read(), np.float64)
        if values.size == 1:
            return values.item()
    raise ConversionError(f"{source.name}: {SCALE_FACTOR} is {value!r}; allowed: one number")


def _table(config: VaeConfig, layout: Layout, state: Mapping[str, Any]) -> Table:
    """Where every key goes."""
    prefix, latents = layout.prefix, config.latent_channels
    levels = config.block_out_channels
    return (
        _encoder(config, layout, state)
        | _decoder(config, layout, state)
        | _pointwise(state, f"{prefix}quant_conv", "quant_conv", 2 * latents, 2 * latents)
        | _pointwise(state, f"{prefix}post_quant_conv", "post_quant_conv", latents, latents)
        | _middle(layout, state, "encoder", levels[-1])
        | _middle(layout, state, "decoder", levels[-1])
    )


def _encoder(config: VaeConfig, layout: Layout, state: Mapping[str, Any]) -> Table:
    key, levels = f"{layout.prefix}encoder", config.block_out_channels
    table = _conv(f"{key}.conv_in", "encoder/conv_in", config.in_channels, levels[0])
    width = levels[0]
    for level, channels in enumerate(levels):
        down, path = f"{key}.{layout.down.format(level)}", f"encoder/down_{level}"
        for index in range(config.layers_per_block):
            block = f"{down}.{layout.block.format(index)}"
            table |= _block(layout, state, block, f"{path}_block_{index}", width, channels)
            width = channels
        if level < len(levels) - 1:
            table |= _conv(f"{down}.{layout.downsample}", f"{path}_downsample", width, width)
    table |= names.layer_norm(f"{key}.{layout.norm_out}", "encoder/norm_out", width)
    return table | _conv(f"{key}.conv_out", "encoder/conv_out", width, 2 * config.latent_channels)


def _decoder(config: VaeConfig, layout: Layout, state: Mapping[str, Any]) -> Table:
    key, levels = f"{layout.prefix}decoder", config.block_out_channels[::-1]
    table = _conv(f"{key}.conv_in", "decoder/conv_in", config.latent_channels, levels[0])
    width = levels[0]
    for level, channels in enumerate(levels):
        number = level if layout.up_from_coarsest else len(levels) - 1 - level
        up, path = f"{key}.{layout.up.format(number)}", f"decoder/up_{level}"
        for index in range(config.layers_per_block + 1):
            block = f"{up}.{layout.block.format(index)}"
            table |= _block(layout, state, block, f"{path}_block_{index}", width, channels)
            width = channels
        if level < len(levels) - 1:
            table |= _conv(f"{up}.{layout.upsample}", f"{path}_upsample", width, width)
    table |= names.layer_norm(f"{key}.{layout.norm_out}", "decoder/norm_out", width)
    return table | _conv(f"{key}.conv_out", "decoder/conv_out", width, config.out_channels)


def _middle(layout: Layout, state: Mapping[str, Any], part: str, width: int) -> Table:
    first, attention, second = (f"{layout.prefix}{part}.{name}" for name in layout.middle)
    path = f"{part}/middle"
    norm, *projections = (f"{attention}.{name}" for name in layout.attention)
    table = _block(layout, state, first, f"{path}/block_0", width, width)
    table |= _block(layout, state, second, f"{path}/block_1", width, width)
    table |= names.layer_norm(norm, f"{path}/attention/norm", width)
    for key, name in zip(projections, ("query", "key", "value", "output"), strict=True):
        table |= _pointwise(state, key, f"{path}/attention/{name}", width, width)
    return table


def _block(
    layout: Layout, state: Mapping[str, Any], key: str, path: str, width: int, features: int
) -> Table:
    table = (
        names.layer_norm(f"{key}.norm1", f"{path}/norm_1", width)
        | _conv(f"{key}.conv1", f"{path}/conv_1", width, features)
        | names.layer_norm(f"{key}.norm2", f"{path}/norm_2", features)
        | _conv(f"{key}.conv2", f"{path}/conv_2", features, features)
    )
    if width != features:
        table |= _pointwise(state, f"{key}.{layout.shortcut}", f"{path}/shortcut", width, features)
    return table


def _conv(key: str, path: str, features_in: int, features_out: int) -> Table:
    """A torch convolution [out, in, time, frequency] with the axes in the network's order."""
    table = names.convolution(key, path, features_in, features_out, (3, 3))
    kernel = table[f"{key}.weight"]
    return table | {f"{key}.weight": kernel._replace(layout=frequency_first)}


def frequency_first(values: np.ndarray) -> np.ndarray:
    """A weight [out, in, time, frequency] as a kernel [frequency, time, in, out]."""
    return values.transpose(3, 2, 1, 0)


def _pointwise(
    state: Mapping[str, Any], key: str, path: str, features_in: int, features_out: int
) -> Table:
    """A torch Linear, or a convolution of kernel size 1 in any number of dimensions."""
    tensor = state.get(f"{key}.weight")
    num_axes = len(tensor.shape) if isinstance(tensor, StoredTensor) else 2
    return names.pointwise(key, path, features_in, features_out, max(2, num_axes))
