"""Scores by which the best of several candidates is kept: of CLAP, or of a dataset's tagger.

Each sound is scored against its own prompt alone, so that what is kept does not depend on what
else is generated. Sounds that a network chose are not a fair sample of a model any more: evaluation
reads the number of candidates from the manifest and says it.
Dimensions: n sounds, S samples.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import librosa
import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import playback_level
from fasttta_jax.evaluation.embedders import TextEmbedder, embed_each
from fasttta_jax.evaluation.networks import load_clap
from fasttta_jax.evaluation.tagger import Tagger
from fasttta_jax.evaluation.tagger_cache import TAGGER_FILE
from fasttta_jax.generation.candidates import Ranker
from fasttta_jax.metrics.similarity import clap_scores

RANKS = ("none", "clap", "tagger")
CACHED_PROMPTS = 4096
LEAST = 1e-6
"""Probabilities count as no less than this, and no more than 1 minus this."""


@dataclasses.dataclass(frozen=True)
class ClapRanker:
    """The cosine of a sound's and its prompt's CLAP embeddings."""

    network: TextEmbedder

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name and hash of the network."""
        return {"by": "clap", "sha256": self.network.hash}

    def check(self, prompt: str) -> None:
        """Raises ValueError for an empty prompt, which says nothing of a sound."""
        if not prompt:
            raise ValueError("the prompt is empty, and nothing is nearer to it than anything else")

    @functools.cached_property
    def _text(self) -> Any:
        return functools.lru_cache(CACHED_PROMPTS)(lambda text: self.network.embed_text([text])[0])

    def score(
        self, sounds: Sequence[Float[np.ndarray, " _"]], sample_rate: int, prompts: Sequence[str]
    ) -> list[float]:
        """Cosines, in [-1, 1]."""
        audio = [_heard(sound, sample_rate, self.network.sample_rate) for sound in sounds]
        features = embed_each(self.network, audio)
        embeddings = np.concatenate([one.embeddings for one in features])
        texts = np.stack([self._text(prompt) for prompt in prompts])
        return clap_scores(embeddings, texts).tolist()


@dataclasses.dataclass(frozen=True)
class TaggerRanker:
    """The mean log-likelihood of what a prompt says, by a tagger.

    An event counts as present where the prompt has its name, or a word that begins with it
    ("birds"), and as absent elsewhere; a value of an attribute counts where its name is a word of a
    prompt with one event. Words that the tagger's labels do not have count for nothing.
    """

    tagger: Tagger

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name and hash of the tagger."""
        return {"by": "tagger", "sha256": self.tagger.hash}

    def check(self, prompt: str) -> None:
        """Raises ValueError where the prompt names no event of the tagger."""
        if not self._events(prompt):
            known = ", ".join(self.tagger.spec.events)
            raise ValueError(f"the prompt names nothing that the tagger knows; it knows: {known}")

    def score(
        self, sounds: Sequence[Float[np.ndarray, " _"]], sample_rate: int, prompts: Sequence[str]
    ) -> list[float]:
        """Mean log-likelihoods, at most 0. Sounds are cut or padded to the tagger's length."""
        spec = self.tagger.spec
        audio = np.zeros((len(sounds), spec.num_samples), np.float32)
        for row, sound in zip(audio, sounds, strict=True):
            heard = _heard(sound, sample_rate, self.tagger.sample_rate)[: spec.num_samples]
            row[: len(heard)] = heard
        output = self.tagger.predict(audio)
        return [
            self._likelihood(
                prompt,
                output.event_probabilities[row],
                {axis: values[row] for axis, values in output.attribute_probabilities.items()},
            )
            for row, prompt in enumerate(prompts)
        ]

    def _likelihood(
        self,
        prompt: str,
        events: Float[np.ndarray, " E"],
        attributes: Mapping[str, Float[np.ndarray, " V"]],
    ) -> float:
        named = self._events(prompt)
        present = np.array([event in named for event in self.tagger.spec.events])
        terms = np.where(present, events, 1.0 - events).tolist()
        if len(named) == 1:
            words = _words(prompt)
            for axis, values in self.tagger.spec.axes.items():
                said = [index for index, value in enumerate(values) if value.lower() in words]
                terms += attributes[axis][said].tolist() if len(said) == 1 else []
        return float(np.mean(np.log(np.clip(terms, LEAST, 1.0 - LEAST))))

    def _events(self, prompt: str) -> set[str]:
        words = _words(prompt)

        def is_named(event: str) -> bool:
            parts = _words(event)
            return all(any(word.startswith(part) for word in words) for part in parts)

        return {event for event in self.tagger.spec.events if is_named(event)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower().replace("_", " "))


def _heard(
    sound: Float[np.ndarray, " S"], source_rate: int, sample_rate: int
) -> Float[np.ndarray, " _"]:
    """A sound as networks take it: in [-1, 1], at their rate."""
    audio = playback_level(sound, peak_dbfs=0.0)
    if source_rate == sample_rate:
        return audio
    return librosa.resample(
        audio, orig_sr=source_rate, target_sr=sample_rate, res_type="soxr_hq"
    ).astype(np.float32)


def check_ranking(rank: str, clap: str | None, tagger: str | None) -> None:
    """Raises ValueError where --rank and the networks that are given do not go together."""
    for name, folder, holds in (
        ("clap", clap, "converted weights of CLAP"),
        ("tagger", tagger, "a tagger, such as an --out of eval.py"),
    ):
        if rank == name and folder is None:
            raise ValueError(f"--rank={name} needs --{name}, a folder of {holds}")
        if rank != name and folder is not None:
            raise ValueError(f"--{name} and --rank={rank}; allowed: --{name} with --rank={name}")


def open_ranker(rank: str, clap: str | None, tagger: str | None) -> Ranker | None:
    """What --rank asks for.

    Args:
      rank: of `RANKS`.
      clap: folder of converted weights.
      tagger: folder of a tagger, or its file.

    Raises:
      ValueError: see `check_ranking`; or a folder holds something else.
      FileNotFoundError: there is no tagger.
    """
    check_ranking(rank, clap, tagger)
    if rank == "clap":
        assert clap is not None
        return ClapRanker(load_clap(clap))
    if rank == "tagger":
        assert tagger is not None
        path = pathlib.Path(tagger)
        return TaggerRanker(Tagger.load(path / TAGGER_FILE if path.is_dir() else path))
    return None
