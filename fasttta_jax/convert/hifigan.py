"""Published HiFi-GAN vocoders to the parameters of `pretrained.hifigan`.

Layouts: that of transformers' SpeechT5HifiGan (a folder with config.json), and that of the HiFi-GAN
project, whose checkpoint says nothing of its sizes: bare, below "generator", or as the vocoder
inside a checkpoint of AudioLDM. Weight norm, where it was left in, is multiplied out in float64.
Dimensions: I channels in, O channels out, K taps.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fasttta_jax.convert import layouts, names
from fasttta_jax.convert.names import Entry, Table, axis
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.write import Conversion
from fasttta_jax.pretrained.hifigan import (
    KIND,
    OUTER_KERNEL_SIZE,
    HifiganConfig,
)

PREFIXES = ("", "first_stage_model.vocoder.")
UPSAMPLERS = {"transformers": "upsampler", "original": "ups"}
NORMALIZATION = ("mean", "scale")
WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
"""Endings of the lengths and the directions, old and new spelling of torch."""
PUBLISHED = HifiganConfig()
"""What shapes do not determine, for checkpoints of the original project."""


def convert(source: Source) -> Conversion:
    """Reads a vocoder, in whichever layout it comes.

    Args:
      source: an opened checkpoint; without config.json it is taken for the original project's.

    Returns:
      Parameters of `Hifigan`, and their description.

    Raises:
      ConversionError: the keys are not those of a HiFi-GAN, or its sizes are unknown or not
        supported.
    """
    state, dropped = dict(source.state), {}
    if isinstance(generator := state.get("generator"), Mapping):
        dropped = {f"{key}": "not the generator" for key in state if key != "generator"}
        state = dict(generator)
    found = layouts.choose(state, lambda state: _prefix(state) is not None, source.name)
    state = dict(found.state)
    prefix, layout = _recognise(state, source.name)
    vocoder = {key: value for key, value in state.items() if str(key).startswith(prefix)}
    dropped |= _groups([str(key) for key in state if key not in vocoder], prefix)
    vocoder = fold_weight_norm(vocoder)
    if layout == "original":
        config = _config_of_shapes(vocoder, prefix, source.name)
    elif source.config is None:
        raise ConversionError(
            f"{source.name} has the keys of transformers, but there is no config.json beside it; "
            "give the folder with both"
        )
    else:
        try:
            config = HifiganConfig.from_huggingface(source.config)
        except ValueError as error:
            raise ConversionError(f"config.json of {source.name}: {error}") from error
    unused = {}
    if not config.normalize_before:
        keys = [f"{prefix}{name}" for name in NORMALIZATION]
        unused = {key: "normalize_before is false" for key in keys if key in vocoder}
    table = _table(config, prefix, UPSAMPLERS[layout])
    names.check(vocoder, table, unused, source=f"{source.name} (as {KIND}, {layout})")
    metadata = source.describe(KIND, layout, dropped | unused, config=config, **found.said)
    return Conversion(names.take(vocoder, table), metadata)


def fold_weight_norm(state: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the two tensors of a weight-normalised layer by its weight, computed when read.

    The weight is g * v / |v|, with one length |v| for each index of the first axis.

    Raises:
      ConversionError: the lengths do not have the shape that belongs to the directions.
    """
    folded = dict(state)
    for length_ending, direction_ending in WEIGHT_NORM:
        for length_key in [key for key in state if str(key).endswith(length_ending)]:
            key = length_key.removesuffix(length_ending)
            length: Any = state[length_key]
            direction: Any = state.get(key + direction_ending)
            pair = isinstance(length, StoredTensor) and isinstance(direction, StoredTensor)
            if not pair or f"{key}.weight" in state:
                continue  # to be reported as keys that are missing or not expected
            expected = (*direction.shape[:1], *(1 for _ in direction.shape[1:]))
            if length.shape != expected or length.dtype not in names.FLOATS:
                raise ConversionError(
                    f"{length_key}: found {length.dtype} of shape {names.shown(length.shape)}, "
                    f"expected floats of shape {names.shown(expected)}"
                )
            del folded[length_key], folded[key + direction_ending]
            read = functools.partial(_normalised, length, direction)
            folded[f"{key}.weight"] = StoredTensor(direction.shape, direction.dtype, read)
    return folded


def _normalised(length: StoredTensor, direction: StoredTensor) -> np.ndarray:
    values = direction.read().astype(np.float64)
    norm = np.sqrt(np.sum(values**2, axis=tuple(range(1, values.ndim)), keepdims=True))
    return values * (length.read().astype(np.float64) / norm)


def _prefix(state: Mapping[str, Any]) -> tuple[str, str] | None:
    for prefix in PREFIXES:
        for layout, upsampler in UPSAMPLERS.items():
            if any(str(key).startswith(f"{prefix}{upsampler}.") for key in state):
                return prefix, layout
    return None


