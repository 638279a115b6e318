"""Tokenizers of runs and of converted networks, damaged or of another kind."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from fasttta_jax.config import TextConfig
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.text.tokenize import encode, load_tokenizer
from tests.campaigns.damage import damaged, damaged_json, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import PROMPTS, World, text_meaning
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged
from tests.support.conversions import byte_tokenizer

CONFIG = TextConfig(num_positions=8, width=16)


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    text = folder / "text"
    if draw.chance():
        text.mkdir()
        (text / "tokenizer.json").write_text(_bytes_of_clap())
        use, names = _converted, ["tokenizer.json"]
    else:
        link_tree(world.encoded / "text", text)
        use, names = _learned, ["tokenizer.json", "seen_tokens.json"]
    file = text / draw.pick(names)
    content = file.read_bytes()
    match draw.below(4):
        case 0 | 1:
            changed = damaged_json(draw, content)
            for _ in range(draw.below(3)):
                if isinstance(json.loads(changed), dict | list):
                    changed = damaged_json(draw, changed)
        case 2:
            changed = damaged(draw, content)
        case _:
            changed = _bytes_of_clap().encode() if use is _learned else b'{"version": "1.0"}'
    put(file, changed)
    with unchanged(folder), nothing_runs():
        use(text)
    return RIGHT


def _learned(folder: pathlib.Path) -> None:
    with may_refuse(folder):
        text = LearnedTextEncoder.load(folder, CONFIG)
    ids, _, hidden = text_meaning(text)
    size = text.tokenizer.get_vocab_size()
    expect(
        all(0 <= token < size for row in ids["ids"] for token in row), "a token has no embedding"
    )
    expect(0 <= hidden < size, "the hidden token has no embedding")
    for prompt in PROMPTS:
        text.unknown_words(prompt)


def _converted(folder: pathlib.Path) -> None:
    with may_refuse(folder):
        tokenizer = load_tokenizer(folder)
    size = tokenizer.get_vocab_size()
    with may_refuse(folder, "length", "tokenizer"):
        ids, _ = encode(tokenizer, PROMPTS, 12)
    expect(bool((ids >= 0).all() and (ids < size).all()), "a token has no embedding")


@functools.cache
def _bytes_of_clap() -> Any:
    return byte_tokenizer("<pad>", "<s>", "</s>")
