"""The text tower of a CLAP checkpoint: which key becomes which parameter, and its sizes.

Sources: the key names of transformers' ClapModel and ClapTextModelWithProjection (layout
"transformers") and of github.com/LAION-AI/CLAP (layout "original"). Both hold a RoBERTa with the
same names below another root. An original file says nothing of its sizes: they are read off the
shapes, and what shapes do not tell is that of roberta-base, on which all of LAION's models stand.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from fasttta_jax.convert.names import Entry, Table, axis, layer_norm, linear
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.pretrained.clap_text import ClapTextConfig, from_huggingface

Layout = Literal["transformers", "original"]
ROOTS: Mapping[Layout, str] = {"transformers": "text_model", "original": "text_branch"}
"""By layout, what the names of the RoBERTa begin with."""
PROJECTIONS: Mapping[Layout, tuple[str, str]] = {
    "transformers": ("linear1", "linear2"),
    "original": ("0", "2"),
}
ROBERTA_HEAD_WIDTH = 64
ROBERTA_NORM_EPSILON = 1e-5
ROBERTA_PAD = 1
PATH = "text"
"""The tower's parameters are below this name."""


def table(
    state: Mapping[str, Any], config: Mapping[str, Any] | None, layout: Layout, source: str
) -> tuple[Table, dict[str, str], dict[str, Any]]:
    """What becomes of the text tower's keys; reads no tensor.

    Args:
      state: keys to StoredTensor, those of an audio tower may be among them.
      config: the config.json of layout "transformers".
      layout: "transformers" or "original".
      source: what to call the checkpoint in errors.

    Returns:
      The table, with paths below "text"; the keys that are left out, with reasons; the fields of
      the ClapTextConfig.

    Raises:
      ConversionError: the config is missing or not supported, or the sizes of an original file
        cannot be read off it.
    """
    if layout == "original":
        sizes = _original_sizes(state, source)
    elif config is None:
        raise ConversionError(
            f"{source} comes without config.json, which tells the sizes; give the folder of both"
        )
    else:
        try:
            sizes = from_huggingface(config)
        except ValueError as error:
            raise ConversionError(f"the config.json of {source}: {error}") from error
    return _table(sizes, layout), _dropped(state, layout), dataclasses.asdict(sizes)


def _table(config: ClapTextConfig, layout: Layout) -> Table:
    root, width = ROOTS[layout], config.hidden_size
    table: Table = {
        f"{root}.embeddings.{name}.weight": Entry(f"{PATH}/{name}", (rows, width))
        for name, rows in (
            ("word_embeddings", config.vocab_size),
            ("position_embeddings", config.max_position_embeddings),
            ("token_type_embeddings", config.type_vocab_size),
        )
    }
    table |= layer_norm(f"{root}.embeddings.LayerNorm", f"{PATH}/embeddings_norm", width)
    for index in range(config.num_hidden_layers):
        key, path = f"{root}.encoder.layer.{index}", f"{PATH}/layer_{index}"
        for name in ("query", "key", "value"):
            table |= linear(f"{key}.attention.self.{name}", f"{path}/{name}", width, width)
        table |= linear(f"{key}.attention.output.dense", f"{path}/attention_out", width, width)
        table |= layer_norm(f"{key}.attention.output.LayerNorm", f"{path}/attention_norm", width)
        inner = config.intermediate_size
        table |= linear(f"{key}.intermediate.dense", f"{path}/mlp_in", width, inner)
        table |= linear(f"{key}.output.dense", f"{path}/mlp_out", inner, width)
        table |= layer_norm(f"{key}.output.LayerNorm", f"{path}/mlp_norm", width)
    table |= linear(f"{root}.pooler.dense", f"{PATH}/pooler", width, width)
    first, second = PROJECTIONS[layout]
    shared = config.projection_dim
    table |= linear(f"text_projection.{first}", f"{PATH}/projection_in", width, shared)
    return table | linear(f"text_projection.{second}", f"{PATH}/projection_out", shared, shared)


def _dropped(state: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """Keys of the text tower that are left out, where the file has them, with reasons."""
    root = ROOTS[layout]
    reasons = {
        f"{root}.embeddings.position_ids": "a buffer of consecutive numbers",
        f"{root}.embeddings.token_type_ids": "a buffer of zeros",
    }
    if layout == "original":
        transform = re.compile(r"text_transform\.sequential\.\d+\.(weight|bias)")
        reasons |= {
            key: "a layer behind the embedding that only the training loss has"
            for key in state
            if transform.fullmatch(key)
        }
    return {key: reason for key, reason in reasons.items() if key in state}


def _original_sizes(state: Mapping[str, Any], source: str) -> ClapTextConfig:
    def size(key: str, index: int) -> int:
        found = axis(state, key, index)
        if found is None:
            raise ConversionError(
                f"{source} has no matrix {key}, which tells the sizes; expected the names of "
                "LAION's CLAP with RoBERTa"
            )
        return found

    root = ROOTS["original"]
    words = f"{root}.embeddings.word_embeddings.weight"
    width = size(words, 1)
    if width % ROBERTA_HEAD_WIDTH:
        raise ConversionError(
            f"{source}: {words} has {width} columns; expected a multiple of {ROBERTA_HEAD_WIDTH}, "
            "the width of RoBERTa's attention heads"
        )
    layer = re.compile(re.escape(f"{root}.encoder.layer.") + r"(\d{1,4})\.")
    depth = max((int(match[1]) + 1 for key in state if (match := layer.match(key))), default=1)
    return ClapTextConfig(
        vocab_size=size(words, 0),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // ROBERTA_HEAD_WIDTH,
        intermediate_size=size(f"{root}.encoder.layer.0.intermediate.dense.weight", 0),
        max_position_embeddings=size(f"{root}.embeddings.position_embeddings.weight", 0),
        type_vocab_size=1,  # BERT, which LAION's code can build as well, has two
        layer_norm_eps=ROBERTA_NORM_EPSILON,
        pad_token_id=ROBERTA_PAD,
        projection_dim=size("text_projection.2.weight", 0),
    )
