"""Cnn14 of PANNs in torch, from its specification, with torchlibrosa's front end.

Names of parameters and buffers are those of the published checkpoints. Frames are cut by a strided
convolution with windowed cosines and sines, as torchlibrosa does it.
"""

from __future__ import annotations

import math
from typing import Any

import librosa
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fasttta_jax.pretrained.panns import PannsConfig


class Stft(nn.Module):
    """Real and imaginary parts of a centred transform with reflected ends."""

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, bins = n_fft, n_fft // 2 + 1
        self.conv_real = nn.Conv1d(1, bins, n_fft, stride=hop_length, bias=False)
        self.conv_imag = nn.Conv1d(1, bins, n_fft, stride=hop_length, bias=False)
        window = librosa.filters.get_window("hann", n_fft, fftbins=True)
        kernels = window * np.exp(-2j * np.pi * np.outer(np.arange(bins), np.arange(n_fft)) / n_fft)
        for convolution, values in ((self.conv_real, kernels.real), (self.conv_imag, kernels.imag)):
            # a buffer that is real even where parameters are made on torch's meta device
            values = torch.tensor(values[:, None], dtype=torch.float32, device="cpu")
            convolution.weight = nn.Parameter(values, requires_grad=False)

    def forward(self, audio: Any) -> tuple[Any, Any]:
        half = self.n_fft // 2
        padded = functional.pad(audio[:, None], (half, half), mode="reflect")
        return self.conv_real(padded), self.conv_imag(padded)


class Spectrogram(nn.Module):
    """Power [B, T, bins]."""

    def __init__(self, config: PannsConfig) -> None:
        super().__init__()
        self.stft = Stft(config.n_fft, config.hop_length)

    def forward(self, audio: Any) -> Any:
        real, imaginary = self.stft(audio)
        return (real**2 + imaginary**2).transpose(1, 2)


class LogMel(nn.Module):
    """10 log10 of mel power [B, T, F]; ref 1, no top_db."""

    def __init__(self, config: PannsConfig) -> None:
        super().__init__()
        bands = librosa.filters.mel(
            sr=config.sample_rate,
            n_fft=config.n_fft,
            n_mels=config.num_mels,
            fmin=config.f_min,
            fmax=config.f_max,
        )
        self.melW = nn.Parameter(
            torch.tensor(bands.T, dtype=torch.float32, device="cpu"), requires_grad=False
        )

    def forward(self, power: Any) -> Any:
        return 10 * torch.log10(torch.clamp(power @ self.melW, min=1e-10))


class Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Any, pool: int) -> Any:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return functional.avg_pool2d(x, pool)


class Cnn14(nn.Module):
    def __init__(self, config: PannsConfig) -> None:
        super().__init__()
        self.spectrogram_extractor = Spectrogram(config)
        self.logmel_extractor = LogMel(config)
        self.bn0 = nn.BatchNorm2d(config.num_mels)
        width_in = 1
        for index, width in enumerate(config.widths):
            self.add_module(f"conv_block{index + 1}", Block(width_in, width))
            width_in = width
        self.fc1 = nn.Linear(width_in, config.embedding_size)
        self.fc_audioset = nn.Linear(config.embedding_size, config.num_classes)

    def log_mel(self, audio: Any) -> Any:
        """[B, T, F]"""
        return self.logmel_extractor(self.spectrogram_extractor(audio))

    def forward(self, audio: Any) -> tuple[Any, Any]:
        """The embedding "2048", and logits."""
        x = self.log_mel(audio)[:, None]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for block in range(1, 7):
            x = self.get_submodule(f"conv_block{block}")(x, 1 if block == 6 else 2)
        x = x.mean(dim=3)
        embedding = torch.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


def make_cnn14(config: PannsConfig, seed: int = 0) -> Cnn14:
    """Random weights whose activations, biases and statistics all matter.

    The first batch norm has the statistics of spectrograms in dB; all others those of what ReLUs
    and random kernels give.
    """
    model = Cnn14(config).eval()
    generator = torch.Generator().manual_seed(seed)

    def uniform(values: Any, low: float, high: float) -> None:
        values.data = low + (high - low) * torch.rand(values.shape, generator=generator)

    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("num_batches_tracked") or "_extractor." in name:
            continue
        if values.ndim > 1:
            spread = math.sqrt(2 / values[0].numel())
            values.data = spread * torch.randn(values.shape, generator=generator)
        elif name == "bn0.running_mean":
            uniform(values, -50, -10)
        elif name == "bn0.running_var":
            uniform(values, 100, 400)
        elif name.endswith("running_var") or name.startswith("bn") or ".bn" in name:
            uniform(values, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.2, 0.2)))
        else:
            uniform(values, -0.1, 0.1)
    return model
