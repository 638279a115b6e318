"""Rankers: every sound against its own prompt alone, and the better sound has the higher score."""

from __future__ import annotations

import numpy as np
import pytest

from fasttta_jax.evaluation.ranking import ClapRanker, TaggerRanker, check_ranking, open_ranker
from fasttta_jax.evaluation.tagger import TaggerOutput, TaggerSpec
from tests.support.stand_in_networks import StandInClap

RATE, SAMPLES = 16_000, 8_000
SPEC = TaggerSpec(("bell", "rain", "wind"), {"pitch": ("high", "low")}, SAMPLES)


class StandInTagger:
    """Hears a bell in what is loud and rain in what is quiet; all of it is high."""

    spec, sample_rate, hash = SPEC, RATE, "tagger"

    def predict(self, audio: np.ndarray) -> TaggerOutput:
        assert audio.shape[1:] == (SAMPLES,)
        loud = np.abs(audio).max(axis=1) > 0.5
        events = np.where(loud[:, None], [[0.9, 0.1, 0.1]], [[0.1, 0.9, 0.1]])
        pitch = np.tile(np.float32([0.8, 0.2]), (len(audio), 1))
        return TaggerOutput(events.astype(np.float32), {"pitch": pitch}, np.zeros((len(audio), 64)))


def sounds(*gains: float) -> list[np.ndarray]:
    tone = np.sin(np.arange(SAMPLES) / 5).astype(np.float32)
    return [np.float32(gain) * tone[: SAMPLES - row] for row, gain in enumerate(gains)]


@pytest.mark.usefixtures("unchecked")
def test_the_tagger_scores_what_a_prompt_names():
    ranker = TaggerRanker(StandInTagger())  # type: ignore[arg-type]
    found = ranker.score(
        sounds(0.9, 0.1, 0.9, 0.9, 0.9),
        RATE,
        ["a bell", "a bell", "A high bell rings", "a low bell", "bells in the rain"],
    )
    expected = [
        [0.9, 0.9, 0.9],
        [0.1, 0.1, 0.9],
        [0.9, 0.9, 0.9, 0.8],
        [0.9, 0.9, 0.9, 0.2],
        [0.9, 0.1, 0.9],
    ]
    np.testing.assert_allclose(found, [np.mean(np.log(terms)) for terms in expected], rtol=1e-5)
    with pytest.raises(ValueError, match="the tagger knows; it knows: bell, rain, wind"):
        ranker.check("a dog")
    ranker.check("raindrops")


@pytest.mark.usefixtures("unchecked")
def test_scores_do_not_depend_on_the_others():
    for ranker in (TaggerRanker(StandInTagger()), ClapRanker(StandInClap())):  # type: ignore[arg-type]
        given, prompts = sounds(0.9, 0.1, 0.4), ["a bell", "rain", "wind and a bell"]
        together = ranker.score(given, RATE, prompts)
        alone = [
            ranker.score([one], RATE, [prompt])[0]
            for one, prompt in zip(given, prompts, strict=True)
        ]
        np.testing.assert_allclose(together, alone, rtol=1e-6)
        assert {"by", "sha256"} == ranker.settings.keys()
    with pytest.raises(ValueError, match="the prompt is empty"):
        ClapRanker(StandInClap()).check("")  # type: ignore[arg-type]


def test_what_goes_together():
    assert open_ranker("none", None, None) is None
    with pytest.raises(ValueError, match="--rank=tagger needs --tagger, a folder of a tagger"):
        check_ranking("tagger", None, None)
    with pytest.raises(ValueError, match="--clap and --rank=tagger; allowed: --clap with --rank"):
        check_ranking("tagger", "clap", "report")
    with pytest.raises(FileNotFoundError, match="there is no tagger at nowhere"):
        open_ranker("tagger", None, "nowhere")
