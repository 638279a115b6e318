"""What a codec is: waveforms to a grid of latent tokens and back.

Dimensions: B clips, S samples, N tokens (time-major), C channels, P token columns in time, G tokens
per column.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from fasttta_jax.typing import AnyArray, Audio, Tokens

CONFIG_FILE = "codec.json"
"""In a codec's folder: its kind, and what else it says of itself."""


class Posterior(NamedTuple):
    """What a codec knows of the tokens of a waveform: a diagonal gaussian, or a point.

    Attributes:
      mean: the tokens that `encode` gives.
      log_variance: of each number; None where encoding is deterministic.
    """

    mean: Tokens
    log_variance: Tokens | None


@runtime_checkable
class Codec(Protocol):
    """Audio to tokens of a fixed rate and back.

    Attributes:
      sample_rate: of the waveforms, in Hz.
      token_dim: C.
      tokens_per_column: G, tokens that share a time step; N is always a multiple of it.
      samples_per_column: stride in time, in samples.
    """

    @property
    def sample_rate(self) -> int: ...

    @property
    def token_dim(self) -> int: ...

    @property
    def tokens_per_column(self) -> int: ...

    @property
    def samples_per_column(self) -> int: ...

    def encode(self, audio: Float[AnyArray, "B S"]) -> Tokens:
        """Tokens of waveforms whose length is a multiple of `samples_per_column`."""
        ...

    def encode_posterior(self, audio: Float[AnyArray, "B S"]) -> Posterior:
        """As `encode`, with what is needed to draw tokens anew each time they are read."""
        ...

    def decode(self, tokens: Float[AnyArray, "B N C"]) -> Audio:
        """Waveforms of N / G * samples_per_column samples."""
        ...

    def silence(self) -> Float[np.ndarray, "G C"]:
        """One column of digital silence, float32 [G, C]: what short clips are padded with."""
        ...

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes everything that `codecs.load_codec` needs."""
        ...
