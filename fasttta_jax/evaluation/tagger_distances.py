"""How far generated clips are from the real ones with the same captions, by the tagger's features.

Both need no labels and saturate later than what the tagger recognises.
"""

from __future__ import annotations

from fasttta_jax.evaluation.estimating import Estimated
from fasttta_jax.evaluation.metric import Needs, Quantity
from fasttta_jax.evaluation.network_metrics import ClassifierTest, classifier, kernel
from fasttta_jax.metrics.two_sample import NUM_FOLDS

TAGGER_KERNEL = Estimated(
    Quantity(
        "kad_tagger",
        "KAD (tagger)",
        "kernel distance of the tagger's features, times 100",
        "lower",
    ),
    Needs(embedder="tagger", reference="test"),
    kernel,
)
TAGGER_TWO_SAMPLE = ClassifierTest(
    Quantity(
        "c2st_tagger",
        "two-sample accuracy",
        "share of clips that a linear classifier of the tagger's features tells from real ones; "
        "0.5 is chance",
        "lower",
    ),
    Needs(embedder="tagger", reference="test", paired=True),
    classifier,
    least_clips=NUM_FOLDS,
)
