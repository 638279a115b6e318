"""MAR and EAR checkpoints of the original torch code: names, sizes, and which weights to take.

Sources: the key names of github.com/LTH14/mar and github.com/shaochenze/EAR. Both condition on a
class, repeated in 64 slots before the image tokens; here text stands in those slots, so the class
embedding is left out and the slots' position embeddings are kept. EAR has no encoder: its single
stack becomes the decoder.
Dimensions: D width, W head width, C token channels, Z noise dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fasttta_jax.convert import layouts, names
from fasttta_jax.convert.names import Entry, Size, Table, axis, layer_norm, linear, times
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import Conversion
from fasttta_jax.models.layers import NUM_SINUSOIDS

NUM_TEXT = 64
"""Slots in front of the tokens, in every published model."""
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads by width; the shapes do not determine them."""
STATES = {"ema": "model_ema", "model": "model"}
DROPPED = {"class_emb.weight": "text takes the place of classes"}


def convert(
    source: Source, *, weights: str | None = None, num_heads: int | None = None
) -> Conversion:
    """Reads a checkpoint of MAR or EAR, told apart by their keys.

    Args:
      source: a training checkpoint {"model", "model_ema", ...} or a bare state dict.
      weights: "ema" (averaged; also where None) or "model" (as last trained); None for a bare
        state dict, which has only one.
      num_heads: attention heads; None takes those of the published model of that width.

    Returns:
      Parameters below "backbone" and "head", and their description.

    Raises:
      ConversionError: its keys are not those of MAR or EAR, or the number
        of heads is unknown or does not fit.
    """
    tree, which = _select(source.state, weights, source.name)
    found = layouts.choose(tree, _fits, source.name)
    state = found.state
    kind, table, config = recognise(state, source=source.name, num_heads=num_heads)
    params = names.take(state, table)
    _split_heads(params, config["backbone"]["num_heads"])
    dropped = {key: reason for key, reason in DROPPED.items() if key in state}
    metadata = source.describe(kind, which, dropped, **config, **found.said)
    return Conversion(params, metadata)


def recognise(
    state: Mapping[str, Any], *, source: str, num_heads: int | None = None
) -> tuple[str, Table, dict[str, Any]]:
    """What a state dict is, by its names and shapes; reads no tensor.

    Args:
      state: keys to StoredTensor.
      source: what to call it in errors.
      num_heads: attention heads; None takes those of the published model of that width.

    Returns:
      "mar" or "ear"; what becomes of each key; the model's sizes under the names of the configs.

    Raises:
      ConversionError: as `convert`.
    """
    kind = _kind(state, source)
    sizes = _sizes(state, kind)
    table = _backbone(sizes, kind) | _head(sizes, kind)
    names.check(state, table, DROPPED, source=f"{source} (as {kind})")
    return kind, table, _config(sizes, kind, num_heads)


def _select(
    tree: Mapping[str, Any], weights: str | None, source: str
) -> tuple[Mapping[str, Any], str]:
    """The state dict that is asked for, and what to call it; the tree where `layouts` may look."""
    found = [name for name, key in STATES.items() if isinstance(tree.get(key), Mapping)]
    if weights is None and "ema" not in found:
        return tree, "bare"
    if not found:
        raise ConversionError(
            f"--weights is {weights!r}, but {source} holds one state dict that is not called "
            f"{' or '.join(STATES.values())}; leave --weights out"
        )
    which = weights or "ema"
    if which not in found:
        raise ConversionError(
            f"--weights is {which!r}, but {source} has no {STATES.get(which, which)!r}; "
            f"allowed: {', '.join(found)}"
        )
    return tree[STATES[which]], which


def _fits(state: Mapping[str, Any]) -> bool:
    return "z_proj.weight" in state or "decoder_pos_embed_learned" in state


