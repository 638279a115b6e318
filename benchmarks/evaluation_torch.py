"""The networks that judge sounds in torch, from waveforms to features, on a CPU.

float32 in inference mode, random weights, torch's own layouts. PANNs and VGGish are written down
here from their papers and code; CLAP's tower is that of transformers. Spectrograms are `torch.stft`
and a matrix; torchlibrosa's, which are convolutions, and torchvggish's, which are NumPy's, are
slower. Imported only where the comparison runs.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.evaluation_parts import Config
from benchmarks.frontend_torch import Function, clap_decibels, clap_tower, spectrum
from fasttta_jax.audio.mel import mel_matrix
from fasttta_jax.pretrained import panns, vggish


class TorchNetwork:
    """One network on one batch.

    Args:
      config: its sizes.
      audio: float32 [B, S].
    """

    def __init__(self, config: Config, audio: np.ndarray) -> None:
        torch.manual_seed(0)
        self._audio = torch.from_numpy(audio.copy())
        self._function = _build(config)

    @torch.inference_mode()
    def __call__(self) -> Any:
        """What the network computes."""
        return self._function(self._audio)


def _build(config: Config) -> Function:
    if isinstance(config, panns.PannsConfig):
        return Cnn14(config).eval()
    if isinstance(config, vggish.VggishConfig):
        return Vggish(config).eval()
    decibels, tower = clap_decibels(), clap_tower(config)
    return lambda audio: tower(decibels(audio, None))


class Cnn14(nn.Module):
    """PANNs' Cnn14: embedding and logits."""

    def __init__(self, config: panns.PannsConfig) -> None:
        super().__init__()
        self._config = config
        self._bands = torch.from_numpy(mel_matrix(config.grid))
        self.norm = nn.BatchNorm2d(config.num_mels)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                *([nn.AvgPool2d(2)] if index < panns.HALVINGS else []),
            )
            for index, (before, after) in enumerate(itertools.pairwise((1, *config.widths)))
        )
        self.embedding = nn.Linear(config.widths[-1], config.embedding_size)
        self.classes = nn.Linear(config.embedding_size, config.num_classes)

    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        power = spectrum(audio, self._config.grid).abs().square()
        mel = torch.matmul(self._bands, power).clamp_min(panns.POWER_FLOOR)
        x = (10 * mel.log10()).mT[:, None]
        x = self.norm(x.transpose(1, 3)).transpose(1, 3)
        for block in self.blocks:
            x = block(x)
        over_time = x.mean(dim=3)
        pooled = over_time.amax(dim=2) + over_time.mean(dim=2)
        embedding = self.embedding(pooled).relu()
        return embedding, self.classes(embedding)


class Vggish(nn.Module):
    """VGGish without the last ReLU: an embedding for each patch."""

    def __init__(self, config: vggish.VggishConfig) -> None:
        super().__init__()
        self._bands = torch.from_numpy(vggish.mel_matrix())
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise((1, *config.widths))):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if index in vggish.POOLED else []
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Sequential(
            nn.Linear(config.flattened_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.embedding_size),
        )

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        patches = vggish.num_patches(audio.shape[1])
        windows = audio.unfold(1, vggish.GRID.n_fft, vggish.GRID.hop_length)
        windows = windows[:, : patches * vggish.PATCH_FRAMES]
        windows = windows * torch.hann_window(vggish.GRID.n_fft)
        magnitude = torch.fft.rfft(windows, n=vggish.N_FFT).abs()
        mel = (torch.matmul(magnitude, self._bands.T) + vggish.LOG_OFFSET).log()
        x = self.features(mel.reshape(-1, 1, vggish.PATCH_FRAMES, vggish.GRID.num_mels))
        x = self.embedding(x.permute(0, 2, 3, 1).flatten(1))
        return x.reshape(len(audio), patches, -1)
