"""What networks find in a set of sounds, prepared as a protocol says: computed, kept, read again.

A sound that cannot be read is left out and named; none stands in for it. Silent ones and short ones
are sounds like any other, and are named as well.

Dimensions: n sounds, S samples.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from fasttta_jax.audio.files import AudioError, is_silent
from fasttta_jax.evaluation.embedders import Embedder, FeatureCache, Features, stacked
from fasttta_jax.evaluation.protocols import Protocol
from fasttta_jax.evaluation.sound_sets import Samples, Sound, SoundSet
from fasttta_jax.evaluation.sound_tables import SoundsError
from fasttta_jax.storage.arrays import open_arrays
from fasttta_jax.storage.files import StorageError, write_atomically

CHUNK = 128
"""Sounds that are in memory together."""
SHORT_SECONDS = 1.0
"""Networks hear nothing in less, or only the silence that it is filled up with."""
SHOWN_NAMES = 3


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the files of a set are like.

    Attributes:
      left_out: why files are left out, by their names.
      silent: files with nothing to hear; they count.
      short: files shorter than SHORT_SECONDS; they count, filled up with silence.
      rates: how many files have each sample rate.
      seconds: lengths of the shortest and the longest.
      sha256: of the samples of all files, in whatever order.
    """

    left_out: Mapping[str, str]
    silent: tuple[str, ...]
    short: tuple[str, ...]
    rates: Mapping[int, int]
    seconds: tuple[float, float]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """With the files that are left out counted by reason, too."""
        return {
            "left_out_by_reason": dict(collections.Counter(self.left_out.values())),
            "left_out": dict(self.left_out),
            "silent": list(self.silent),
            "short": list(self.short),
            "sample_rates": {str(rate): count for rate, count in self.rates.items()},
            "seconds": list(self.seconds),
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Findings:
        """What `to_json` gave."""
        shortest, longest = found["seconds"]
        return cls(
            found["left_out"],
            tuple(found["silent"]),
            tuple(found["short"]),
            {int(rate): count for rate, count in found["sample_rates"].items()},
            (shortest, longest),
            found["sha256"],
        )

    def warnings(self) -> list[str]:
        """What a reader of the figures must know."""
        lines = []
        for reason, count in collections.Counter(self.left_out.values()).items():
            names = [name for name, one in self.left_out.items() if one == reason]
            lines.append(f"{count} files are left out ({reason}): {_some(names)}")
        if self.silent:
            lines.append(f"{len(self.silent)} files are silent: {_some(self.silent)}")
        if self.short:
            lines.append(
                f"{len(self.short)} files are shorter than {SHORT_SECONDS:g} s: {_some(self.short)}"
            )
        if len(self.rates) > 1:
            rates = ", ".join(f"{count} of {rate} Hz" for rate, count in self.rates.items())
            lines.append(f"the files have different sample rates and are resampled: {rates}")
        return lines


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedSet:
    """Features of the sounds of a set that can be read.

    Attributes:
      where: what they are from.
      names: of the sounds.
      captions: of the sounds; "" where one has none.
      features: by the network's name.
      hashes: of the networks.
      findings: what the files are like.
      generated: whether generate.py wrote the sounds.
      candidates: out of how many each was chosen; None where nothing says so.
    """

    where: str
    names: tuple[str, ...]
    captions: tuple[str, ...]
    features: Mapping[str, Features]
    hashes: Mapping[str, str]
    findings: Findings
    generated: bool = False
    candidates: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_captions(self) -> bool:
        """Whether every sound has one."""
        return all(self.captions)

    def save(self, path: pathlib.Path, protocol: Protocol) -> None:
        """Writes everything to a file, so that a reference need not be heard anew.

        Args:
          path: a .npz.
          protocol: that the sounds were prepared for.
        """
        about = {
            "where": self.where,
            "protocol": protocol.name,
            "preparation": _preparations(protocol, self.features),
            "hashes": dict(self.hashes),
            "findings": self.findings.to_json(),
            "generated": self.generated,
            "candidates": self.candidates,
        }
        arrays: dict[str, np.ndarray] = {
            "about": np.asarray(json.dumps(about)),
            "names": np.asarray(self.names),
            "captions": np.asarray(self.captions),
        }
        for network, features in self.features.items():
            arrays |= {f"{network}/{name}": values for name, values in features.arrays().items()}
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        write_atomically(path, file.getvalue())

    @classmethod
    def load(
        cls, path: pathlib.Path, protocol: Protocol, networks: Mapping[str, Embedder]
    ) -> EmbeddedSet:
        """Reads what `save` wrote.

        Args:
          path: the file.
          protocol: of the evaluation.
          networks: of the evaluation; those that the file lacks are missing in the result.

        Raises:
          SoundsError: there is no such file, or it is of another form, preparation or network.
        """
        try:
            found, about = cls._read(path)
            kept = [
                (name, about["preparation"][name], found.hashes[name]) for name in found.features
            ]
        except (StorageError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise SoundsError(
                f"{path} cannot be read as reference statistics, which "
                f"--write_reference_statistics writes: {error}"
            ) from error
        shared = [one for one in kept if one[0] in networks]
        preparations = _preparations(protocol, networks)
        for name, preparation, sha256 in shared:
            for field, value, wanted in (
                ("preparation", preparation, preparations[name]),
                ("hash", sha256, networks[name].hash),
            ):
                if value != wanted:
                    raise SoundsError(
                        f"{path} is of another {field} of {name} (protocol "
                        f"{about.get('protocol')}): {value}; this evaluation has {wanted}"
                    )
        names = [name for name in networks if name in found.features]
        return dataclasses.replace(
            found,
            features={name: found.features[name] for name in names},
            hashes={name: found.hashes[name] for name in names},
        )

    @classmethod
    def _read(cls, path: pathlib.Path) -> tuple[EmbeddedSet, dict[str, Any]]:
        """What a file holds, and what it says of itself."""
        with open_arrays(path) as file:
            arrays = {key: file[key] for key in file.files}
            about = json.loads(str(arrays.pop("about")))
            names, captions = (tuple(arrays.pop(key).tolist()) for key in ("names", "captions"))
        features = _features_in(arrays)
        counts = {len(names), len(captions), *(len(one.embeddings) for one in features.values())}
        if len(counts) > 1:
            raise ValueError(f"names, captions and features are of {sorted(counts)} clips")
        found = cls(
            about["where"],
            names,
            captions,
            features,
            about["hashes"],
            Findings.from_json(about["findings"]),
            about["generated"],
            about["candidates"],
        )
        return found, about


def embed(
    sounds: SoundSet,
    networks: Mapping[str, Embedder],
    protocol: Protocol,
    cache: FeatureCache,
    *,
    name: str,
) -> EmbeddedSet:
    """The features of a set of sounds.

    Args:
      sounds: the set.
      networks: by name.
      protocol: says how waveforms are prepared.
      cache: keeps features, so that a run that was killed goes on where it was.
      name: of the set, for the progress bar.

    Raises:
      SoundsError: fewer than two sounds can be read.
    """
    notes = _Notes()
    features: dict[str, list[Features]] = {network: [] for network in networks}
    kept: list[Sound] = []
    for some, waveforms in _waveforms(sounds.sounds, networks, protocol, notes, name):
        kept += some
        for network, embedder in networks.items():
            features[network] += cache.each(embedder, waveforms[network], embedder.sample_rate)
    findings = notes.findings()
    if len(kept) < 2:
        counted = dict(collections.Counter(findings.left_out.values()))
        raise SoundsError(
            f"{sounds.where}: {len(kept)} of {len(sounds.sounds)} sounds can be read; figures over "
            f"clips need at least two. Left out: {counted or 'none'}"
        )
    return EmbeddedSet(
        sounds.where,
        tuple(sound.name for sound in kept),
        tuple(sound.caption for sound in kept),
        {network: stacked(found) for network, found in features.items()},
        {network: embedder.hash for network, embedder in networks.items()},
        findings,
        sounds.generated,
        sounds.candidates,
    )


def embed_share(
    sounds: SoundSet,
    networks: Mapping[str, Embedder],
    protocol: Protocol,
    cache: FeatureCache,
    *,
    name: str,
    index: int,
    number: int,
) -> None:
    """Fills the cache with the features of every `number`-th sound from the `index`-th one on.

    When all shares are there, `embed` computes none. Other arguments are those of `embed`.
    """
    some, title = sounds.sounds[index::number], f"{name}, share {index} of {number}"
    for _, waveforms in _waveforms(some, networks, protocol, _Notes(), title):
        for network, embedder in networks.items():
            cache.each(embedder, waveforms[network], embedder.sample_rate)


def _waveforms(
    sounds: Sequence[Sound],
    networks: Mapping[str, Embedder],
    protocol: Protocol,
    notes: _Notes,
    title: str,
) -> Iterator[tuple[list[Sound], dict[str, list[Float[np.ndarray, " S"]]]]]:
    """Some of the sounds that can be used at a time, and what each network gets of them.

    A file is decoded once for all networks, and prepared once for those that hear it alike.
    """
    needs = {
        network: (protocol.prepare(network), embedder.sample_rate)
        for network, embedder in networks.items()
    }
    is_filled_up = all(preparation.least_samples for preparation, _ in needs.values())
    bar = tqdm(sounds, title, unit="clip", mininterval=1.0)
    for chunk in _chunks(iter(bar)):
        some: list[Sound] = []
        waveforms: dict[str, list[Float[np.ndarray, " S"]]] = {network: [] for network in networks}
        for sound in chunk:
            loaded = notes.load(sound, is_filled_up=is_filled_up)
            if loaded is None:
                continue
            some.append(sound)
            heard = {need: need[0](*loaded, need[1]) for need in dict.fromkeys(needs.values())}
            for network, need in needs.items():
                waveforms[network].append(heard[need])
        if some:
            yield some, waveforms


class _Notes:
    """Reads sounds, and writes down what they are like."""

    def __init__(self) -> None:
        self._left_out: dict[str, str] = {}
        self._silent: dict[str, None] = {}
        self._short: dict[str, None] = {}
        self._seen: dict[str, tuple[int, float, str]] = {}

    def load(self, sound: Sound, *, is_filled_up: bool) -> Samples | None:
        """The samples of a sound; None where it is left out, as a short one unless filled up."""
        try:
            samples, rate = sound.load()
        except AudioError as error:
            self._left_out[sound.name] = error.reason
            return None
        seconds = len(samples) / rate
        if seconds < SHORT_SECONDS:
            if not is_filled_up:
                self._left_out[sound.name] = "too short"
                return None
            self._short[sound.name] = None
        if is_silent(samples.mean(axis=1)):
            self._silent[sound.name] = None
        digest = hashlib.sha256(f"{samples.shape} {rate}".encode())
        digest.update(np.ascontiguousarray(samples).data)
        self._seen[sound.name] = (rate, seconds, digest.hexdigest())
        return samples, rate

    def findings(self) -> Findings:
        rates = collections.Counter(rate for rate, _, _ in self._seen.values())
        seconds = [one for _, one, _ in self._seen.values()] or [0.0]
        digests = "".join(sorted(digest for _, _, digest in self._seen.values()))
        return Findings(
            self._left_out,
            tuple(self._silent),
            tuple(self._short),
            dict(sorted(rates.items())),
            (round(min(seconds), 3), round(max(seconds), 3)),
            hashlib.sha256(digests.encode()).hexdigest(),
        )


def _chunks(sounds: Iterator[Sound]) -> Iterator[list[Sound]]:
    chunk: list[Sound] = []
    for sound in sounds:
        chunk.append(sound)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _preparations(
    protocol: Protocol, networks: Mapping[str, Any] | Sequence[str]
) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(protocol.prepare(name)) for name in networks}


def _features_in(arrays: Mapping[str, np.ndarray]) -> dict[str, Features]:
    networks: dict[str, dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        network, slash, name = key.partition("/")
        if slash:
            networks.setdefault(network, {})[name] = values
    return {network: Features.of_arrays(named) for network, named in networks.items()}


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
