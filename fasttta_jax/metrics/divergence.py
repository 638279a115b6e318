"""How a classifier labels generated clips: unlike the real ones (KL), and how surely and variedly.

KL, softmax:   mean over clips of sum_k r_k (log r_k - log(g_k + epsilon)), epsilon = 1e-6,
KL, sigmoid:   the same sum over sigmoids instead of softmax probabilities,
Inception Score: exp of the mean over clips of KL(g || mean g),

with r the probabilities of a real clip and g those of the clip generated for the same caption. The
sigmoids of a clip do not sum to 1 and the terms of 1 - r are left out: that "KL" is no divergence
and may be negative. Equal flat logits of K classes give -log(1 + K 1e-6), not 0.

av-benchmark takes the same sum with epsilon = 0, the true divergence, which is larger where a real
clip has a class that the generated one lacks.

Source: audioldm_eval, `calculate_kl` and `calculate_isc` (its KL is in float32, ours in float64);
av-benchmark, `compute_kl` (commit 050a5cd); Salimans et al., 2016, arXiv:1606.03498 (Inception
Score).
Dimensions: n clips, K classes.
"""

from __future__ import annotations

import numpy as np
import scipy.special
from jaxtyping import Float, Float64

from fasttta_jax.metrics.features import checked_features
from fasttta_jax.metrics.intervals import Estimate

EPSILON = 1e-6
"""Added to the probabilities of generated clips before their logarithm."""
SPLITS = 10
PERMUTATION_SEED = 2020


def kl_softmax(
    generated: Float[np.ndarray, "n K"],
    reference: Float[np.ndarray, "n K"],
    *,
    epsilon: float = EPSILON,
) -> Float64[np.ndarray, " n"]:
    """KL(reference || generated) of each pair of clips, in nats; the figure is the mean.

    Args:
      generated: logits of the generated clips.
      reference: logits of the real clips with the same captions.
      epsilon: added to the generated clips' probabilities before their logarithm.

    Raises:
      ValueError: the shapes differ, there are no clips, or a logit is not finite.
    """
    generated, reference = _checked_pair(generated, reference)
    probabilities = scipy.special.softmax(reference, axis=1)
    log_generated = scipy.special.log_softmax(generated, axis=1)
    if epsilon:
        log_generated = np.log(np.exp(log_generated) + epsilon)
    return np.sum(
        scipy.special.xlogy(probabilities, probabilities) - probabilities * log_generated, axis=1
    )


def kl_sigmoid(
    generated: Float[np.ndarray, "n K"], reference: Float[np.ndarray, "n K"]
) -> Float64[np.ndarray, " n"]:
    """The sum over classes that goes by the name of KL with sigmoids; may be negative.

    Its epsilon is 1e-6. Arguments and errors are those of `kl_softmax`.
    """
    generated, reference = _checked_pair(generated, reference)
    likely = scipy.special.expit(reference)
    log_generated = np.log(scipy.special.expit(generated) + EPSILON)
    return np.sum(scipy.special.xlogy(likely, likely) - likely * log_generated, axis=1)


def inception_score(
    logits: Float[np.ndarray, "n K"], *, num_splits: int = SPLITS
) -> tuple[Estimate, float]:
    """How sure the classifier is of each clip, and how differently it labels them: 1 to K.

    Clips are permuted by NumPy's `RandomState(2020)`, as in audioldm_eval, and cut into splits that
    are scored by themselves. A split of few clips scores lower than one of many.

    Args:
      logits: of the generated clips.
      num_splits: 10 in the literature; 1 for the score of all clips together.

    Returns:
      The mean over splits, and their standard deviation (over splits, divided by their number).

    Raises:
      ValueError: there are fewer clips than splits, or a logit is not finite.
    """
    logits = checked_features(logits, "logits", least=1, columns="classes")
    num_clips = len(logits)
    if not 1 <= num_splits <= num_clips:
        raise ValueError(
            f"an Inception Score of {num_splits} splits needs at least one clip for each; there "
            f"are {num_clips} clips"
        )
    order = np.random.RandomState(PERMUTATION_SEED).permutation(num_clips)
    probabilities = scipy.special.softmax(logits, axis=1)
    log_probabilities = scipy.special.log_softmax(logits, axis=1)
    scores, influence = np.empty(num_splits), np.empty(num_clips)
    for split in range(num_splits):
        start, end = (num_clips * edge // num_splits for edge in (split, split + 1))
        rows = order[start:end]
        marginal = probabilities[rows].mean(axis=0)
        divergence = np.sum(
            probabilities[rows] * log_probabilities[rows]
            - scipy.special.xlogy(probabilities[rows], marginal),
            axis=1,
        )
        scores[split] = np.exp(divergence.mean())
        # The marginal's own change adds nothing: sum_j p_j / q is 1 a clip on the average.
        share = num_clips / (num_splits * len(rows))
        influence[rows] = share * scores[split] * (divergence - divergence.mean())
    return Estimate(float(scores.mean()), influence), float(scores.std())


def _checked_pair(
    generated: np.ndarray, reference: np.ndarray
) -> tuple[Float64[np.ndarray, "n K"], Float64[np.ndarray, "n K"]]:
    generated = checked_features(generated, "generated", least=1, columns="classes")
    reference = checked_features(reference, "reference", least=1, columns="classes")
    if generated.shape != reference.shape:
        raise ValueError(
            f"generated has shape {generated.shape} and reference {reference.shape}; each clip "
            "needs the real clip of its caption, and both the same classes"
        )
    return generated, reference
