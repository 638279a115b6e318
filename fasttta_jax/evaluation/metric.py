"""The seam of metrics: what a metric is called, what it needs, and how it scores clips.

A metric is one file: an object with a `Quantity`, its `Needs` and `score`. Table, metrics.json and
gates take its name, its title and its words from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.metrics.intervals import Estimate, Measured


class NotMeasured(ValueError):
    """A metric cannot be computed on these clips; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """How a figure is called and read.

    Attributes:
      name: its key in metrics.json and in gates.
      title: the heading of its column.
      words: what it says, in a sentence for the reader of a table.
      better: whether a higher or a lower figure is the better one.
    """

    name: str
    title: str
    words: str
    better: Literal["higher", "lower"]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a metric cannot do without, beside the clips and their captions, which all have.

    Attributes:
      embedder: name of the network whose features it compares; None for waveforms alone.
      labels: whether labels must name events.
      reference: what clips are compared with: "test", the real clips with the same captions, in
        the same order; "training", as many real training clips, of the same events where labels
        name them; None for nothing.
      paired: whether clip i is held against reference clip i, so that each needs its counterpart;
        otherwise the two are compared as sets.
      captions: whether the embedder must put the captions into the space of its features, too.
    """

    embedder: str | None = None
    labels: bool = False
    reference: Literal["test", "training"] | None = None
    paired: bool = False
    captions: bool = False

    def __post_init__(self) -> None:
        if self.reference not in (None, "test", "training"):
            raise ValueError(f"reference is {self.reference!r}; allowed: 'test', 'training', None")


@runtime_checkable
class Metric(Protocol):
    """A figure of a set of clips."""

    @property
    def quantity(self) -> Quantity: ...

    @property
    def needs(self) -> Needs: ...

    def score(self, clips: Clips, reference: Clips | None, sample_rate: int) -> Measured:
        """The figure.

        Args:
          clips: what is scored, with the features of the embedder that is needed. Where clips are
            compared with training clips, those that have no counterpart are left out.
          reference: what they are compared with, likewise; None if nothing is needed.
          sample_rate: of all clips.

        Raises:
          NotMeasured: there is nothing to compute it from.
        """
        ...


@runtime_checkable
class EstimatingMetric(Metric, Protocol):
    """A metric that tells how far each clip moves its figure, so that systems can be compared.

    The difference of two systems on the same prompts in the same order, with its interval, is
    `metrics.bootstrap.paired_difference` of their estimates, paired with the reference before.
    """

    def estimate(self, clips: Clips, reference: Clips | None) -> Estimate:
        """The figure and its influences; arguments and errors are those of `score`."""
        ...

    def measured(self, estimate: Estimate) -> Measured:
        """The figure with its interval."""
        ...


def check_metrics(metrics: Iterable[object]) -> tuple[Metric, ...]:
    """The metrics, which are one of a name each.

    Raises:
      TypeError: one is no metric.
      ValueError: two have the same name.
    """
    found: dict[str, Metric] = {}
    for metric in metrics:
        if isinstance(metric, type) or not isinstance(metric, Metric):
            raise TypeError(f"{metric!r} is no metric, with quantity, needs and score")
        name = metric.quantity.name
        if name in found:
            raise ValueError(f"two metrics are called {name!r}: {found[name]!r} and {metric!r}")
        found[name] = metric
    return tuple(found.values())
