"""T5 v1.1 and Flan-T5 as transformers saves them: the encoder and the tokenizer.

Source: the key names of transformers' `T5EncoderModel`, and of `T5ForConditionalGeneration`, whose
decoder and output layer are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fasttta_jax.convert import layouts, names
from fasttta_jax.convert.names import Entry, Table, projection
from fasttta_jax.convert.source import TOKENIZER_FILES, Source
from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.tokenizer import check_vocabulary, read_tokenizer
from fasttta_jax.convert.write import Conversion
from fasttta_jax.pretrained.t5 import KIND, T5Config
from fasttta_jax.text.tokenize import TOKENIZER_FILE

LAYOUT = "transformers"
EMBEDDING = "shared.weight"
ALIAS = "encoder.embed_tokens.weight"
DROPPED_PREFIXES = {
    "decoder.": "the decoder; conditioning needs the encoder alone",
    "lm_head.": "the decoder's output layer",
}


def convert(source: Source) -> Conversion:
    """The encoder of a checkpoint, with its tokenizer.

    Args:
      source: with config.json and a tokenizer beside the weights.

    Returns:
      Parameters of `T5Encoder`, their description, and tokenizer.json.

    Raises:
      ConversionError: there is no config or tokenizer, the config is not that of a T5 v1.1, keys
        are missing, unexpected or misshapen, or the tokenizer has more entries than the embedding.
    """
    found = layouts.choose(source.state, _fits, source.name)
    source = dataclasses.replace(source, state=found.state)
    if source.config is None:
        raise ConversionError(
            f"{source.name} is a single file; T5 needs its folder, with config.json and the "
            f"tokenizer ({', '.join(TOKENIZER_FILES)})"
        )
    if source.tokenizer is None:
        raise ConversionError(
            f"{source.name} has no tokenizer beside the weights; add tokenizer.json, or "
            f"spiece.model, with tokenizer_config.json; looked for {', '.join(TOKENIZER_FILES)}"
        )
    try:
        config = T5Config.from_huggingface(source.config)
    except ValueError as error:
        raise ConversionError(f"config.json of {source.name}: {error}") from error
    key = EMBEDDING if EMBEDDING in source.state or ALIAS not in source.state else ALIAS
    dropped = _dropped(source.state, key)
    table = _table(config, key)
    names.check(source.state, table, dropped, source=source.name)
    tokenizer = read_tokenizer(source.tokenizer)
    check_vocabulary(tokenizer, config.vocab_size, source.name)
    _check_alias(source, key)
    metadata = source.describe(KIND, LAYOUT, _grouped(dropped), config=config, **found.said)
    params = names.take(source.state, table)
    return Conversion(params, metadata, {TOKENIZER_FILE: tokenizer})


def _fits(state: Mapping[str, Any]) -> bool:
    return any(str(key).startswith("encoder.block.") for key in state)


def _table(config: T5Config, embedding: str) -> Table:
    width, inner = config.d_model, config.num_heads * config.d_kv
    table: Table = {
        embedding: Entry("embedding", (config.vocab_size, width)),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": Entry(
            "relative_attention_bias", (config.relative_attention_num_buckets, config.num_heads)
        ),
        "encoder.final_layer_norm.weight": Entry("final_norm/scale", (width,)),
    }
    for index in range(config.num_layers):
        layer, path = f"encoder.block.{index}.layer", f"block_{index}"
        attention, mlp = f"{layer}.0.SelfAttention", f"{layer}.1.DenseReluDense"
        table |= {
            f"{layer}.0.layer_norm.weight": Entry(f"{path}/norm_1/scale", (width,)),
            f"{layer}.1.layer_norm.weight": Entry(f"{path}/norm_2/scale", (width,)),
        }
        table |= projection(f"{attention}.q", f"{path}/query", width, inner)
        table |= projection(f"{attention}.k", f"{path}/key", width, inner)
        table |= projection(f"{attention}.v", f"{path}/value", width, inner)
        table |= projection(f"{attention}.o", f"{path}/projection", inner, width)
        table |= projection(f"{mlp}.wi_0", f"{path}/gate", width, config.d_ff)
        table |= projection(f"{mlp}.wi_1", f"{path}/mlp_in", width, config.d_ff)
        table |= projection(f"{mlp}.wo", f"{path}/mlp_out", config.d_ff, width)
    return table


def _dropped(state: Mapping[str, Any], embedding: str) -> dict[str, str]:
    """The keys that are not used, each with its reason."""
    dropped = {
        key: reason
        for key in state
        for prefix, reason in DROPPED_PREFIXES.items()
        if str(key).startswith(prefix)
    }
    if ALIAS in state and embedding != ALIAS:
        dropped[ALIAS] = f"the same as {EMBEDDING}"
    return dropped


def _grouped(dropped: Mapping[str, str]) -> dict[str, str]:
    """One line for all keys of a prefix, with their number."""
    grouped = {key: reason for key, reason in dropped.items() if key == ALIAS}
    for prefix, reason in DROPPED_PREFIXES.items():
        if count := sum(key.startswith(prefix) for key in dropped):
            grouped[f"{prefix}*"] = f"{reason} ({count} tensors)"
    return grouped


def _check_alias(source: Source, embedding: str) -> None:
    """Two names of the embedding must hold the same values; transformers ties them in any case."""
    alias = source.state.get(ALIAS)
    if embedding == ALIAS or alias is None:
        return
    same = isinstance(alias, StoredTensor) and np.array_equal(
        alias.read(), source.state[embedding].read()
    )
    if not same:
        raise ConversionError(
            f"{source.name}: {ALIAS} differs from {EMBEDDING}; expected the same values"
        )
