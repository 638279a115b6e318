"""Embedders: networks that turn waveforms into the features that metrics compare.

Features are cached clip by clip and by content: the key is a hash of the waveform and of the
embedder. A second evaluation of unchanged sounds computes none, and one that was killed goes on at
the block of clips where it was. The folder may be deleted at any time.

Dimensions: n clips, S samples, d features, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import librosa
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from fasttta_jax.storage.arrays import open_arrays
from fasttta_jax.storage.files import StorageError, write_atomically

logger = logging.getLogger(__name__)

ARRAYS = ("probabilities", "classes", "logits")
"""Fields of `Features` that hold an array for each classification."""
KEYS = "keys"
"""In a file of the cache, the keys of its clips."""
AUDIOSET = "audioset"
"""The classification of PANNs' networks: its 527 classes."""
BLOCK = 64
"""Clips that are computed and put on disk together; what a kill loses at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What a network computes from n clips; NumPy.

    Attributes:
      embeddings: one vector a clip, or one for each of its patches; a patch that a shorter clip
        lacks is NaN throughout.
      probabilities: for each classification that the network makes, by its name, the probabilities
        [n, K] of its classes.
      classes: for each classification, the names of its classes.
      logits: for each classification that is given before its softmax or sigmoid, [n, K].
    """

    embeddings: Float[np.ndarray, "n *patches d"]
    probabilities: Mapping[str, Float[np.ndarray, "n _"]] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    logits: Mapping[str, Float[np.ndarray, "n _"]] = dataclasses.field(default_factory=dict)

    def take(self, rows: Sequence[int]) -> Features:
        """The features of some of the clips, in the order of `rows`."""
        index = list(rows)
        probabilities, logits = (
            {name: values[index] for name, values in arrays.items()}
            for arrays in (self.probabilities, self.logits)
        )
        return Features(self.embeddings[index], probabilities, self.classes, logits)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for a .npz: "embeddings", "logits:audioset", ..."""
        named = {"embeddings": self.embeddings}
        for kind in ARRAYS:
            for name, values in getattr(self, kind).items():
                named[f"{kind}:{name}"] = np.asarray(values)
        return named

    @classmethod
    def of_arrays(cls, named: Mapping[str, np.ndarray]) -> Features:
        """What `arrays` gave; others beside them do not count."""
        found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ARRAYS}
        for key in named:
            kind, colon, name = key.partition(":")
            if colon and kind in found:
                found[kind][name] = named[key]
        classes = {name: tuple(values.tolist()) for name, values in found["classes"].items()}
        return cls(named["embeddings"], found["probabilities"], classes, found["logits"])

    def each(self) -> list[Features]:
        """The features of each clip by itself."""
        return [self.take([row]) for row in range(len(self.embeddings))]


def stacked(features: Sequence[Features]) -> Features:
    """The features of several sets of clips of one network as those of one set, in order.

    Where there is an embedding for each patch, those that a shorter clip lacks are NaN throughout,
    as `metrics.features.pooled` takes them.

    Raises:
      ValueError: there are none, or they are not of one network.
    """
    ranks = {one.embeddings.ndim for one in features}
    widths = {one.embeddings.shape[-1] for one in features}
    if len(ranks) != 1 or len(widths) != 1:
        shapes = sorted({one.embeddings.shape[1:] for one in features})
        raise ValueError(
            f"a clip's embeddings have the shapes {shapes}; allowed: those of one network, which "
            "differ in the number of patches at most"
        )
    first = features[0]

    def joined(kind: str) -> dict[str, np.ndarray]:
        names = getattr(first, kind)
        return {
            name: np.concatenate([getattr(one, kind)[name] for one in features]) for name in names
        }

    embeddings = [one.embeddings for one in features]
    if ranks == {3}:
        most = max(values.shape[1] for values in embeddings)
        embeddings = [
            np.pad(
                values,
                ((0, 0), (0, most - values.shape[1]), (0, 0)),
                constant_values=np.nan,
            )
            for values in embeddings
        ]
    return Features(
        np.concatenate(embeddings), joined("probabilities"), first.classes, joined("logits")
    )


@runtime_checkable
class Embedder(Protocol):
    """A network with its weights and settings."""

    @property
    def name(self) -> str:
        """A short name, which metrics ask for."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms that it takes."""
        ...

    @property
    def hash(self) -> str:
        """Of weights and settings: equal where equal waveforms give equal features."""
        ...

    def embed(self, audio: Float[np.ndarray, "n S"]) -> Features:
        """Features of waveforms in [-1, 1] at `sample_rate`, each clip by itself."""
        ...


