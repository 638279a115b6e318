"""Cosine similarity of paired embeddings: the CLAP score, of captions and clips or of two clips.

    score_i = a_i . b_i / (|a_i| |b_i|),   the figure is the mean over pairs.

Published scores are of different checkpoints and two conventions: the plain mean cosine
(AudioLDM, SoundCTM, MeanAudio), and ConsistencyTTA's, where a negative cosine counts as 0 and the
mean is multiplied by 100.

Source: Wu et al., 2023, arXiv:2211.06687 (CLAP); ConsistencyTTA's evaluation code (clamping).
Dimensions: n pairs, d features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64


def clap_scores(
    embeddings: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "n d"],
    *,
    clamped_percent: bool = False,
) -> Float64[np.ndarray, " n"]:
    """The score of each pair; the figure is the mean.

    Args:
      embeddings: of the clips; of any length but 0.
      others: of their captions, or of the real clips with these captions.
      clamped_percent: ConsistencyTTA's convention, in [0, 100]; else the cosine, in [-1, 1].

    Raises:
      ValueError: the shapes differ, there are no pairs, or a vector is 0 or not finite.
    """
    if embeddings.ndim != 2 or embeddings.shape != others.shape or len(embeddings) == 0:
        raise ValueError(
            f"embeddings have shapes {embeddings.shape} and {others.shape}; expected the same "
            "[pairs, features], with at least one pair"
        )
    cosines = np.sum(_unit(embeddings, "embeddings") * _unit(others, "others"), axis=1)
    return 100.0 * np.maximum(cosines, 0.0) if clamped_percent else cosines


def _unit(vectors: np.ndarray, name: str) -> Float64[np.ndarray, "n d"]:
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~(np.isfinite(lengths) & (lengths > 0))[:, 0]
    if bad.any():
        raise ValueError(
            f"{name} has {int(bad.sum())} of {len(vectors)} vectors that are 0 or not finite, "
            f"first in row {int(np.argmax(bad))}"
        )
    return vectors / lengths
