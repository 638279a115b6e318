"""The codec of AudioLDM: log-mel spectrogram, VAE, patches of latents as tokens; back, a vocoder.

10.24 s at 16 kHz are a spectrogram of 1024 x 64, latents of 256 x 16 x 8 and, in patches of 4 x 4,
256 tokens of 128 numbers. Tokens are latents times the VAE's scaling factor. Longer audio goes
through in overlapping windows of what the VAE was trained on, so that memory does not grow with
length: the log-mel spectrogram and the vocoder are exact that way; the VAE, which looks at all of a
window at once, fades from one window into the next.
Source: AudioLDM (Liu et al. 2023) for the chain; IMPACT for the patches, in MAR's order of numbers.
Dimensions: B clips, S samples, T frames, F mel bands, t x f latent grid, N tokens, C channels of a
token.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from fasttta_jax.audio.mel import MelConfig, log_mel
from fasttta_jax.codecs.base import CONFIG_FILE, Posterior
from fasttta_jax.codecs.chunks import Chunks, in_chunks
from fasttta_jax.config import ComputeDtype
from fasttta_jax.parallel.local import local_copies, spread
from fasttta_jax.pretrained.hifigan import Hifigan, HifiganConfig
from fasttta_jax.pretrained.hifigan import load as load_hifigan
from fasttta_jax.pretrained.vae import Vae, VaeConfig
from fasttta_jax.pretrained.vae import load as load_vae
from fasttta_jax.storage.files import damage, read_json, write_json
from fasttta_jax.storage.weights import copy_folder, read_metadata
from fasttta_jax.typing import AnyArray, Audio, Params, SomeArray, Tokens

KIND = "vae"
VAE_FOLDER = "vae"
VOCODER_FOLDER = "vocoder"
SILENCE_FILE = "silence.npy"
DTYPES = get_args(ComputeDtype)


@dataclasses.dataclass(frozen=True)
class VaeCodecConfig:
    """Layout of the tokens and of long audio.

    Attributes:
      mel: the analysis grid.
      patch_size: latent frames and rows that make a token.
      window_frames: T of a window; what the VAE was trained on.
      overlap_frames: frames that neighbouring windows share.
      margin_frames: frames at a cut that do not count.
      dtype: of matrix products and convolutions, "float32" or "bfloat16".
    """

    mel: MelConfig = dataclasses.field(default_factory=MelConfig)
    patch_size: int = 4
    window_frames: int = 1024
    overlap_frames: int = 256
    margin_frames: int = 64
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"codec.patch_size is {self.patch_size}; allowed: 1 or more")
        if self.dtype not in DTYPES:
            raise ValueError(f"codec.dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        self.windows  # noqa: B018  checks the three numbers

    @property
    def windows(self) -> Chunks:
        """How the VAE's spectrograms are cut, in frames."""
        return Chunks(self.window_frames, self.overlap_frames, self.margin_frames)


@dataclasses.dataclass(frozen=True)
class _Networks:
    """What the compiled programs need to know; hashable."""

    codec: VaeCodecConfig
    vae: VaeConfig
    vocoder: HifiganConfig

    def check(self) -> None:
        """Raises ValueError where the parts do not fit together."""
        mel, vae, vocoder = self.codec.mel, self.vae, self.vocoder
        unit = vae.stride * self.codec.patch_size
        if mel.num_mels % unit:
            raise ValueError(
                f"codec.patch_size is {self.codec.patch_size}; allowed: {mel.num_mels} mel bands "
                f"must be a multiple of it times the VAE's stride {vae.stride}"
            )
        pairs = (
            ("mel bands", mel.num_mels, vocoder.model_in_dim),
            ("samples per frame", mel.hop_length, vocoder.stride),
            ("samples per second", mel.sample_rate, vocoder.sampling_rate),
        )
        for name, ours, theirs in pairs:
            if ours != theirs:
                raise ValueError(
                    f"the log-mel spectrograms have {ours} {name}; the vocoder was trained on "
                    f"{theirs}"
                )
        for field in ("window_frames", "overlap_frames", "margin_frames"):
            if getattr(self.codec, field) % unit:
                raise ValueError(
                    f"codec.{field} is {getattr(self.codec, field)}; allowed: multiples of {unit}"
                )


