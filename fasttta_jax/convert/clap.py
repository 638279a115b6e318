"""CLAP checkpoints: the text tower, the audio tower where the file has one, and the tokenizer.

Sources: transformers' ClapModel and ClapTextModelWithProjection (as in AudioLDM's text_encoder),
folders with a config.json; and the single .pt files of github.com/LAION-AI/CLAP. The towers' own
tables are in `clap_text` and `clap_audio`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from fasttta_jax.convert import clap_audio, clap_text, layouts, names
from fasttta_jax.convert.names import FLOATS
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.tokenizer import check_vocabulary, read_tokenizer
from fasttta_jax.convert.write import Conversion
from fasttta_jax.pretrained.clap_text import KIND
from fasttta_jax.text.tokenize import TOKENIZER_FILE

PREFIXES = ("module.", "clap.")
"""What may stand before all names: a parallel training's wrapper, or a model around CLAP."""
AUDIO_PREFIXES = ("audio_model.", "audio_branch.", "audio_projection.")
LOGIT_SCALES = {"text": "logit_scale_t", "audio": "logit_scale_a"}


def convert(source: Source, *, tokenizer: pathlib.Path | None = None) -> Conversion:
    """Reads a CLAP checkpoint, its layout told by its keys.

    Args:
      source: an opened checkpoint.
      tokenizer: folder with RoBERTa's tokenizer, for a checkpoint that comes without; where given,
        it takes the place of the source's own.

    Returns:
      Parameters below "text" and, where there is an audio tower, below "audio"; a description whose
      config has the sizes of both (None for a tower that is not there) and whose logit_scale, where
      the file has it, is the logarithm of the factor on cosines; and the tokenizer.

    Raises:
      ConversionError: keys, shapes or sizes are not those of CLAP with RoBERTa and HTSAT, or the
        tokenizer is missing or another model's.
    """
    if any(not isinstance(key, str) for key in source.state):
        raise ConversionError(
            f"{source.name} has keys that are not text: {list(source.state)[:5]}; expected those "
            "of a state dict"
        )
    found = layouts.choose(source.state, _fits, source.name)
    state = _without_prefix(found.state)
    layout = _layout(state, source.name)
    config = source.config if layout == "transformers" else None
    table, dropped, text = clap_text.table(state, config, layout, source.name)
    audio = None
    if _has_audio(state, config):
        audio_table, audio_dropped, audio = clap_audio.table(state, config, layout, source.name)
        table, dropped = table | audio_table, dropped | audio_dropped
    dropped |= {
        key: "kept in the description as logit_scale"
        for key in LOGIT_SCALES.values()
        if key in state
    }
    names.check(state, table, dropped, source=f"{source.name} (CLAP, {layout})")
    vocabulary = _tokenizer(source, tokenizer, text)
    scale = _logit_scale(state, source.name)
    towers = {"text": text, "audio": audio}
    metadata = source.describe(KIND, layout, dropped, config=towers, **scale, **found.said)
    params = clap_audio.split_qkv(names.take(state, table))
    return Conversion(params, metadata, {TOKENIZER_FILE: vocabulary})


def _fits(state: Mapping[str, Any]) -> bool:
    beginnings = tuple(f"{p}{root}." for p in ("", *PREFIXES) for root in clap_text.ROOTS.values())
    return any(str(key).startswith(beginnings) for key in state)


def _without_prefix(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state by the names that CLAP itself gives, if all of them have the same prefix."""
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _layout(state: Mapping[str, Any], source: str) -> clap_text.Layout:
    for layout, root in clap_text.ROOTS.items():
        if any(key.startswith(f"{root}.") for key in state):
            return layout
    roots = " and ".join(f"{root}.*" for root in clap_text.ROOTS.values())
    raise ConversionError(
        f"{source} holds no CLAP text tower: neither {roots} is there; {layouts.beginning(state)}"
    )


def _has_audio(state: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether the file has an audio tower, or its config promises one."""
    promised = config is not None and config.get("model_type") == "clap"
    return promised or any(key.startswith(AUDIO_PREFIXES) for key in state)


def _tokenizer(source: Source, given: pathlib.Path | None, text: Mapping[str, Any]) -> str:
    """The tokenizer as JSON, checked against the tower that reads its tokens."""
    folder = given or source.tokenizer
    if folder is None:
        raise ConversionError(
            f"{source.name} comes without a tokenizer; give the folder of RoBERTa's "
            "(tokenizer.json, or vocab.json and merges.txt, with tokenizer_config.json), such as "
            "the Hub's roberta-base"
        )
    content = read_tokenizer(folder)
    check_vocabulary(content, text["vocab_size"], source.name)
    padding = tokenizers.Tokenizer.from_str(content).padding or {}
    if padding.get("pad_id") != text["pad_token_id"]:
        raise ConversionError(
            f"the tokenizer in {folder} pads with token {padding.get('pad_id')}; {source.name} "
            f"takes pad_token_id {text['pad_token_id']} for padding: give its own tokenizer"
        )
    return content


def _logit_scale(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The logarithms of the factors on cosines, by tower; nothing where the file has none."""
    scales = {}
    for tower, key in LOGIT_SCALES.items():
        tensor = state.get(key)
        if tensor is None:
            continue
        if not isinstance(tensor, StoredTensor) or tensor.shape or tensor.dtype not in FLOATS:
            raise ConversionError(f"{source}: {key} is no single floating-point number")
        scales[tower] = float(tensor.read())
    return {"logit_scale": scales} if scales else {}
