"""Metrics of the literature on public networks: PANNs, VGGish and CLAP; by name, in one table.

Each holds generated clips against the real clips with the same captions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedders import AUDIOSET, Features
from fasttta_jax.evaluation.estimating import Compute, Estimated, features_of
from fasttta_jax.evaluation.frechet import Limit, frechet
from fasttta_jax.evaluation.metric import Needs, Quantity
from fasttta_jax.metrics import bootstrap, divergence, neighbours, similarity, two_sample
from fasttta_jax.metrics.features import pooled
from fasttta_jax.metrics.intervals import Estimate, Measured
from fasttta_jax.metrics.kernel import kernel_distance


@dataclasses.dataclass(frozen=True)
class ClassifierTest(Estimated):
    """The classifier two-sample test, whose interval is Wilson's."""

    def measured(self, estimate: Estimate) -> Measured:
        """See `EstimatingMetric`."""
        count = 2 * len(estimate.influence)
        return two_sample.wilson(round(count * estimate.value), count)


def network_metrics(
    *,
    panns: str = "panns_16k",
    num_resamples: int = bootstrap.NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimated | Limit]:
    """All of them, by the names of their quantities.

    Args:
      panns: the embedder of the metrics that are taken on PANNs: "panns_16k" or "panns_32k".
      num_resamples: draws of the bootstrap.
      seed: of the draws, and of the folds of the classifier test.
    """
    draws = {"num_resamples": num_resamples, "seed": seed}
    on_panns = Needs(embedder=panns, reference="test")
    on_vggish = Needs(embedder="vggish", reference="test")
    on_clap = Needs(embedder="clap", reference="test")
    pairs_on_panns = dataclasses.replace(on_panns, paired=True)
    pairs_on_clap = dataclasses.replace(on_clap, paired=True)
    with_captions = Needs(embedder="clap", captions=True)
    alone_on_panns = Needs(embedder=panns)
    near = {"least_clips": neighbours.PRECISION_K + 1, **draws}
    nearer = {"least_clips": neighbours.DENSITY_K + 1, **draws}
    metrics = (
        Estimated(
            Quantity("fd_panns", "FD (PANNs)", "Fréchet distance of PANNs embeddings", "lower"),
            on_panns,
            frechet,
            **draws,
        ),
        Limit(
            Quantity(
                "fd_panns_limit",
                "FD (PANNs), limit",
                "that distance extrapolated to infinitely many clips: the rest of it is bias",
                "lower",
            ),
            on_panns,
            seed=seed,
        ),
        Estimated(
            Quantity("fad_vggish", "FAD (VGGish)", "Fréchet distance of VGGish patches", "lower"),
            on_vggish,
            frechet,
            **draws,
        ),
        Estimated(
            Quantity(
                "kl_softmax",
                "KL (softmax)",
                "KL divergence of PANNs' softmax, real from generated, with 1e-6 in the logarithm",
                "lower",
            ),
            pairs_on_panns,
            _of_logits(divergence.kl_softmax),
            **draws,
        ),
        Estimated(
            Quantity(
                "kl_softmax_plain",
                "KL (softmax, plain)",
                "KL divergence of PANNs' softmax, real from generated",
                "lower",
            ),
            pairs_on_panns,
            _of_logits(functools.partial(divergence.kl_softmax, epsilon=0.0)),
            **draws,
        ),
        Estimated(
            Quantity(
                "kl_sigmoid",
                "KL (sigmoid)",
                "the same sum over PANNs' sigmoids, which may be negative",
                "lower",
            ),
            pairs_on_panns,
            _of_logits(divergence.kl_sigmoid),
            **draws,
        ),
        Estimated(
            Quantity(
                "inception_score",
                "IS",
                "Inception Score of PANNs' softmax, mean over ten splits",
                "higher",
            ),
            alone_on_panns,
            _inception(divergence.SPLITS),
            least_clips=divergence.SPLITS,
            **draws,
        ),
        Estimated(
            Quantity(
                "inception_score_unsplit",
                "IS (all clips)",
                "Inception Score of PANNs' softmax, of all clips together",
                "higher",
            ),
            alone_on_panns,
            _inception(1),
            **draws,
        ),
        Estimated(
            Quantity("clap_score", "CLAP", "mean cosine of a clip and its caption", "higher"),
            with_captions,
            _clap_score(clamped_percent=False),
            **draws,
        ),
        Estimated(
            Quantity(
                "clap_audio", "CLAP (audio)", "mean cosine of a clip and the real one", "higher"
            ),
            pairs_on_clap,
            _clap_audio(clamped_percent=False),
            **draws,
        ),
        Estimated(
            Quantity(
                "clap_score_percent",
                "CLAP, %",
                "mean cosine of a clip and its caption, negative ones as 0, times 100",
                "higher",
            ),
            with_captions,
            _clap_score(clamped_percent=True),
            **draws,
        ),
        Estimated(
            Quantity(
                "clap_audio_percent",
                "CLAP (audio), %",
                "mean cosine of a clip and the real one, negative ones as 0, times 100",
                "higher",
            ),
            pairs_on_clap,
            _clap_audio(clamped_percent=True),
            **draws,
        ),
        *(
            Estimated(
                Quantity(
                    f"kad_{name}",
                    f"KAD ({title})",
                    f"kernel distance of {title} embeddings, times 100",
                    "lower",
                ),
                needs,
                kernel,
                **draws,
            )
            for name, title, needs in (
                ("panns", "PANNs", on_panns),
                ("vggish", "VGGish", on_vggish),
                ("clap", "CLAP", on_clap),
            )
        ),
        Estimated(
            Quantity("precision", "precision", "clips that lie among the real ones", "higher"),
            on_panns,
            _of_generated(neighbours.precision),
            **near,
        ),
        Estimated(
            Quantity("recall", "recall", "real clips that lie among the generated ones", "higher"),
            on_panns,
            _of_reference(neighbours.recall),
            **near,
        ),
        Estimated(
            Quantity("density", "density", "how densely real clips surround a clip", "higher"),
            on_panns,
            _of_generated(neighbours.density),
            **nearer,
        ),
        Estimated(
            Quantity("coverage", "coverage", "real clips with a generated one nearby", "higher"),
            on_panns,
            _of_reference(neighbours.coverage),
            **nearer,
        ),
        ClassifierTest(
            Quantity(
                "c2st",
                "C2ST",
                "share of clips that a linear classifier of PANNs embeddings tells from real ones; "
                "0.5 is chance",
                "lower",
            ),
            pairs_on_panns,
            functools.partial(classifier, seed=seed),
            least_clips=two_sample.NUM_FOLDS,
            **draws,
        ),
    )
    return {metric.quantity.name: metric for metric in metrics}


