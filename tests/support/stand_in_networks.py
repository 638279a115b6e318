"""Small networks without weights in the places of PANNs, VGGish and CLAP, for tests of judging."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from fasttta_jax.evaluation.embedders import Features

BANDS = 8
CLASSES = 12
PATCH = 0.96


def band_levels(audio: np.ndarray) -> np.ndarray:
    """Log energies in BANDS bands [n, BANDS] of waveforms [n, S]."""
    power = np.abs(np.fft.rfft(audio, axis=-1)) ** 2 / audio.shape[-1]
    parts = np.array_split(power, BANDS, axis=-1)
    return np.log(np.stack([part.mean(axis=-1) for part in parts], axis=-1) + 1e-6)


@dataclasses.dataclass
class StandIn:
    """What it computes is fixed by its name; it counts the clips that it is asked for."""

    name: str = "panns_16k"
    sample_rate: int = 16_000
    hash: str = "stand-in"
    clips: int = 0

    def weights(self, columns: int) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        return rng.normal(size=(BANDS, columns)) / BANDS

    def embed(self, audio: np.ndarray) -> Features:
        self.clips += len(audio)
        levels = band_levels(audio)
        logits = (levels @ self.weights(CLASSES)).astype(np.float32)
        return Features(levels.astype(np.float32), logits={"audioset": logits})


class StandInPatches(StandIn):
    """One embedding for each 0.96 s; what is left over is dropped."""

    def embed(self, audio: np.ndarray) -> Features:
        self.clips += len(audio)
        size = int(PATCH * self.sample_rate)
        number = audio.shape[1] // size
        patches = audio[:, : number * size].reshape(len(audio), number, size)
        return Features(band_levels(patches).astype(np.float32))


class StandInClap(StandIn):
    """The embedding of a caption depends on its letters."""

    def embed(self, audio: np.ndarray) -> Features:
        self.clips += len(audio)
        return Features(band_levels(audio).astype(np.float32))

    def embed_text(self, captions: Sequence[str]) -> np.ndarray:
        vectors = [
            np.random.default_rng(zlib.crc32(caption.encode())).normal(size=BANDS)
            for caption in captions
        ]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / lengths).astype(np.float32)


def stand_ins() -> dict[str, StandIn]:
    """One for each network of the protocols."""
    return {
        "panns_16k": StandIn(),
        "vggish": StandInPatches("vggish"),
        "clap": StandInClap("clap", 48_000),
    }
