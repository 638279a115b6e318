"""Embedders: networks that turn waveforms into the features that metrics compare.

Features are cached by content, so a second evaluation of unchanged sounds computes none: the name
of a cached file is a hash of the waveforms and of the embedder. The folder may be deleted at any
time.

Dimensions: n clips, S samples, d features, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import librosa
import numpy as np
from jaxtyping import Float

from fasttta_jax.storage.files import write_atomically

logger = logging.getLogger(__name__)

ARRAYS = ("probabilities", "classes", "logits")
"""Fields of `Features` that hold an array for each classification."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What a network computes from n clips; NumPy.

    Attributes:
      embeddings: one vector a clip, or one for each of its patches.
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


class FeatureCache:
    """Features on disk, by the content of the waveforms and of the embedder.

    Args:
      folder: where they are kept; made when it is first needed.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def features(
        self, embedder: Embedder, audio: Float[np.ndarray, "n S"], sample_rate: int
    ) -> Features:
        """The features of some waveforms, computed where no equal ones were seen before.

        Args:
          embedder: the network.
          audio: waveforms in [-1, 1].
          sample_rate: of the waveforms; they are resampled to the embedder's.
        """
        audio = np.ascontiguousarray(audio, np.float32)
        digest = hashlib.sha256(f"{audio.shape} {sample_rate} {embedder.hash}".encode())
        digest.update(audio.data)
        path = self.folder / f"{embedder.name}_{digest.hexdigest()[:32]}.npz"
        if path.is_file():
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                logger.warning("%s is damaged (%s); its features are computed anew", path, error)
        features = embedder.embed(_resampled(audio, sample_rate, embedder.sample_rate))
        write_atomically(path, _to_bytes(features))
        return features


def _resampled(
    audio: Float[np.ndarray, "n S"], source_rate: int, sample_rate: int
) -> Float[np.ndarray, "n T"]:
    if source_rate == sample_rate:
        return audio
    return librosa.resample(
        audio, orig_sr=source_rate, target_sr=sample_rate, res_type="soxr_hq", axis=-1
    ).astype(np.float32)


def _to_bytes(features: Features) -> bytes:
    arrays = {"embeddings": features.embeddings}
    for kind in ARRAYS:
        for name, values in getattr(features, kind).items():
            arrays[f"{kind}:{name}"] = np.asarray(values)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _read(path: pathlib.Path) -> Features:
    with np.load(path, allow_pickle=False) as arrays:
        found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ARRAYS}
        for key in arrays.files:
            kind, colon, name = key.partition(":")
            if colon:
                found[kind][name] = arrays[key]
        classes = {name: tuple(values.tolist()) for name, values in found["classes"].items()}
        return Features(arrays["embeddings"], found["probabilities"], classes, found["logits"])