def to_tokens(latents: Float[SomeArray, "B t f c"], patch_size: int) -> Float[SomeArray, "B N C"]:
    """Latents to tokens, time-major; a token's numbers run over channel, frame and row."""
    return rearrange(
        latents,
        "b (column p) (band q) c -> b (column band) (c p q)",
        p=patch_size,
        q=patch_size,
    )


def from_tokens(
    tokens: Float[SomeArray, "B N C"], patch_size: int, num_bands: int
) -> Float[SomeArray, "B t f c"]:
    """The inverse of `to_tokens` for `num_bands` tokens a column."""
    return rearrange(
        tokens,
        "b (column band) (c p q) -> b (column p) (band q) c",
        band=num_bands,
        p=patch_size,
        q=patch_size,
    )


def _exact(window: int, before: int, after: int) -> Chunks:
    """Windows for a function that sees so far around a position."""
    margin = max(before, after)
    return Chunks(max(window, 2 * margin + 1), 2 * margin, margin)


def _spectrograms(audio: Audio, config: VaeCodecConfig) -> Float[Array, "B T F"]:
    mel = config.mel

    def part(samples: Audio) -> Float[Array, "B T F"]:
        return log_mel(samples, mel)[:, : samples.shape[1] // mel.hop_length]

    reach = -(-mel.n_fft // mel.hop_length) * mel.hop_length
    return in_chunks(part, audio, _exact(config.window_frames * mel.hop_length, reach, reach))


@functools.partial(jax.jit, static_argnames="networks")
def _encode(params: Params, audio: Audio, networks: _Networks) -> tuple[Tokens, Tokens]:
    config, scale = networks.codec, networks.vae.scaling_factor
    vae = Vae(networks.vae, jnp.dtype(config.dtype))

    def encode(spectrograms: Float[Array, "B T F"]) -> Any:
        return vae.apply({"params": params}, spectrograms, method=Vae.encode)

    mean, log_variance = in_chunks(encode, _spectrograms(audio, config), config.windows)
    return (
        to_tokens(mean * scale, config.patch_size),
        to_tokens(log_variance + 2 * np.log(scale), config.patch_size),
    )


@functools.partial(jax.jit, static_argnames="networks")
def _decode(params: Params, tokens: Tokens, networks: _Networks) -> Float[Array, "B T F"]:
    config = networks.codec
    stride = networks.vae.stride
    vae = Vae(networks.vae, jnp.dtype(config.dtype))

    def decode(latents: Float[Array, "B t f c"]) -> Any:
        return vae.apply({"params": params}, latents, method=Vae.decode)

    num_bands = config.mel.num_mels // (stride * config.patch_size)
    latents = from_tokens(tokens, config.patch_size, num_bands) / networks.vae.scaling_factor
    windows = config.windows
    latent_windows = Chunks(
        windows.length // stride, windows.overlap // stride, windows.margin // stride
    )
    return in_chunks(decode, latents, latent_windows)


@functools.partial(jax.jit, static_argnames="networks")
def _vocode(params: Params, spectrograms: Float[Array, "B T F"], networks: _Networks) -> Audio:
    config = networks.codec
    vocoder = Hifigan(networks.vocoder, jnp.dtype(config.dtype))

    def vocode(part: Float[Array, "B T F"]) -> Any:
        return vocoder.apply({"params": params}, part)

    windows = _exact(config.window_frames, *networks.vocoder.context)
    return in_chunks(vocode, spectrograms, windows)


class VaeCodec:
    """The `Codec` protocol on a converted VAE and vocoder, read when they are first needed.

    Args:
      folder: what `create` or `save` wrote.

    Raises:
      ValueError: the description is damaged, or the parts do not fit together.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(folder)
        values = read_json(self.folder / CONFIG_FILE)
        described: dict[str, Any] = values["codec"]
        self.config = VaeCodecConfig(**{**described, "mel": MelConfig(**described["mel"])})
        with damage(self.folder / SILENCE_FILE):
            self._silence = np.load(self.folder / SILENCE_FILE)
        self._token_dim = int(values["token_dim"])
        self._tokens_per_column = int(values["tokens_per_column"])
        self._samples_per_column = int(values["samples_per_column"])

    @classmethod
    def create(
        cls,
        folder: str | pathlib.Path,
        *,
        vae: str | pathlib.Path,
        vocoder: str | pathlib.Path,
        config: VaeCodecConfig | None = None,
    ) -> VaeCodec:
        """Makes a codec of converted weights; `folder` gets links to them or copies.

        Args:
          folder: to write.
          vae: what `python -m fasttta_jax.convert vae` wrote.
          vocoder: what `python -m fasttta_jax.convert hifigan` wrote.
          config: layout; None for AudioLDM's and IMPACT's.

        Raises:
          ConvertedError: a folder holds no such weights.
          ValueError: the parts do not fit together.
        """
        config = VaeCodecConfig() if config is None else config
        vae_config, vae_params = load_vae(vae)
        networks = _Networks(config, vae_config, load_hifigan(vocoder)[0])
        networks.check()
        folder = pathlib.Path(folder)
        copy_folder(vae, folder / VAE_FOLDER)
        copy_folder(vocoder, folder / VOCODER_FOLDER)
        num_columns = config.window_frames // (vae_config.stride * config.patch_size)
        window = jnp.zeros((1, config.window_frames * config.mel.hop_length), jnp.float32)
        tokens = np.asarray(_encode(vae_params, window, networks)[0][0])
        columns = tokens.reshape(num_columns, -1, tokens.shape[-1])
        np.save(folder / SILENCE_FILE, columns[num_columns // 2])
        description = {
            "kind": KIND,
            "codec": dataclasses.asdict(config),
            "token_dim": columns.shape[2],
            "tokens_per_column": columns.shape[1],
            "samples_per_column": window.shape[1] // num_columns,
            "scaling_factor": vae_config.scaling_factor,
            "sha256": {
                VAE_FOLDER: read_metadata(vae)["sha256"],
                VOCODER_FOLDER: read_metadata(vocoder)["sha256"],
            },
        }
        write_json(folder / CONFIG_FILE, description)
        return cls(folder)

    @functools.cached_property
    def _loaded(self) -> tuple[_Networks, Params, Params]:
        """Sizes, and the parameters of VAE and vocoder on every device of this host."""
        vae_config, vae = load_vae(self.folder / VAE_FOLDER)
        vocoder_config, vocoder = load_hifigan(self.folder / VOCODER_FOLDER)
        networks = _Networks(self.config, vae_config, vocoder_config)
        networks.check()
        return networks, local_copies(vae), local_copies(vocoder)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes a codec of the same weights, as links where the file system can."""
        copy_folder(self.folder, folder)

    @property
    def sample_rate(self) -> int:
        return self.config.mel.sample_rate

    @property
    def token_dim(self) -> int:
        return self._token_dim

    @property
    def tokens_per_column(self) -> int:
        return self._tokens_per_column

    @property
    def samples_per_column(self) -> int:
        return self._samples_per_column

    def encode(self, audio: Float[AnyArray, "B S"]) -> Tokens:
        """Posterior means, tokens [B, N, C], of waveforms [B, S].

        Raises:
          ValueError: S is not a multiple of `samples_per_column`.
        """
        return self.encode_posterior(audio).mean

    def encode_posterior(self, audio: Float[AnyArray, "B S"]) -> Posterior:
        """Means and log-variances of tokens [B, N, C]; arguments and errors as `encode`."""
        if audio.shape[-1] % self.samples_per_column or not audio.shape[-1]:
            raise ValueError(
                f"a waveform of {audio.shape[-1]} samples cannot be encoded; allowed: positive "
                f"multiples of {self.samples_per_column}"
            )
        networks, vae, _ = self._loaded
        return Posterior(*_encode(vae, spread(audio), networks))

    def to_log_mel(self, tokens: Float[AnyArray, "B N C"]) -> Float[Array, "B T F"]:
        """The log-mel spectrogram that tokens stand for."""
        networks, vae, _ = self._loaded
        return _decode(vae, spread(jnp.asarray(tokens, jnp.float32)), networks)

    def decode(self, tokens: Float[AnyArray, "B N C"]) -> Audio:
        """Waveforms [B, S] of tokens [B, N, C]."""
        spectrograms = self.to_log_mel(tokens)
        networks, _, vocoder = self._loaded
        return _vocode(vocoder, spectrograms, networks)

    def silence(self) -> Float[np.ndarray, "G C"]:
        """One column from the middle of a window of digital silence, float32 [G, C]."""
        return self._silence
