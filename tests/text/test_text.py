"""The learned text encoder takes any string, and what it cannot know it says so."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import TextConfig
from fasttta_jax.storage.files import StorageError
from fasttta_jax.text import learned
from fasttta_jax.text.learned import LearnedTextEncoder, sample_hidden_tokens
from fasttta_jax.text.tokenize import TruncationLog

CAPTIONS = ["A dog barks twice", "rain falls on a roof", "a bell rings, then a dog barks"]
CONFIG = TextConfig(num_positions=12, width=6)


def encoder(captions: list[str] = CAPTIONS, vocabulary_size: int = 300) -> LearnedTextEncoder:
    return LearnedTextEncoder.fit(captions, vocabulary_size, CONFIG)


def words(found: dict, row: int = 0) -> list[int]:
    return found["ids"][row][found["mask"][row]].tolist()


SCRIPTS = [
    "шум дождя",
    "雨が降る音",
    "صوت المطر",
    "กระดิ่งดัง",
    "🔔🐕",
    "é\u0301\u200d\ufeff",
    "\x00\x07\t\n",
    "a" * 500,
]


@pytest.mark.parametrize("caption", SCRIPTS, ids=range(len(SCRIPTS)))
def test_any_script_is_readable(caption):
    text = encoder()
    found = text.tokenize([caption])
    assert found["ids"].shape == found["mask"].shape == (1, CONFIG.num_positions)
    assert found["ids"].dtype == np.int32
    assert found["mask"].dtype == np.bool_
    assert found["ids"].min() >= 0
    assert found["ids"].max() < text.tokenizer.get_vocab_size()


@pytest.mark.parametrize("caption", ["", "   ", "\n\t"])
def test_an_empty_caption_has_no_text(caption):
    found = encoder().tokenize([caption])
    assert not found["mask"].any()
    np.testing.assert_array_equal(found["ids"], 0)


def test_text_stands_at_the_front():
    found = encoder().tokenize(["a dog", CAPTIONS[1]])
    for mask in found["mask"]:
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_ten_thousand_characters_keep_their_beginning_and_warn(caplog, monkeypatch):
    monkeypatch.setattr(learned, "truncation_log", TruncationLog())
    long = "rain falls on a roof " * 477
    assert len(long) > 10_000
    with caplog.at_level(logging.WARNING, logger="fasttta_jax.text.tokenize"):
        found = encoder().tokenize([long])
    assert found["mask"].all()
    assert "the first 12 count" in caplog.text
    short = words(encoder().tokenize([CAPTIONS[1]]))
    assert words(found)[: min(len(short), 12)] == short[:12]


def test_warnings_about_length_become_rare(caplog, monkeypatch):
    monkeypatch.setattr(learned, "truncation_log", TruncationLog())
    with caplog.at_level(logging.WARNING, logger="fasttta_jax.text.tokenize"):
        encoder().tokenize([f"rain falls on a roof {index} " * 20 for index in range(20)])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "the first 12 count" in messages[0]
    assert messages[1].startswith("10 captions so far")


def test_unseen_words_become_one_hidden_token():
    text = encoder()
    found = words(text.tokenize(["a dog 雨雨雨 barks"]))
    assert found.count(text.hidden_token) == 1
    seen = words(text.tokenize(["a dog barks"]))
    assert [token for token in found if token != text.hidden_token] == seen
    assert words(text.tokenize(["雨雨雨"])) == [text.hidden_token]


def test_training_captions_hold_nothing_hidden():
    text = encoder()
    found = text.tokenize(CAPTIONS)
    assert text.hidden_token not in found["ids"][found["mask"]]


def test_case_and_unicode_form_do_not_matter():
    text = encoder([*CAPTIONS, "a café"])
    assert words(text.tokenize(["A DOG BARKS"])) == words(text.tokenize(["a dog barks"]))
    assert words(text.tokenize(["a cafe\u0301"])) == words(text.tokenize(["a caf\u00e9"]))
    assert words(text.tokenize([" a dog "])) == words(text.tokenize(["a dog"]))


def test_saved_encoder_is_the_same_encoder(tmp_path):
    text = encoder()
    text.save(tmp_path / "text")
    loaded = LearnedTextEncoder.load(tmp_path / "text", CONFIG)
    assert loaded.seen == text.seen
    assert loaded.hidden_token == text.hidden_token
    assert loaded.tokenizer.to_str() == text.tokenizer.to_str()
    for name, values in text.tokenize([*CAPTIONS, *SCRIPTS]).items():
        np.testing.assert_array_equal(loaded.tokenize([*CAPTIONS, *SCRIPTS])[name], values)


def test_fit_is_deterministic():
    assert encoder().tokenizer.to_str() == encoder().tokenizer.to_str()


def test_vocabulary_keeps_its_bound():
    assert encoder(vocabulary_size=270).tokenizer.get_vocab_size() <= 270


@pytest.mark.parametrize("vocabulary_size", [0, 256])
def test_a_vocabulary_without_room_for_bytes_is_refused(vocabulary_size):
    with pytest.raises(ValueError, match=f"is {vocabulary_size}; allowed: more than 256"):
        encoder(vocabulary_size=vocabulary_size)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist; .*embed_text"):
        LearnedTextEncoder.load(tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["tokenizer.json", "seen_tokens.json"])
@pytest.mark.parametrize("size", [0, 40, 0.5])
def test_a_damaged_tokenizer_is_named(tmp_path, name, size):
    encoder().save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(size * len(content)) if size < 1 else size])
    with pytest.raises(StorageError, match=name):
        LearnedTextEncoder.load(tmp_path, CONFIG)


@pytest.mark.parametrize("entry", ["1.5", "true", "-1", '"a"', "[3]", "100000", "null"])
def test_what_is_no_entry_of_the_vocabulary_is_named(tmp_path, entry):
    encoder().save(tmp_path)
    (tmp_path / "seen_tokens.json").write_text(f"[1, {entry}]")
    with pytest.raises(StorageError, match=r"seen_tokens\.json.* is no entry of the vocabulary"):
        LearnedTextEncoder.load(tmp_path, CONFIG)


def test_embeddings_are_looked_up_and_hidden_tokens_keep_their_place():
    text = encoder()
    params = text.init(jax.random.key(0))
    assert params["embedding"].shape == (text.tokenizer.get_vocab_size(), CONFIG.width)
    batch = text.tokenize(["a dog barks", ""])
    (name, positions), *rest = text.streams
    assert not rest
    stream = text.embed(params, batch)[name]
    assert stream.embeddings.shape == (2, positions, CONFIG.width)
    np.testing.assert_array_equal(stream.embeddings, params["embedding"][batch["ids"]])
    np.testing.assert_array_equal(stream.mask, batch["mask"])

    hidden = jnp.zeros((2, positions), bool).at[0, 1].set(True)
    changed = text.embed(params, batch, hidden_tokens=hidden)[name]
    np.testing.assert_array_equal(changed.mask, stream.mask)
    np.testing.assert_array_equal(changed.embeddings[0, 1], params["embedding"][text.hidden_token])
    np.testing.assert_array_equal(changed.embeddings[0, 2:], stream.embeddings[0, 2:])


def test_hidden_tokens_are_drawn_among_the_text_alone():
    mask = jnp.arange(100)[None] < jnp.full((400, 1), 50)
    hidden = np.asarray(sample_hidden_tokens(jax.random.key(0), mask, 0.2))
    assert not hidden[:, 50:].any()
    error = (0.2 * 0.8 / 20_000) ** 0.5
    assert abs(hidden[:, :50].mean() - 0.2) < 5 * error
    assert not np.asarray(sample_hidden_tokens(jax.random.key(0), mask, 0.0)).any()
