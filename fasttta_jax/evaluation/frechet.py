"""The Fréchet distance between generated and real clips as a metric, for any embedder.

Its limit for many clips says how much of a distance is due to their number.
"""

from __future__ import annotations

import dataclasses

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.estimating import Estimated, features_of
from fasttta_jax.evaluation.metric import Needs, NotMeasured, Quantity
from fasttta_jax.metrics.frechet import frechet_estimate, frechet_limit
from fasttta_jax.metrics.intervals import Estimate, Measured


def frechet(clips: Clips, reference: Clips) -> Estimate:
    """Distance between the embeddings of two sets of clips; embeddings of patches are pooled."""
    return frechet_estimate(features_of(clips).embeddings, features_of(reference).embeddings)


@dataclasses.dataclass(frozen=True)
class Limit:
    """The Fréchet distance extrapolated to infinitely many clips; see `frechet_limit`.

    Without an interval: how well a straight line extrapolates is not known from one set.

    Attributes:
      quantity: how it is called.
      needs: the embedder and the reference.
      least_clips: how many clips either side needs.
      seed: of the subsets.
    """

    quantity: Quantity
    needs: Needs
    least_clips: int = 20
    seed: int = 0

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        number = 0 if reference is None else min(len(clips), len(reference))
        if reference is None or number < self.least_clips:
            raise NotMeasured(f"{self.least_clips} clips are needed on either side; found {number}")
        sides = (features_of(one).embeddings for one in (clips, reference))
        return Measured(frechet_limit(*sides, seed=self.seed).limit, count=len(clips))


TAGGER_FRECHET = Estimated(
    Quantity(
        "frechet",
        "Fréchet (tagger)",
        "distance to as many real training clips, of the same events where labels name them",
        "lower",
    ),
    Needs(embedder="tagger", reference="training"),
    frechet,
)
