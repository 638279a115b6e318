"""The Fréchet distance between generated and real clips as a metric, for any embedder."""

from __future__ import annotations

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.estimating import Estimated, features_of
from fasttta_jax.evaluation.metric import Needs, Quantity
from fasttta_jax.metrics.frechet import frechet_estimate
from fasttta_jax.metrics.intervals import Estimate


def frechet(clips: Clips, reference: Clips) -> Estimate:
    """Distance between the embeddings of two sets of clips; embeddings of patches are pooled."""
    return frechet_estimate(features_of(clips).embeddings, features_of(reference).embeddings)


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
