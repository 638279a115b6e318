"""Judges sets of sounds against real ones by a protocol: one row of figures for each set.

Sets are compared as they are where a metric compares distributions; where it needs pairs, those
that both have count, and more than 1 % without a counterpart is an error.
Dimensions: n clips.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from fasttta_jax.evaluation.captions import caption_embeddings
from fasttta_jax.evaluation.clips import Clips
from fasttta_jax.evaluation.embedded import EmbeddedSet, embed, embed_share
from fasttta_jax.evaluation.embedders import Embedder, FeatureCache
from fasttta_jax.evaluation.metric import EstimatingMetric, Metric, NotMeasured, Quantity
from fasttta_jax.evaluation.network_metrics import network_metrics
from fasttta_jax.evaluation.networks import load_network
from fasttta_jax.evaluation.protocols import PROTOCOLS, Protocol, about_list, caption_list_sha256
from fasttta_jax.evaluation.sound_sets import Pairs, SoundSet, open_folder, pair
from fasttta_jax.metrics.intervals import Estimate, Measured


class JudgingError(ValueError):
    """Sounds that cannot be judged as it was asked for."""


@dataclasses.dataclass(frozen=True)
class JudgingConfig:
    """How sounds are judged by public networks.

    Attributes:
      networks: folder of converted weights by the network's name.
      protocol: of `protocols.PROTOCOLS`.
      metrics: those of its figures that are wanted; empty for all.
      reference: folder of the real sounds; None for the test clips of the data set.
      reference_statistics: file that an earlier evaluation wrote of the real sounds.
      write_reference_statistics: where to write that file.
      literature: whether published figures are shown below, each with its own protocol.
    """

    networks: Mapping[str, str]
    protocol: str = "ours"
    metrics: tuple[str, ...] = ()
    reference: str | None = None
    reference_statistics: str | None = None
    write_reference_statistics: str | None = None
    literature: bool = False

    def __post_init__(self) -> None:
        if not self.networks:
            raise JudgingError(
                "there is no network to judge with: give --networks=NAME=FOLDER of converted "
                "weights, such as panns_16k, vggish and clap"
            )
        if self.protocol not in PROTOCOLS:
            raise JudgingError(f"protocol is {self.protocol!r}; allowed: {', '.join(PROTOCOLS)}")
        if self.reference and self.reference_statistics:
            raise JudgingError(
                "both reference and reference_statistics are given; allowed: the real sounds, or "
                "what was written of them"
            )
        if self.reference_statistics and self.write_reference_statistics:
            raise JudgingError(
                "write_reference_statistics needs the real sounds, not reference_statistics"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Influences:
    """What a comparison of a figure with that of another evaluation needs.

    Attributes:
      quantity: the figure.
      estimate: with the influence of every clip.
      paired: whether the clips are those that have a counterpart, in the order of the real ones.
    """

    quantity: Quantity
    estimate: Estimate
    paired: bool

    def to_json(self) -> dict[str, Any]:
        """To six significant digits."""

        def rounded(values: Float64[np.ndarray, " n"] | None) -> list[float] | None:
            return None if values is None else [float(f"{value:.6g}") for value in values]

        return {
            "better": self.quantity.better,
            "kind": "pairs" if self.paired else "generated",
            "clips": rounded(self.estimate.influence),
            "reference": rounded(self.estimate.reference_influence),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """One set's figures and what they were taken on.

    Attributes:
      values: the figures, by the names of their quantities.
      not_measured: by name, why a figure is missing.
      influences: of the clips on the figures that have them.
      clips: what names each clip in two evaluations of one list: the real counterpart, else the
        caption, else the file; for "generated", "pairs" and "reference".
      about: protocol, list of captions, networks, preparation and files, for metrics.json.
      warnings: what a reader of the figures must know.
    """

    values: Mapping[str, Measured]
    not_measured: Mapping[str, str]
    influences: tuple[Influences, ...]
    clips: Mapping[str, tuple[str, ...]]
    about: Mapping[str, Any]
    warnings: tuple[str, ...]

    def influences_json(self) -> dict[str, Any]:
        """For `comparison.compare`."""
        return {
            "clips": {kind: list(keys) for kind, keys in self.clips.items()},
            "figures": {one.quantity.name: one.to_json() for one in self.influences},
        }


class Judge:
    """Judges sets of sounds against one reference.

    Args:
      protocol: how waveforms are prepared and files are paired.
      metrics: what is computed, in order.
      networks: by name; a metric whose network is not among them is not measured.
      cache: keeps features.
      reference: the real sounds, or what was written of them.

    Raises:
      JudgingError: no metric has its network.
    """

    def __init__(
        self,
        protocol: Protocol,
        metrics: Sequence[Metric],
        networks: Mapping[str, Embedder],
        cache: FeatureCache,
        reference: SoundSet | EmbeddedSet,
    ) -> None:
        self.protocol = protocol
        self.metrics = tuple(metrics)
        needed = {metric.needs.embedder: None for metric in metrics}
        self.networks = {name: one for name, one in networks.items() if name in needed}
        self.unused = [name for name in networks if name not in needed]
        if not self.networks:
            raise JudgingError(
                f"the networks are {', '.join(networks) or 'none'}; the figures "
                f"{', '.join(metric.quantity.name for metric in metrics)} need "
                f"{', '.join(map(str, needed))}"
            )
        self.cache = cache
        self._reference = reference

    @functools.cached_property
    def reference(self) -> EmbeddedSet:
        """The real sounds, with their features.

        Raises:
          SoundsError: fewer than two can be read.
        """
        if isinstance(self._reference, EmbeddedSet):
            return self._reference
        return self.hear(self._reference, "reference")

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """How the figures are called."""
        return tuple(metric.quantity for metric in self.metrics)

    def hear(self, sounds: SoundSet, name: str) -> EmbeddedSet:
        """The features of a set, under the name that its progress is shown with."""
        return embed(sounds, self.networks, self.protocol, self.cache, name=name)

    def hear_share(self, sounds: Mapping[str, SoundSet], index: int, number: int) -> None:
        """Keeps the features of a share of the sets, and of the real sounds, for a later `judge`.

        Args:
          sounds: the sets by name.
          index: of the process, from 0.
          number: of processes.
        """
        sets = dict(sounds)
        if isinstance(self._reference, SoundSet):
            sets["reference"] = self._reference
        for name, found in sets.items():
            embed_share(
                found,
                self.networks,
                self.protocol,
                self.cache,
                name=name,
                index=index,
                number=number,
            )

    def judge(self, sounds: SoundSet, name: str) -> Judged:
        """The figures of a set.

        Raises:
          SoundsError: fewer than two sounds can be read.
          JudgingError: a metric needs pairs, and more than 1 % of either set lack theirs.
        """
        generated, reference = self.hear(sounds, name), self.reference
        pairs = self._pairs(generated, reference, name)
        captions = _captions(generated, reference, pairs)
        values: dict[str, Measured] = {}
        reasons: dict[str, str] = {}
        influences = []
        for metric in self.metrics:
            try:
                clips, other, rate = self._sides(metric, generated, captions, pairs)
                if isinstance(metric, EstimatingMetric):
                    estimate = metric.estimate(clips, other)
                    if metric.needs.reference == "test" and not metric.needs.paired:
                        estimate = estimate.paired(pairs.rows, pairs.reference_rows)
                    values[metric.quantity.name] = metric.measured(estimate)
                    influences.append(Influences(metric.quantity, estimate, metric.needs.paired))
                else:
                    values[metric.quantity.name] = metric.score(clips, other, rate)
            except NotMeasured as reason:
                reasons[metric.quantity.name] = str(reason)
        return Judged(
            values,
            reasons,
            tuple(influences),
            _clip_keys(generated, reference, captions, pairs),
            self._about(generated, captions, pairs),
            tuple(self._warnings(generated, pairs, name)),
        )

    def _sides(
        self,
        metric: Metric,
        generated: EmbeddedSet,
        captions: Sequence[str],
        pairs: Pairs,
    ) -> tuple[Clips, Clips | None, int]:
        """What a metric scores, what it is compared with, and the sample rate."""
        network = metric.needs.embedder
        if network is None or network not in self.networks:
            raise NotMeasured(f"--networks={network}=FOLDER is not given")
        if network not in self.reference.features:
            raise NotMeasured(f"the reference statistics hold no features of {network}")
        rate = self.networks[network].sample_rate
        clips = _clips(generated, captions, network)
        if metric.needs.captions:
            embeddings = caption_embeddings(
                self.networks[network], clips.prompts, self.cache.folder
            )
            clips = dataclasses.replace(clips, caption_embeddings=embeddings)
        if metric.needs.reference is None:
            return clips, None, rate
        reference = _clips(self.reference, self.reference.captions, network)
        if metric.needs.paired:
            clips, reference = clips.take(pairs.rows), reference.take(pairs.reference_rows)
        return clips, reference, rate

    def write_reference(self, path: str | None) -> None:
        """Writes the features of the real sounds where a path is given; see `EmbeddedSet.save`."""
        if path:
            self.reference.save(pathlib.Path(path), self.protocol)

    def check(self, sounds: SoundSet, name: str) -> None:
        """Looks at names and captions alone, before anything takes long.

        Raises:
          JudgingError: as `judge`.
        """
        self._pairs(sounds, self._reference, name)

    def _pairs(
        self,
        generated: SoundSet | EmbeddedSet,
        reference: SoundSet | EmbeddedSet,
        name: str,
    ) -> Pairs:
        pairs = pair(
            generated.names,
            generated.captions,
            reference.names,
            reference.captions,
            self.protocol.key,
        )
        paired = [
            metric.quantity.name
            for metric in self.metrics
            if metric.needs.paired and metric.needs.embedder in self.networks
        ]
        if not paired or pairs.complete:
            return pairs
        others = [
            metric.quantity.name for metric in self.metrics if metric.quantity.name not in paired
        ]
        raise JudgingError(
            f"{name}: {', '.join(paired)} compare pairs, and more than 1 % have no counterpart: "
            f"{pairs} (generated: {len(generated)} in {generated.where}, real: {len(reference)} in "
            f"{reference.where}). Equal file names or equal captions make pairs; "
            f"--metrics={','.join(others)} leaves out what needs them"
        )

    def _about(
        self, generated: EmbeddedSet, captions: Sequence[str], pairs: Pairs
    ) -> dict[str, Any]:
        complete = all(captions)
        sha256 = caption_list_sha256(captions) if complete else None
        return {
            "protocol": self.protocol.name,
            "clips": len(generated),
            "caption_list_sha256": sha256,
            "captions": about_list(len(generated), sha256),
            "pairs": {"count": len(pairs.rows), "by": pairs.by},
            "missing": list(pairs.missing),
            "unused": list(pairs.unused),
            "candidates": generated.candidates,
            "networks": {
                name: {
                    "sha256": network.hash,
                    "sample_rate": network.sample_rate,
                    "preparation": dataclasses.asdict(self.protocol.prepare(name)),
                    "as_published": self.protocol.weights.get(name),
                }
                for name, network in self.networks.items()
            },
            "generated": {"where": generated.where, **generated.findings.to_json()},
            "reference": {
                "where": self.reference.where,
                "clips": len(self.reference),
                **self.reference.findings.to_json(),
            },
        }

    def _warnings(self, generated: EmbeddedSet, pairs: Pairs, name: str) -> list[str]:
        reference = self.reference
        lines = [f"{name}: {line}" for line in generated.findings.warnings()]
        lines += [f"reference: {line}" for line in reference.findings.warnings()]
        if self.unused:
            lines.append(
                f"the networks {', '.join(self.unused)} are given, and no figure that is asked for "
                "needs them"
            )
        if generated.findings.sha256 == reference.findings.sha256:
            lines.append(
                f"{name} and the reference hold the same sounds: distances are those of a set to "
                "itself"
            )
        if pairs.rows and not pairs.complete:
            lines.append(f"{name}: {pairs}")
        if reference.generated:
            lines.append(
                f"the reference {reference.where} was written by generate.py: are the folders of "
                "--generated and --reference swapped?"
            )
        elif generated.has_captions and not reference.has_captions:
            lines.append(
                f"the reference {reference.where} has no captions and {name} has: are the folders "
                "of --generated and --reference swapped?"
            )
        if set(generated.findings.rates) != set(reference.findings.rates):
            both = (generated.findings.rates, reference.findings.rates)
            rates = " and ".join(" or ".join(map(str, one)) for one in both)
            lines.append(
                f"{name} and the reference have sample rates of {rates} Hz; each is resampled to "
                "that of a network"
            )
        if pairs.by != "caption":
            differing = sum(
                bool(generated.captions[row] and reference.captions[other])
                and generated.captions[row] != reference.captions[other]
                for row, other in zip(pairs.rows, pairs.reference_rows, strict=True)
            )
            if differing:
                lines.append(
                    f"{name}: {differing} of {len(pairs.rows)} pairs, made by {pairs.by}, have "
                    "different captions in the two folders"
                )
        return lines


def judge_for(
    config: JudgingConfig,
    cache: FeatureCache,
    reference: SoundSet | None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    networks: Mapping[str, Embedder] | None = None,
) -> Judge:
    """The judge that a configuration describes.

    Args:
      config: networks, protocol and reference.
      cache: keeps features.
      reference: the real sounds, where the configuration names none.
      metrics: all there are; None for those of `network_metrics`.
      networks: None for those of `config`.

    Raises:
      JudgingError: a metric that the protocol does not have, none with its network, or no real
        sounds.
      SoundsError: the real sounds cannot be used; see `Judge` and `EmbeddedSet.load`.
      ConvertedError: a folder does not hold the network that it is given for.
    """
    if metrics is None:
        metrics = network_metrics()
    networks = load_networks(config.networks) if networks is None else networks
    protocol = PROTOCOLS[config.protocol]
    heard: SoundSet | EmbeddedSet
    written = config.write_reference_statistics
    if written and pathlib.Path(written).is_dir():
        raise JudgingError(
            f"write_reference_statistics is {written!r}, a folder; allowed: a file, such as "
            "real.npz"
        )
    if config.reference_statistics:
        heard = EmbeddedSet.load(pathlib.Path(config.reference_statistics), protocol, networks)
    elif config.reference:
        heard = open_folder(config.reference)
    elif reference is not None:
        heard = reference
    else:
        raise JudgingError("there are no real sounds to compare with")
    return Judge(protocol, choose(metrics, protocol, config.metrics), networks, cache, heard)


def load_networks(folders: Mapping[str, str | pathlib.Path]) -> dict[str, Embedder]:
    """Public networks from folders of converted weights, by name."""
    return {name: load_network(name, folder) for name, folder in folders.items()}


def choose(
    metrics: Mapping[str, Metric], protocol: Protocol, names: Sequence[str] = ()
) -> list[Metric]:
    """The metrics of a protocol, or some of them, in its order.

    Args:
      metrics: all there are, by name.
      protocol: names its own.
      names: those that are wanted; none for all.

    Raises:
      JudgingError: a name that the protocol does not have.
    """
    unknown = [name for name in names if name not in protocol.metrics]
    if unknown:
        raise JudgingError(
            f"metrics names {', '.join(name or repr(name) for name in unknown)}; allowed in the "
            f"protocol {protocol.name}: {', '.join(protocol.metrics)}"
        )
    return [metrics[name] for name in protocol.metrics if not names or name in names]


def _clips(sounds: EmbeddedSet, captions: Sequence[str], network: str) -> Clips:
    """Features as a metric takes them; of the waveforms themselves nothing is kept."""
    nothing = np.zeros((len(sounds), 0), np.float32)
    labels: tuple[Mapping[str, Any], ...] = ({},) * len(sounds)
    return Clips(nothing, tuple(captions), labels, sounds.features[network])


def _captions(generated: EmbeddedSet, reference: EmbeddedSet, pairs: Pairs) -> list[str]:
    """The caption of each generated sound: its own, or that of its counterpart."""
    captions = list(generated.captions)
    for row, other in zip(pairs.rows, pairs.reference_rows, strict=True):
        captions[row] = captions[row] or reference.captions[other]
    return captions


def _clip_keys(
    generated: EmbeddedSet, reference: EmbeddedSet, captions: Sequence[str], pairs: Pairs
) -> dict[str, tuple[str, ...]]:
    keys = [caption or name for name, caption in zip(generated.names, captions, strict=True)]
    for row, other in zip(pairs.rows, pairs.reference_rows, strict=True):
        keys[row] = reference.names[other]
    return {
        "generated": tuple(keys),
        "pairs": tuple(keys[row] for row in pairs.rows),
        "reference": reference.names,
    }