def _recognise(state: Mapping[str, Any], source: str) -> tuple[str, str]:
    """Prefix of the vocoder's keys, and the name of their layout."""
    if (found := _prefix(state)) is not None:
        return found
    wanted = [f"{prefix}{name}.*" for prefix in PREFIXES for name in UPSAMPLERS.values()]
    raise ConversionError(
        f"{source} holds no HiFi-GAN vocoder: there is none of {', '.join(wanted)}; "
        f"{layouts.beginning(state)}"
    )


def _groups(keys: list[str], prefix: str) -> dict[str, str]:
    """Keys beside the vocoder, counted by the part of the checkpoint that they belong to."""
    shared = prefix.split(".", 1)[0]
    parts = [key.split(".") for key in keys]
    counts = collections.Counter(".".join(part[: 2 if part[0] == shared else 1]) for part in parts)
    return {
        group if group in keys else f"{group}.*": f"another part of the checkpoint, {count} keys"
        for group, count in counts.items()
    }


def _conv(key: str, path: str, channels_in: int, channels_out: int, taps: int) -> Table:
    return names.convolution(key, path, channels_in, channels_out, (taps,))


def _conv_transpose(key: str, path: str, channels_in: int, channels_out: int, taps: int) -> Table:
    """A torch ConvTranspose1d: weight [I, O, K] to kernel [K, I, O] with the taps turned round."""
    shape = (channels_in, channels_out, taps)
    return {
        f"{key}.weight": Entry(
            f"{path}/kernel", shape, lambda values: values.transpose(2, 0, 1)[::-1]
        ),
        f"{key}.bias": Entry(f"{path}/bias", (channels_out,)),
    }


def _table(config: HifiganConfig, prefix: str, upsampler: str) -> Table:
    bands, channels = config.model_in_dim, config.upsample_initial_channel
    table = _conv(f"{prefix}conv_pre", "conv_pre", bands, channels, OUTER_KERNEL_SIZE)
    if config.normalize_before:
        table |= {f"{prefix}{name}": Entry(name, (bands,)) for name in NORMALIZATION}
    blocks = tuple(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
    for stage, taps in enumerate(config.upsample_kernel_sizes):
        key, path = f"{prefix}{upsampler}.{stage}", f"stage_{stage}"
        table |= _conv_transpose(key, f"{path}/upsample", channels, channels // 2, taps)
        channels //= 2
        for block, (taps, dilations) in enumerate(blocks):
            key = f"{prefix}resblocks.{stage * len(blocks) + block}"
            for pair in range(len(dilations)):
                for convs, name in (("convs1", "dilated"), ("convs2", "plain")):
                    table |= _conv(
                        f"{key}.{convs}.{pair}",
                        f"{path}/block_{block}/{name}_{pair}",
                        channels,
                        channels,
                        taps,
                    )
    return table | _conv(f"{prefix}conv_post", "conv_post", channels, 1, OUTER_KERNEL_SIZE)


def _config_of_shapes(state: Mapping[str, Any], prefix: str, source: str) -> HifiganConfig:
    """Sizes of an original checkpoint: read off the shapes, or those of the published vocoder."""

    def size(key: str, index: int) -> int:
        found = axis(state, f"{prefix}{key}.weight", index)
        if found is None:
            raise ConversionError(
                f"{source}: {prefix}{key}.weight is missing or no tensor of three axes, so the "
                "sizes of the vocoder are unknown"
            )
        return found

    num_stages = max(1, names.count(state, f"{prefix}ups."))
    kernels = tuple(size(f"ups.{stage}", 2) for stage in range(num_stages))
    num_blocks = max(1, names.count(state, f"{prefix}resblocks.") // num_stages)
    block_kernels = tuple(size(f"resblocks.{block}.convs1.0", 2) for block in range(num_blocks))
    blocks = [f"{prefix}resblocks.{block}" for block in range(num_blocks)]
    pairs = [names.count(state, f"{block}.convs1.") for block in blocks]
    found = (kernels, block_kernels, pairs)
    known = (
        PUBLISHED.upsample_kernel_sizes,
        PUBLISHED.resblock_kernel_sizes,
        [len(dilations) for dilations in PUBLISHED.resblock_dilation_sizes],
    )
    if found != known:
        raise ConversionError(
            f"{source}: upsample_rates, resblock_dilation_sizes and sampling_rate are unknown. "
            "Shapes do not tell them, and they are known only of the published vocoder of AudioLDM "
            f"with upsampling kernels {known[0]}, residual kernels {known[1]} and {known[2]} "
            f"dilations; found {found[0]}, {found[1]} and {found[2]}. Convert it with transformers "
            "to a folder with config.json and give that"
        )
    try:
        return dataclasses.replace(
            PUBLISHED,
            model_in_dim=size("conv_pre", 1),
            upsample_initial_channel=size("conv_pre", 0),
        )
    except ValueError as error:
        raise ConversionError(f"{source}: {error}") from error
