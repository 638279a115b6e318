"""Metrics whose figures come with the influence of every clip, and with it an interval.

Dimensions: n clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedders import Features
from fasttta_jax.evaluation.metric import Needs, NotMeasured, Quantity
from fasttta_jax.metrics import bootstrap
from fasttta_jax.metrics.intervals import Estimate, Measured

Compute = Callable[[Clips, Clips], Estimate]
"""Clips and what they are compared with, which is the clips again where a metric needs nothing."""


@dataclasses.dataclass(frozen=True)
class Estimated:
    """A metric of embeddings, with a bootstrap interval over clips.

    `score` draws clips and reference by themselves. Whoever knows which of them are of one prompt
    has the smaller errors of `measured(estimate.paired(...))`, as the scorer does.

    Attributes:
      quantity: how it is called.
      needs: the embedder and the reference.
      compute: the figure with its influences.
      least_clips: how many clips either side needs.
      num_resamples: draws of the bootstrap.
      seed: of the draws.
    """

    quantity: Quantity
    needs: Needs
    compute: Compute
    least_clips: int = 2
    num_resamples: int = bootstrap.NUM_RESAMPLES
    seed: int = 0

    def estimate(self, clips: Clips, reference: Clips | None) -> Estimate:
        """See `EstimatingMetric`."""
        if reference is None:
            if self.needs.reference is not None:
                raise NotMeasured("there are no reference clips")
            reference = clips
        number = min(len(clips), len(reference))
        if number < self.least_clips:
            raise NotMeasured(f"{self.least_clips} clips are needed on either side; found {number}")
        return self.compute(clips, reference)

    def measured(self, estimate: Estimate) -> Measured:
        """See `EstimatingMetric`."""
        return bootstrap.measured(estimate, num_resamples=self.num_resamples, seed=self.seed)

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """See `Metric`."""
        return self.measured(self.estimate(clips, reference))


def features_of(clips: Clips) -> Features:
    """The features that a metric was promised.

    Raises:
      ValueError: the clips have none.
    """
    if clips.features is None:
        raise ValueError("the clips have no features; this metric needs an embedder's")
    return clips.features