def _vectors(clips: Clips) -> Float[np.ndarray, "N d"]:
    return pooled(features_of(clips).embeddings)[0]


def _logits(features: Features) -> Float[np.ndarray, "n K"]:
    if AUDIOSET not in features.logits:
        raise ValueError(f"the embedder gives no logits of {AUDIOSET!r}, which this metric needs")
    return features.logits[AUDIOSET]


def _of_logits(values: Callable[..., np.ndarray]) -> Compute:
    """The mean of one value for each pair of logits."""

    def compute(clips: Clips, reference: Clips) -> Estimate:
        pair = (_logits(features_of(side)) for side in (clips, reference))
        return Estimate.of_mean(values(*pair))

    return compute


def _of_generated(values: Callable[..., np.ndarray]) -> Compute:
    """The mean of one value for each generated clip, beside fixed real ones."""

    def compute(clips: Clips, reference: Clips) -> Estimate:
        return Estimate.of_mean(values(_vectors(clips), _vectors(reference)))

    return compute


def _of_reference(values: Callable[..., np.ndarray]) -> Compute:
    """The mean of one value for each real clip, beside fixed generated ones."""

    def compute(clips: Clips, reference: Clips) -> Estimate:
        mean = Estimate.of_mean(values(_vectors(clips), _vectors(reference)))
        return Estimate(mean.value, np.zeros(len(clips)), mean.influence)

    return compute


def _inception(num_splits: int) -> Compute:
    def compute(clips: Clips, reference: Clips) -> Estimate:
        logits = _logits(features_of(clips))
        return divergence.inception_score(logits, num_splits=num_splits)[0]

    return compute


def _clap_score(*, clamped_percent: bool) -> Compute:
    def compute(clips: Clips, reference: Clips) -> Estimate:
        if clips.caption_embeddings is None:
            raise ValueError("the clips have no embeddings of their captions")
        scores = similarity.clap_scores(
            _vectors(clips), clips.caption_embeddings, clamped_percent=clamped_percent
        )
        return Estimate.of_mean(scores)

    return compute


def _clap_audio(*, clamped_percent: bool) -> Compute:
    def compute(clips: Clips, reference: Clips) -> Estimate:
        scores = similarity.clap_scores(
            _vectors(clips), _vectors(reference), clamped_percent=clamped_percent
        )
        return Estimate.of_mean(scores)

    return compute


def kernel(clips: Clips, reference: Clips) -> Estimate:
    """Kernel distance of the embeddings."""
    return kernel_distance(features_of(clips).embeddings, features_of(reference).embeddings)


def classifier(clips: Clips, reference: Clips, *, seed: int = 0) -> Estimate:
    """The share of clips that a classifier of the embeddings puts into their own set."""
    test = two_sample.classifier_test(_vectors(clips), _vectors(reference), paired=True, seed=seed)
    return Estimate.of_mean(test.right)


NETWORK_METRICS: Mapping[str, Estimated | Limit] = network_metrics()
"""With PANNs at 16 kHz, a thousand draws and seed 0."""
