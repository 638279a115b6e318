"""Whatever is typed into the web page becomes a clip or a sentence that says what is wrong."""

import types

import numpy as np
import pytest

from fasttta_jax.generation.pipeline import Clip
from fasttta_jax.tools.demo_calls import Asked, RefusedError, make

pytestmark = pytest.mark.usefixtures("unchecked")  # the model is a stand-in
RATE = 16_000


class StandIn:
    """A model that knows two words, and keeps what it is asked for."""

    known_words = ("rain", "bell")
    trained = types.SimpleNamespace(
        config=types.SimpleNamespace(model=types.SimpleNamespace(num_tokens=16))
    )

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[list[str], dict]] = []

    def unknown_words(self, prompt: str) -> list[str]:
        return [word for word in prompt.split() if word not in self.known_words]

    def generate(self, prompts, **arguments):
        self.asked.append((prompts, arguments))
        if self.error is not None:
            raise self.error
        tokens, known = np.zeros((16, 1), np.float32), np.zeros(16, bool)
        yield Clip(np.ones(RATE, np.float32), RATE, prompts[0], 0, tokens, known, None)


DEFAULTS = {
    "negative": "",
    "seed": 0,
    "seconds": None,
    "num_iterations": None,
    "guidance_scale": None,
}


@pytest.mark.parametrize(
    ("asked", "changed"),
    [
        (Asked(" rain "), {}),
        (Asked("rain", negative=" bell\n"), {"negative": "bell"}),
        (Asked("rain", seed=" 4294967295 "), {"seed": 2**32 - 1}),
        (Asked("rain", seconds="0.5"), {"seconds": 0.5}),
        (Asked("rain", iterations="16"), {"num_iterations": 16}),
        (Asked("rain", guidance="1e0"), {"guidance_scale": 1.0}),
    ],
)
def test_fields_become_arguments(asked, changed):
    model = StandIn()
    assert make(model, asked).note.startswith("1.00 s of sound from seed 0, made in ")
    assert model.asked == [(["rain"], DEFAULTS | changed)]


def test_edits_of_a_tab_are_handed_on():
    model = StandIn()
    make(model, Asked("rain"), vary="a.wav", share=0.5)
    make(model, Asked(""), timeline=" 0-1 rain ")
    assert model.asked[0][1] == {**DEFAULTS, "vary": "a.wav", "share": 0.5}
    assert model.asked[1] == ([""], {**DEFAULTS, "timeline": "0-1 rain"})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked("  "), "The prompt is empty: say what is to be heard."),
        (Asked("x" * 10_000), "The prompt has 10,000 letters; allowed: up to 500."),
        (Asked("rain", negative="x" * 501), "The negative prompt has 501 letters; allowed: up to"),
        (Asked("rain", seed="-1"), "Seed is -1; allowed: whole numbers from 0 to 4,294,967,295."),
        (Asked("rain", seed="4294967296"), "Seed is 4294967296; allowed"),
        (Asked("rain", seed="1.5"), "Seed is 1.5; allowed: whole numbers"),
        (Asked("rain", seed="seven"), "Seed is seven; allowed"),
        (Asked("rain", seed="9" * 10_000), "Seed is ...; allowed"),
        (Asked("rain", seconds="0"), "Seconds is 0; allowed: above 0 to 60."),
        (Asked("rain", seconds="-2"), "Seconds is -2; allowed: above 0 to 60."),
        (Asked("rain", seconds="86400"), "Seconds is 86400; allowed: above 0 to 60."),
        (Asked("rain", seconds="nan"), "Seconds is nan; allowed"),
        (Asked("rain", seconds="inf"), "Seconds is inf; allowed"),
        (Asked("rain", iterations="0"), "Iterations is 0; allowed: whole numbers from 1 to 16."),
        (Asked("rain", iterations="17"), "Iterations is 17; allowed"),
        (Asked("rain", guidance="-1"), "Guidance is -1; allowed: 0 to 20."),
        (Asked("rain", guidance="<b>"), "Guidance is <b>; allowed"),
    ],
)
def test_rubbish_is_refused_in_a_sentence_before_the_model_is_asked(asked, message):
    model = StandIn()
    with pytest.raises(RefusedError) as refused:
        make(model, asked)
    assert str(refused.value).startswith(message)
    assert model.asked == []


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"vary": None, "share": 0.3}, "Give a sound to vary."),
        ({"audio": None, "keep": "0-1"}, "Give a sound to keep a part of."),
        ({"audio": "a.wav", "keep": ""}, "Give the seconds to keep, such as 0-1."),
        ({"timeline": ""}, "Give what is to be heard when."),
        ({"timeline": "0-1 x;" * 100}, "The timeline has 600 letters; allowed: up to 500."),
    ],
)
def test_a_tab_says_what_is_missing(edits, message):
    with pytest.raises(RefusedError) as refused:
        make(StandIn(), Asked("rain"), **edits)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("/tmp/x/rain.wav: no sound can be read"),
        OSError("/tmp/x/rain.wav: no sound can be read"),
        FloatingPointError("/tmp/x/rain.wav: no sound can be read"),
    ],
)
def test_what_the_model_refuses_is_said_with_the_names_that_a_visitor_knows(error):
    with pytest.raises(RefusedError) as refused:
        make(StandIn(error), Asked("rain"), vary="/tmp/x/rain.wav", share=0.3)
    assert str(refused.value) == "rain.wav: no sound can be read."


def test_unknown_words_of_all_texts_are_named():
    note = make(StandIn(), Asked("rain dog"), timeline="0-1 bell; 1-2 cat dog").note
    assert note.splitlines()[1].startswith("The model knows no 'dog', 'cat', and reads a blank")
    assert len(make(StandIn(), Asked("rain bell")).note.splitlines()) == 1