def _kind(state: Mapping[str, Any], source: str) -> str:
    if any(not isinstance(key, str) for key in state):
        raise ConversionError(f"{source} has keys that are not text: {list(state)[:5]}")
    if not _fits(state):
        raise ConversionError(
            f"{source} holds neither MAR nor EAR: z_proj.weight and decoder_pos_embed_learned are "
            f"missing; {layouts.beginning(state)}"
        )
    only_mar = ("encoder_blocks.", "z_proj_ln.", "diffloss.")
    return "mar" if any(key.startswith(only_mar) for key in state) else "ear"


def _depth(state: Mapping[str, Any], prefix: str) -> int:
    """Blocks below a prefix; at least one, whose keys are then reported as missing."""
    return max(1, names.count(state, f"{prefix}."))


def _head_key(kind: str) -> str:
    return "diffloss.net" if kind == "mar" else "scoreloss.net"


def _sizes(state: Mapping[str, Any], kind: str) -> dict[str, Size]:
    """Sizes by shapes and names; None where the key that determines one is missing."""
    head = _head_key(kind)
    positions = axis(state, "decoder_pos_embed_learned", 1)
    return {
        "width": axis(state, "fake_latent", 1),
        "token_dim": axis(state, "z_proj.weight", 1),
        "num_positions": positions,
        "num_tokens": None if positions is None else positions - NUM_TEXT,
        "mlp_width": axis(state, "decoder_blocks.0.mlp.fc1.weight", 0),
        "encoder_depth": _depth(state, "encoder_blocks") if kind == "mar" else 0,
        "decoder_depth": _depth(state, "decoder_blocks"),
        "head_width": axis(state, f"{head}.input_proj.weight", 0),
        "head_depth": _depth(state, f"{head}.res_blocks"),
        "noise_dim": axis(state, f"{head}.noise_embed.weight", 1),
    }


def _block(key: str, path: str, width: Size, mlp_width: Size) -> Table:
    return (
        layer_norm(f"{key}.norm1", f"{path}/norm_1", width)
        | linear(f"{key}.attn.qkv", f"{path}/attention/qkv", width, times(width, 3))
        | linear(f"{key}.attn.proj", f"{path}/attention/projection", width, width)
        | layer_norm(f"{key}.norm2", f"{path}/norm_2", width)
        | linear(f"{key}.mlp.fc1", f"{path}/mlp_in", width, mlp_width)
        | linear(f"{key}.mlp.fc2", f"{path}/mlp_out", mlp_width, width)
    )


def _backbone(sizes: Mapping[str, Size], kind: str) -> Table:
    width, positions = sizes["width"], sizes["num_positions"]
    table = {
        "fake_latent": Entry("backbone/null_text", (1, width)),
        "mask_token": Entry("backbone/mask_token", (1, 1, width), names.first),
        "decoder_pos_embed_learned": Entry(
            "backbone/decoder_positions", (1, positions, width), names.first
        ),
    }
    table |= linear("z_proj", "backbone/token_projection", sizes["token_dim"], width)
    table |= layer_norm("decoder_norm", "backbone/decoder_norm", width)
    stacks = ["decoder"]
    if kind == "mar":
        stacks = ["encoder", "decoder"]
        table |= {
            "encoder_pos_embed_learned": Entry(
                "backbone/encoder_positions", (1, positions, width), names.first
            ),
            "diffusion_pos_embed_learned": Entry(
                "backbone/head_positions", (1, sizes["num_tokens"], width), names.first
            ),
        }
        table |= layer_norm("z_proj_ln", "backbone/token_norm", width)
        table |= layer_norm("encoder_norm", "backbone/encoder_norm", width)
        table |= linear("decoder_embed", "backbone/decoder_embedding", width, width)
    for stack in stacks:
        for index in range(sizes[f"{stack}_depth"] or 0):
            key, path = f"{stack}_blocks.{index}", f"backbone/{stack}_{index}"
            table |= _block(key, path, width, sizes["mlp_width"])
    return table


