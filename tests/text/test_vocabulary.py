"""Words that training never saw are named: once, in full, and never a word that it saw."""

from __future__ import annotations

import logging

import pytest

from fasttta_jax.config import TextConfig
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.text.vocabulary import MOST_LISTED, MOST_NAMED, UnknownWordsLog, note

CAPTIONS = ["a high bell rings, nearby", "rain is falling fast", "fast-paced Footsteps"]


@pytest.fixture(scope="module")
def text() -> LearnedTextEncoder:
    return LearnedTextEncoder.fit(CAPTIONS, 400, TextConfig(num_positions=12, width=6))


@pytest.mark.parametrize("caption", [*CAPTIONS, "", "  ", "RAIN, rain: a rain!", "bell's"])
def test_what_training_holds_is_known(text: LearnedTextEncoder, caption: str) -> None:
    assert text.unknown_words(caption) == []


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a Dog barks", ["dog", "barks"]),
        ("bells and bell; dog, DOG!", ["bells", "and", "dog"]),
        ("  雨 étude rain", ["雨", "étude"]),
        ("rain-dog", ["dog"]),
        ("paced", ["paced"]),  # seen behind a hyphen alone: this is another token
    ],
)
def test_unknown_words_are_named_once_in_order(
    text: LearnedTextEncoder, caption: str, expected: list[str]
) -> None:
    assert text.unknown_words(caption) == expected


def test_unknown_is_what_the_model_reads_as_hidden(text: LearnedTextEncoder) -> None:
    for caption in ("a dog", "rain falls", "high 雨", *CAPTIONS):
        found = text.tokenize([caption])
        ids = found["ids"][found["mask"]].tolist()
        assert (text.hidden_token in ids) == bool(text.unknown_words(caption))


def test_known_words_are_those_of_the_captions(text: LearnedTextEncoder) -> None:
    assert text.words == (
        *("a", "bell", "falling", "fast", "footsteps"),
        *("high", "is", "nearby", "rain", "rings"),
    )


def test_a_note_lists_what_is_known(caplog: pytest.LogCaptureFixture) -> None:
    log, known = UnknownWordsLog(), ("a", "bell", "rain")
    with caplog.at_level(logging.WARNING, "fasttta_jax"):
        log.add(["dog"], known)
        log.add(["dog", "cat"], known)
        log.add(["cat"], known)
        log.add([], known)
        log.add(["is", "雨"], known)
    assert caplog.messages == [
        "the model knows no 'dog', and reads a blank there; it knows: bell, rain",
        "the model knows no 'cat', either",
        "the model knows no '雨', either",
    ]
    many = note(["dog"], [f"word{index}" for index in range(MOST_LISTED + 1)])
    assert many.endswith("it knows 201 other words")


def test_a_million_prompts_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = UnknownWordsLog()
    with caplog.at_level(logging.WARNING, "fasttta_jax"):
        for index in range(10 * MOST_NAMED):
            log.add([f"word{index}", f"other{index}"], ())
    assert sum(message.count("'") // 2 for message in caplog.messages) == MOST_NAMED
    assert caplog.messages[-1] == "further words that it does not know are not named"
    assert len(caplog.messages) == MOST_NAMED // 2 + 1
