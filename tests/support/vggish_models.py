"""VGGish in torch, from the specification of torchvggish, with its front end in float64.

Names of parameters are those of the published checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fasttta_jax.pretrained.vggish import VggishConfig


def hertz_to_mel(hertz: float | np.ndarray) -> Any:
    return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)


def mel_weights() -> np.ndarray:
    """[257, 64], column by column: sides that are straight in mels, and nothing at 0 Hz."""
    bins = hertz_to_mel(np.linspace(0.0, 8000.0, 257))
    edges = np.linspace(hertz_to_mel(125.0), hertz_to_mel(7500.0), 66)
    weights = np.empty((257, 64))
    for band in range(64):
        low, centre, high = edges[band : band + 3]
        sides = (bins - low) / (centre - low), (high - bins) / (high - centre)
        weights[:, band] = np.maximum(0.0, np.minimum(*sides))
    weights[0] = 0.0
    return weights


def patches(audio: np.ndarray) -> np.ndarray:
    """One clip's log-mel patches [P, 96, 64], frame by frame, in float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    starts = range(0, len(audio) - 400 + 1, 160)
    frames = np.array([np.float64(audio[at : at + 400]) * window for at in starts])
    mel = np.log(np.abs(np.fft.rfft(frames, 512)) @ mel_weights() + 0.01)
    whole = len(mel) // 96
    return mel[: whole * 96].reshape(whole, 96, 64)


class Postprocessor(nn.Module):
    """Principal components, clipped and quantised."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pca_eigen_vectors = nn.Parameter(torch.zeros(size, size))
        self.pca_means = nn.Parameter(torch.zeros(size, 1))

    def clipped(self, embeddings: Any) -> Any:
        projected = torch.mm(self.pca_eigen_vectors, embeddings.T - self.pca_means).T
        return torch.clamp(projected, -2.0, 2.0)

    def forward(self, embeddings: Any) -> Any:
        return torch.round((self.clipped(embeddings) + 2.0) * (255.0 / 4.0))


class Vgg(nn.Module):
    """The network alone, as its checkpoint has it."""

    def __init__(self, config: VggishConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 1
        for index, width in enumerate(config.widths):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU()]
            if index in (0, 1, 3, 5):
                layers.append(nn.MaxPool2d(2))
            width_in = width
        self.features = nn.Sequential(*layers)
        hidden, size = config.hidden_size, config.embedding_size
        self.embeddings = nn.Sequential(
            nn.Linear(width_in * 4 * 6, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, size),
            nn.ReLU(),
        )

    def forward(self, x: Any, final_relu: bool = True) -> Any:
        """Patches [N, 96, 64] to [N, E]; channels run fastest in the flattened map."""
        x = self.features(x[:, None]).permute(0, 2, 3, 1).flatten(1)
        return (self.embeddings if final_relu else self.embeddings[:-1])(x)


class Vggish(Vgg):
    """torchvggish's module, whose state has the principal components, too."""

    def __init__(self, config: VggishConfig) -> None:
        super().__init__(config)
        self.pproc = Postprocessor(config.embedding_size)


def make_vggish(config: VggishConfig, seed: int = 0) -> Vggish:
    """Random weights whose activations and biases matter; components reach beyond the clip."""
    model = Vggish(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, values in model.named_parameters():
        drawn = torch.randn(values.shape, generator=generator)
        if name.startswith("pproc."):
            values.data = drawn / (math.sqrt(len(drawn)) if "vectors" in name else 10)
        elif values.ndim > 1:
            values.data = drawn * math.sqrt(2 / values[0].numel())
        else:
            values.data = 0.1 * drawn
    return model