def _head(sizes: Mapping[str, Size], kind: str) -> Table:
    width, head = sizes["head_width"], _head_key(kind)
    if kind == "mar":
        stream, out = sizes["token_dim"], times(sizes["token_dim"], 2)
        table = (
            linear(f"{head}.time_embed.mlp.0", "head/time_in", NUM_SINUSOIDS, width)
            | linear(f"{head}.time_embed.mlp.2", "head/time_out", width, width)
            | linear(f"{head}.cond_embed", "head/context", sizes["width"], width)
        )
    else:
        stream, out = sizes["width"], sizes["token_dim"]
        table = linear(f"{head}.noise_embed", "head/noise", sizes["noise_dim"], width)
    table |= linear(f"{head}.input_proj", "head/mlp/stream", stream, width)
    for index in range(sizes["head_depth"] or 0):
        key, path = f"{head}.res_blocks.{index}", f"head/mlp/block_{index}"
        table |= layer_norm(f"{key}.in_ln", f"{path}/norm", width)
        table |= linear(f"{key}.mlp.0", f"{path}/mlp_in", width, width)
        table |= linear(f"{key}.mlp.2", f"{path}/mlp_out", width, width)
        table |= linear(f"{key}.adaLN_modulation.1", f"{path}/modulation", width, times(width, 3))
    final = f"{head}.final_layer"
    table |= linear(
        f"{final}.adaLN_modulation.1", "head/mlp/final_modulation", width, times(width, 2)
    )
    return table | linear(f"{final}.linear", "head/mlp/final", width, out)


def _num_heads(width: int, asked: int | None) -> int:
    num_heads = PUBLISHED_HEADS.get(width) if asked is None else asked
    if num_heads is None:
        published = ", ".join(f"{width} ({heads})" for width, heads in PUBLISHED_HEADS.items())
        raise ConversionError(
            f"the number of attention heads cannot be read off the shapes, and width {width} is "
            f"not a published one ({published}); say it with --num_heads=N"
        )
    if num_heads < 1 or width % num_heads:
        raise ConversionError(f"--num_heads is {num_heads}; allowed: a divisor of width {width}")
    return num_heads


def _config(sizes: Mapping[str, Size], kind: str, num_heads: int | None) -> dict[str, Any]:
    """The model's sizes under the names of the configs."""
    known = {name: size for name, size in sizes.items() if size is not None}
    width, mlp_width = known["width"], known["mlp_width"]
    if known["num_tokens"] < 1:
        raise ConversionError(
            f"decoder_pos_embed_learned has {known['num_positions']} positions; expected more "
            f"than the {NUM_TEXT} class slots"
        )
    if mlp_width % width:
        raise ConversionError(
            f"decoder_blocks.0.mlp.fc1.weight has {mlp_width} rows; expected a multiple of the "
            f"width {width}"
        )
    head: dict[str, Any] = {"width": known["head_width"], "depth": known["head_depth"]}
    config: dict[str, Any] = {
        "num_text": NUM_TEXT,
        "num_tokens": known["num_tokens"],
        "token_dim": known["token_dim"],
        "backbone": {
            "width": width,
            "encoder_depth": known["encoder_depth"],
            "decoder_depth": known["decoder_depth"],
            "num_heads": _num_heads(width, num_heads),
            "mlp_ratio": mlp_width // width,
        },
        "head": head,
    }
    if kind == "mar":
        config["diffusion"] = {"num_steps": 1000, "prediction": "epsilon"}
    else:
        head |= {
            "noise_dim": known["noise_dim"],
            "roles": "context_stream",
            "noise": "uniform",
        }
    return config


def _split_heads(params: dict[str, np.ndarray], num_heads: int) -> None:
    """Gives attention its axes: qkv [D, 3, heads, head width], projection [heads, head width, D].

    The rows of torch's qkv weight are ordered q, k, v and head by head within each.
    """
    for path, values in params.items():
        if path.endswith("attention/qkv/kernel"):
            params[path] = values.reshape(len(values), 3, num_heads, -1)
        elif path.endswith("attention/qkv/bias"):
            params[path] = values.reshape(3, num_heads, -1)
        elif path.endswith("attention/projection/kernel"):
            params[path] = values.reshape(num_heads, -1, values.shape[-1])
