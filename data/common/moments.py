"""First and second moments of tokens, summed in float64 shard by shard.

Dimensions: C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over tokens, float64.

    Attributes:
      count: number of tokens.
      total: sum of each channel, [C].
      squares: sum of squares of each channel, [C].
    """

    count: int
    total: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray) -> Moments:
        """Of tokens [..., C]."""
        values = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
        return cls(len(values), values.sum(axis=0), np.square(values).sum(axis=0))

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Moments:
        """Of a shard's note that holds `sums` added up."""
        total, squares = (np.asarray(note[name]) for name in ("token_sum", "token_square_sum"))
        return cls(note["num_tokens"], total, squares)

    def sums(self) -> dict[str, Any]:
        """What a shard's note keeps."""
        return {
            "num_tokens": self.count,
            "token_sum": self.total,
            "token_square_sum": self.squares,
        }

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def statistics(self) -> dict[str, Any]:
        """Mean and standard deviation, over all numbers and by channel, as JSON values.

        "scaling" is the factor that gives the tokens a standard deviation of 1; None where they
        have none.
        """
        channel_mean = self.total / self.count
        channel_square = self.squares / self.count
        mean = channel_mean.mean()
        std = np.sqrt(np.maximum(channel_square.mean() - mean**2, 0))
        channel_std = np.sqrt(np.maximum(channel_square - channel_mean**2, 0))
        return {
            "num_tokens": self.count,
            "mean": float(mean),
            "std": float(std),
            "scaling": float(1 / std) if std > 0 else None,
            "channel_mean": channel_mean.tolist(),
            "channel_std": channel_std.tolist(),
        }
