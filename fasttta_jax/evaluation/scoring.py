"""Metrics over sets of clips: features are computed once for a set, and each metric gets its own.

Dimensions: n clips, S samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from fasttta_jax.evaluation.captions import caption_embeddings
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedders import Embedder, FeatureCache
from fasttta_jax.evaluation.metric import EstimatingMetric, Metric, NotMeasured, check_metrics
from fasttta_jax.evaluation.tagger import to_float
from fasttta_jax.metrics.intervals import Measured


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What the metrics found for one set of clips.

    Attributes:
      values: the figures by the names of their quantities.
      not_measured: why the others are missing.
    """

    values: Mapping[str, Measured]
    not_measured: Mapping[str, str]


class Scorer:
    """Scores sets of clips that were generated for the captions of the same test clips.

    Args:
      metrics: what is computed, in order.
      embedders: by name, a function that makes the network when it is first needed; it raises
        NotMeasured where it cannot.
      test: the real clips.
      read_reference: real training clips, and the rows of `test` that they stand for; called when
        a metric first needs them.
      sample_rate: of all clips.
      cache: keeps features.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        embedders: Mapping[str, Callable[[], Embedder]],
        test: Clips,
        read_reference: Callable[[], tuple[Clips, list[int]]],
        sample_rate: int,
        cache: FeatureCache,
    ) -> None:
        self.metrics = check_metrics(metrics)
        self.sample_rate = sample_rate
        self._test = test
        self._cache = cache
        self._make = embedders
        self._embedders: dict[str, Embedder | NotMeasured] = {}
        self._read_reference = functools.cache(read_reference)
        self._references: dict[tuple[str, str | None], Clips] = {}

    def prepare(self) -> None:
        """Makes the embedders that can be made, so that no later stage fails for one."""
        for metric in self.metrics:
            if metric.needs.embedder is not None:
                with contextlib.suppress(NotMeasured):
                    self.embedder(metric.needs.embedder)

    def embedder(self, name: str) -> Embedder:
        """The network of that name.

        Raises:
          NotMeasured: it cannot be made; says why.
        """
        if name not in self._embedders:
            try:
                if name not in self._make:
                    known = ", ".join(sorted(self._make))
                    raise NotMeasured(f"there is no embedder {name!r}; there are: {known}")
                self._embedders[name] = self._make[name]()
            except NotMeasured as error:
                self._embedders[name] = error
        found = self._embedders[name]
        if isinstance(found, NotMeasured):
            raise NotMeasured(str(found))
        return found

    def with_features(self, clips: Clips, embedder: str | None, captions: bool = False) -> Clips:
        """The clips with the features of an embedder; with none for None.

        Args:
          clips: the clips.
          embedder: name of the network.
          captions: whether their captions are embedded, too.

        Raises:
          NotMeasured: there is no such embedder, or it or the clips have no captions.
        """
        clips = dataclasses.replace(clips, features=None, caption_embeddings=None)
        if embedder is None:
            return clips
        network = self.embedder(embedder)
        audio = to_float(clips.audio)
        features = self._cache.features(network, audio, self.sample_rate)
        embeddings = None
        if captions:
            embeddings = caption_embeddings(network, clips.prompts, self._cache.folder)
        return dataclasses.replace(clips, features=features, caption_embeddings=embeddings)

    def score(self, clips: Clips, rows: Sequence[int] | None = None) -> Scores:
        """The figures of one set.

        Args:
          clips: what is scored.
          rows: the rising rows of the test clips that `clips` were made for; None for all.
        """
        rows = list(range(len(self._test))) if rows is None else list(rows)
        with_features = functools.cache(functools.partial(self.with_features, clips))
        values: dict[str, Measured] = {}
        reasons: dict[str, str] = {}
        for metric in self.metrics:
            name = metric.quantity.name
            try:
                if metric.needs.labels and not _names_events(clips):
                    raise NotMeasured('no label names an event (labels with "events")')
                needs = metric.needs
                embedded = with_features(needs.embedder, needs.captions)
                scored, reference = self._sides(metric, embedded, rows)
                value = self._measured(metric, scored, reference)
                if not isinstance(value, Measured):
                    raise TypeError(f"{name}: score returned {value!r}; expected a Measured")
                values[name] = value
            except NotMeasured as reason:
                reasons[name] = str(reason)
        return Scores(values, reasons)

    def _measured(self, metric: Metric, clips: Clips, reference: Clips | None) -> object:
        """The figure; clips and test clips of one caption are drawn together."""
        if isinstance(metric, EstimatingMetric) and metric.needs.reference == "test":
            return metric.measured(metric.estimate(clips, reference).paired())
        return metric.score(clips, reference, self.sample_rate)

    def _sides(self, metric: Metric, clips: Clips, rows: list[int]) -> tuple[Clips, Clips | None]:
        """The clips that a metric scores, and what they are compared with."""
        needs = metric.needs
        if needs.reference is None:
            return clips, None
        if needs.reference == "test":
            return clips, self._reference("test", needs.embedder).take(rows)
        place = {row: index for index, row in enumerate(rows)}
        matched = self._read_reference()[1]
        kept = [index for index, row in enumerate(matched) if row in place]
        reference = self._reference("training", needs.embedder).take(kept)
        return clips.take(sorted(place[matched[index]] for index in kept)), reference

    def _reference(self, which: str, embedder: str | None) -> Clips:
        key = (which, embedder)
        if key not in self._references:
            clips = self._test if which == "test" else self._read_reference()[0]
            self._references[key] = self.with_features(clips, embedder)
        return self._references[key]


def _names_events(clips: Clips) -> bool:
    return len(clips.rows_with(0)) < len(clips)
