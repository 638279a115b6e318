"""Several clips of one prompt, of which the best is kept. Dimensions: S audio samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from fasttta_jax.generation.names import NameTemplate
from fasttta_jax.generation.pipeline import Clip
from fasttta_jax.generation.prompts import Wanted


@runtime_checkable
class Ranker(Protocol):
    """Says how well a sound fits its prompt: the higher, the better."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its scores, as JSON values."""
        ...

    def check(self, prompt: str) -> None:
        """Raises ValueError where sounds cannot be ranked by this prompt."""
        ...

    def score(
        self, sounds: Sequence[Float[np.ndarray, " _"]], sample_rate: int, prompts: Sequence[str]
    ) -> list[float]:
        """The score of each sound against its own prompt, whatever the others are."""
        ...


class Kept(NamedTuple):
    """What a request got.

    Attributes:
      request: what was wanted.
      clip: the best candidate; None where none is finite.
      scores: of all candidates that are finite, where they were ranked, by seed.
    """

    request: Wanted
    clip: Clip | None
    scores: Mapping[int, float]


def check_candidates(candidates: int, has_ranker: bool, name: NameTemplate) -> None:
    """Raises ValueError where there are candidates and no ranker, or their seed is in names."""
    if candidates > 1 and not has_ranker:
        raise ValueError(
            f"candidates is {candidates}, and nothing ranks them; allowed: --rank=clap or "
            "--rank=tagger with them. --clips_per_prompt keeps several clips of a prompt"
        )
    if candidates > 1 and name.has_seed:
        raise ValueError(
            f"--name is {name.text!r}, and which of {candidates} candidates is kept is only known "
            "at the end; allowed: a name without {seed}, which the manifest has"
        )
