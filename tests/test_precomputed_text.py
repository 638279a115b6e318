"""Text encoders that train nothing: embeddings looked up in a table, and no text at all."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from fasttta_jax.config import TextConfig
from fasttta_jax.text import (
    NoText,
    PrecomputedTextEncoder,
    abstract_text_encoder,
    load_text_encoder,
)
from fasttta_jax.text.precomputed import EmbeddingError, write_table
from tests import helpers

CAPTIONS = ["a dog", "rain", "un café"]
CONFIG = TextConfig(
    encoder="precomputed", streams=(("clap", 1, 4), ("t5", 5, 6)), token_dropout=0.0
)


def streams() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "clap": (rng.normal(size=(3, 1, 4)).astype(np.float16), np.ones(3, np.int32)),
        "t5": (rng.normal(size=(3, 5, 6)).astype(np.float16), np.asarray([5, 1, 3])),
    }


@pytest.fixture
def encoder(tmp_path) -> PrecomputedTextEncoder:
    write_table(tmp_path, CAPTIONS, streams())
    return PrecomputedTextEncoder(CONFIG, tmp_path)


def test_what_is_written_is_looked_up(encoder):
    batch = encoder.tokenize(["rain", "", "un café", "rain"])
    conditioning = encoder.embed({}, batch)
    assert {name: stream.mask.shape[-1] for name, stream in conditioning.items()} == dict(
        encoder.streams
    )
    for name, (embeddings, lengths) in streams().items():
        stream = conditioning[name]
        np.testing.assert_array_equal(stream.embeddings[0], np.float32(embeddings[1]))
        np.testing.assert_array_equal(stream.embeddings[2], np.float32(embeddings[2]))
        np.testing.assert_array_equal(stream.embeddings[0], stream.embeddings[3])
        assert stream.mask.sum(axis=1).tolist() == [lengths[1], 0, lengths[2], lengths[1]]


def test_it_trains_nothing(encoder):
    assert encoder.init(jax.random.key(0)) == {}


def test_a_caption_without_embedding_is_named(encoder):
    with pytest.raises(EmbeddingError, match="no embedding of 'thunder'; allowed: the 3 captions"):
        encoder.tokenize(["rain", "thunder"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(EmbeddingError, match=r"captions\.json does not exist; `python -m"):
        PrecomputedTextEncoder(CONFIG, tmp_path).tokenize(["rain"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((("bert", 5, 6),), r"names 'bert'; .* holds \['clap', 'clap_lengths', 't5', 't5_le"),
        ((("t5", 5, 8),), r"asks for 't5' of 5 positions x 8; .* \(3, 5, 6\) for 3 captions"),
    ],
)
def test_streams_that_are_not_in_the_table_are_named(encoder, wanted, message):
    config = TextConfig(encoder="precomputed", streams=wanted, token_dropout=0.0)
    with pytest.raises(EmbeddingError, match=message):
        PrecomputedTextEncoder(config, encoder.folder).tokenize(["rain"])


@pytest.mark.parametrize(
    ("captions", "change", "message"),
    [
        (["rain", "rain", "a"], {}, "'rain' comes more than once"),
        (["a", "b"], {}, r"'clap' has shape \(3, 1, 4\); allowed: \[2 captions"),
        (CAPTIONS, {"t5": (np.zeros((3, 5, 6)), np.asarray([5, 6, 0]))}, "values from 0 to 6"),
        (CAPTIONS, {"t5": (np.full((3, 5, 6), np.nan), np.zeros(3, int))}, "'t5' holds values"),
    ],
)
def test_tables_that_cannot_be_right_are_refused(tmp_path, captions, change, message):
    with pytest.raises(EmbeddingError, match=message):
        write_table(tmp_path, captions, streams() | change)


def test_the_summary_changes_with_the_contents(tmp_path):
    hashes = []
    for scale in (1.0, 1.0, 2.0):
        arrays = streams()
        arrays["t5"] = (np.float16(scale * arrays["t5"][0]), arrays["t5"][1])
        write_table(tmp_path, CAPTIONS, arrays)
        hashes.append(json.loads((tmp_path / "table.json").read_text())["sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_text_is_empty_whatever_the_captions():
    text = load_text_encoder(
        "nowhere", TextConfig(encoder="none", num_positions=7, token_dropout=0.0, drop_rate=0.0)
    )
    assert text == NoText(7)
    conditioning = text.embed({}, text.tokenize(["rain", ""]))
    assert conditioning["none"].embeddings.shape == (2, 7, 0)
    assert not conditioning["none"].mask.any()


@pytest.mark.parametrize("kind", ["learned", "precomputed", "none"])
def test_abstract_encoders_have_the_shapes_of_the_real_ones(kind, encoder):
    learned = helpers.tiny_text_encoder()
    no_text = TextConfig(encoder="none", num_positions=7, token_dropout=0.0, drop_rate=0.0)
    real, config = {
        "learned": (learned, learned.config),
        "precomputed": (encoder, CONFIG),
        "none": (NoText(7), no_text),
    }[kind]
    abstract = abstract_text_encoder(config, learned.tokenizer.get_vocab_size())
    assert abstract.streams == real.streams

    def shapes(text, caption):
        params = text.init(jax.random.key(0))
        batch = text.tokenize([caption, caption])
        found = (params, batch, text.embed(params, batch))
        return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), found)

    assert shapes(abstract, "rain") == shapes(real, "rain")
