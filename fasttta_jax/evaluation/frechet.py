"""The Fréchet distance between generated and real clips as a metric, for any embedder.

Dimensions: n clips, d features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.metric import Needs, NotMeasured, Quantity
from fasttta_jax.metrics.frechet import frechet_distance
from fasttta_jax.metrics.intervals import Measured


@dataclasses.dataclass(frozen=True)
class FrechetDistance:
    """Distance between the embeddings of two sets of clips; embeddings of patches are pooled.

    Attributes:
      quantity: how it is called; by the embedder.
      needs: the embedder and the reference.
    """

    quantity: Quantity
    needs: Needs

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        if reference is None or len(clips) < 2 or len(reference) < 2:
            number = min(len(clips), 0 if reference is None else len(reference))
            raise NotMeasured(f"a covariance needs two clips on either side; there are {number}")
        return Measured(frechet_distance(_vectors(clips), _vectors(reference)), count=len(clips))


TAGGER_FRECHET = FrechetDistance(
    Quantity(
        "frechet",
        "Fréchet (tagger)",
        "distance to as many real training clips, of the same events where labels name them",
        "lower",
    ),
    Needs(embedder="tagger", reference="training"),
)


def _vectors(clips: Clips) -> Float[np.ndarray, "n d"]:
    if clips.features is None:
        raise ValueError("the clips have no features; this metric needs an embedder's")
    return clips.features.embeddings.reshape(-1, clips.features.embeddings.shape[-1])