@runtime_checkable
class TextEmbedder(Embedder, Protocol):
    """An embedder with a tower for captions, which it puts into the same space as audio."""

    def embed_text(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One vector of unit length a caption, as `embed` gives one a clip."""
        ...


@runtime_checkable
class EachEmbedder(Embedder, Protocol):
    """An embedder that takes clips of different lengths without a program for each length."""

    def embed_each(self, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[Features]:
        """Features of each waveform, as `embed` computes them, up to rounding."""
        ...


def embed_each(embedder: Embedder, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[Features]:
    """Features of waveforms of any lengths, each clip by itself, in their order.

    An embedder that does not take different lengths is asked for one after the other.
    """
    if isinstance(embedder, EachEmbedder):
        return embedder.embed_each(waveforms)
    rows: dict[int, list[int]] = {}
    for row, waveform in enumerate(waveforms):
        rows.setdefault(len(waveform), []).append(row)
    found: dict[int, Features] = {}
    for group in rows.values():
        features = embedder.embed(np.stack([waveforms[row] for row in group]))
        found |= zip(group, features.each(), strict=True)
    return [found[row] for row in range(len(waveforms))]


class FeatureCache:
    """Features on disk, by the content of each waveform and of the embedder.

    A file holds a block of clips; it is whole or absent, and never changes. Several processes may
    use one folder.

    Args:
      folder: where they are kept; made when it is first needed.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._keys: dict[pathlib.Path, frozenset[str]] = {}  # of the files that were read

    def features(
        self, embedder: Embedder, audio: Float[np.ndarray, "n S"], sample_rate: int
    ) -> Features:
        """The features of some waveforms, computed where no equal ones were seen before.

        Args:
          embedder: the network.
          audio: waveforms in [-1, 1], at least one.
          sample_rate: of the waveforms; they are resampled to the embedder's.
        """
        return stacked(self.each(embedder, list(audio), sample_rate))

    def each(
        self, embedder: Embedder, waveforms: Sequence[Float[np.ndarray, " _"]], sample_rate: int
    ) -> list[Features]:
        """The features of each waveform, of whatever length; otherwise as `features`."""
        settings = f"{sample_rate} {embedder.hash}"
        keys = [_key(waveform, settings) for waveform in waveforms]
        folder = self.folder / f"{embedder.name}_{_sha256(embedder.hash)[:16]}"
        known = self._read(folder, set(keys))
        # By length, so that the clips of a block are alike; equal clips once.
        missing = {
            key: waveform
            for key, waveform in sorted(
                zip(keys, waveforms, strict=True), key=lambda pair: (len(pair[1]), pair[0])
            )
            if key not in known
        }
        todo = list(missing.items())
        with tqdm(
            total=len(todo),
            desc=f"{embedder.name} features",
            unit="clip",
            disable=None,
            leave=False,  # often below the bar of a whole set
        ) as bar:
            for start in range(0, len(todo), BLOCK):
                block = dict(todo[start : start + BLOCK])
                audio = [
                    _resampled(waveform, sample_rate, embedder.sample_rate)
                    for waveform in block.values()
                ]
                found = dict(zip(block, embed_each(embedder, audio), strict=True))
                _write(folder, found)
                known |= found
                bar.update(len(block))
        return [known[key] for key in keys]

    def _read(self, folder: pathlib.Path, wanted: set[str]) -> dict[str, Features]:
        """The wanted clips' features, as far as they are there; damaged files are deleted."""
        found: dict[str, Features] = {}
        for path in sorted(folder.glob("*.npz")):
            if wanted.isdisjoint(self._keys.get(path, wanted)):
                continue
            try:
                with open_arrays(path) as arrays:
                    keys = arrays[KEYS].tolist()
                    self._keys[path] = frozenset(keys)
                    if wanted.isdisjoint(keys):
                        continue
                    each = Features.of_arrays(arrays).each()
                    found |= {
                        key: one for key, one in zip(keys, each, strict=True) if key in wanted
                    }
            except StorageError as error:
                logger.warning("%s; its features are computed anew", error)
                path.unlink(missing_ok=True)
        return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _key(waveform: Float[np.ndarray, " S"], settings: str) -> str:
    digest = hashlib.sha256(f"{len(waveform)} {settings}".encode())
    digest.update(np.ascontiguousarray(waveform, np.float32).data)
    return digest.hexdigest()[:32]


def _resampled(
    waveform: Float[np.ndarray, " S"], source_rate: int, sample_rate: int
) -> Float[np.ndarray, " T"]:
    waveform = np.asarray(waveform, np.float32)
    if source_rate == sample_rate:
        return waveform
    return librosa.resample(
        waveform, orig_sr=source_rate, target_sr=sample_rate, res_type="soxr_hq"
    ).astype(np.float32)


def _write(folder: pathlib.Path, found: Mapping[str, Features]) -> None:
    """One file for all clips whose features have the same shape."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for key, features in found.items():
        groups.setdefault(features.embeddings.shape[1:], []).append(key)
    for keys in groups.values():
        arrays = stacked([found[key] for key in keys]).arrays()
        file = io.BytesIO()
        np.savez(file, **{KEYS: np.asarray(keys)}, **arrays)  # type: ignore[arg-type]
        write_atomically(folder / f"{_sha256(' '.join(keys))[:32]}.npz", file.getvalue())
