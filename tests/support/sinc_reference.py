"""Resampling in the published form of torchaudio, in torch: a strided convolution a phase."""

from __future__ import annotations

import math

import numpy as np
import pytest


def by_torchaudios_kernel(audio: np.ndarray, source: int, target: int) -> np.ndarray:
    """Convolution with one kernel a phase, every tap of which is formed: the published form."""
    torch = pytest.importorskip("torch")
    divisor = math.gcd(source, target)
    source, target = source // divisor, target // divisor
    base = min(source, target) * 0.99
    width = math.ceil(6 * source / base)
    index = torch.arange(-width, width + source, dtype=torch.float64)[None, None] / source
    t = torch.arange(0, -target, -1, dtype=torch.float64)[:, None, None] / target + index
    t = (t * base).clamp(-6, 6)
    window = torch.cos(t * math.pi / 6 / 2) ** 2
    t = t * math.pi
    kernel = torch.where(t == 0, torch.ones_like(t), t.sin() / t) * window * base / source
    padded = torch.nn.functional.pad(torch.from_numpy(audio).double(), (width, width + source))
    found = torch.nn.functional.conv1d(padded[None, None], kernel, stride=source)
    flat = found.transpose(1, 2).reshape(-1)
    return flat[: math.ceil(target * len(audio) / source)].numpy()
