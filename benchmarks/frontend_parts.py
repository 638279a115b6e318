"""The parts of the front end as one compiled function each, with random weights and inputs.

Inputs are drawn on the host, so that another implementation can be given the same ones. All ids are
tokens: a padded batch costs as much as a full one.
Dimensions: B clips, S samples, T frames, F mel bands, L text positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from benchmarks import beside_torch
from fasttta_jax.audio.mel import MelConfig, log_mel
from fasttta_jax.codecs.vae_codec import from_tokens, to_tokens
from fasttta_jax.pretrained.clap_audio import ClapAudio, ClapAudioConfig
from fasttta_jax.pretrained.clap_mel import (
    GRID,
    NUM_SAMPLES,
    ClapMelConfig,
    clap_mel,
)
from fasttta_jax.pretrained.clap_text import ClapText, ClapTextConfig
from fasttta_jax.pretrained.hifigan import Hifigan, HifiganConfig
from fasttta_jax.pretrained.t5 import T5Config, T5Encoder
from fasttta_jax.pretrained.vae import Vae, VaeConfig

PARTS = (
    "mel",
    "vae_encode",
    "vae_decode",
    "vocoder",
    "codec_encode",
    "codec_decode",
    "t5",
    "clap_text",
    "clap_mel",
    "clap_audio",
)
TEXT_PARTS = ("t5", "clap_text")
"""Those that are timed at several lengths."""
CLAP_MEL = ClapMelConfig()

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Networks of the front end, and the length of a clip.

    Attributes:
      num_samples: S of a clip for the codec; a whole number of its tokens.
      patch_size: latent frames and rows that make a token.
      mel, vae, vocoder, t5, clap_text, clap_audio: as each part has them.
    """

    num_samples: int
    patch_size: int
    mel: MelConfig
    vae: VaeConfig
    vocoder: HifiganConfig
    t5: T5Config
    clap_text: ClapTextConfig
    clap_audio: ClapAudioConfig

    @property
    def num_frames(self) -> int:
        """T of a clip for the codec."""
        return self.num_samples // self.mel.hop_length

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Frames, rows and channels of a clip's latents."""
        stride = self.vae.stride
        return self.num_frames // stride, self.mel.num_mels // stride, self.vae.latent_channels

    @property
    def num_bands(self) -> int:
        """Tokens that lie above each other."""
        return self.latent_shape[1] // self.patch_size


SIZES = {
    # AudioLDM's VAE and vocoder, Flan-T5-large, and CLAP with HTSAT-tiny
    "published": Sizes(
        num_samples=163_840,
        patch_size=4,
        mel=MelConfig(),
        vae=VaeConfig(scaling_factor=0.9227914214134216),
        vocoder=HifiganConfig(),
        t5=T5Config(
            vocab_size=32_128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16
        ),
        clap_text=ClapTextConfig(),
        clap_audio=ClapAudioConfig(),
    ),
    # the same kinds of layers, for tests
    "small": Sizes(
        num_samples=5120,
        patch_size=4,
        mel=MelConfig(),
        vae=VaeConfig(1.0, block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4),
        vocoder=HifiganConfig(
            upsample_initial_channel=32,
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),),
        ),
        t5=T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        clap_text=ClapTextConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=130,
            projection_dim=8,
        ),
        clap_audio=ClapAudioConfig(
            patch_embeds_hidden_size=8, depths=(1, 1), num_attention_heads=(2, 2), projection_dim=8
        ),
    ),
}


class Inputs(NamedTuple):
    """What a part is given.

    Attributes:
      shape: of one clip's, for the tables: "1024 x 64 frames".
      arrays: float32 or int32, the clips on the first axis.
    """

    shape: str
    arrays: Arrays


def check_parts(names: Sequence[str]) -> list[str]:
    """The names, each of which must be a part.

    Raises:
      ValueError: one is not, or none is given.
    """
    for name in names or [""]:
        if name not in PARTS:
            raise ValueError(f"--parts holds {name!r}; allowed: {', '.join(PARTS)}")
    return list(names)


def draw_inputs(name: str, sizes: Sizes, batch_size: int, text_length: int) -> Inputs:
    """Noise in the shapes of a part's inputs.

    Args:
      name: of `PARTS`.
      sizes: of the networks.
      batch_size: B.
      text_length: L, for `TEXT_PARTS`.

    Returns:
      Waveforms [B, S], spectrograms [B, T, F], latents or tokens, ids [B, L] and a mask of ones,
      CLAP's waveforms and lengths, or its features [B, 1, T, F].

    Raises:
      ValueError: there is no such part, or the text is longer than the encoder allows.
    """
    rng = np.random.default_rng(0)
    frames, bands, channels = sizes.latent_shape
    patch = sizes.patch_size
    num_tokens, token_dim = frames * bands // patch**2, channels * patch**2
    spectrogram = (sizes.num_frames, sizes.mel.num_mels)
    normal: dict[str, tuple[str, tuple[int, ...]]] = {
        "vae_encode": ("%d x %d frames", spectrogram),
        "vae_decode": ("%d x %d x %d latents", (frames, bands, channels)),
        "vocoder": ("%d x %d frames", spectrogram),
        "codec_decode": ("%d x %d tokens", (num_tokens, token_dim)),
        "clap_audio": ("%d x %d x %d frames", (1, GRID.num_frames(NUM_SAMPLES), GRID.num_mels)),
    }
    if name in normal:
        text, shape = normal[name]
        return Inputs(text % shape, (rng.standard_normal((batch_size, *shape), np.float32),))
    if name in TEXT_PARTS:
        vocabulary = sizes.t5.vocab_size if name == "t5" else sizes.clap_text.vocab_size
        shape = batch_size, text_length
        # the first ids may stand for padding
        ids = rng.integers(4, vocabulary, shape, dtype=np.int32)
        return Inputs(f"{text_length} tokens", (ids, np.ones(shape, bool)))
    (name,) = check_parts([name])
    num_samples = NUM_SAMPLES if name == "clap_mel" else sizes.num_samples
    audio = rng.uniform(-0.5, 0.5, (batch_size, num_samples)).astype(np.float32)
    lengths = (np.full(batch_size, num_samples, np.int32),) if name == "clap_mel" else ()
    return Inputs(f"{num_samples} samples", (audio, *lengths))


Function = Callable[..., Any]
Built = tuple[Function, Function]
"""An init of (key, *inputs), and a function of (params, *inputs)."""


def build(name: str, sizes: Sizes, dtype: str) -> Built:
    """A part as pure functions.

    Args:
      name: of `PARTS`.
      sizes: of the networks.
      dtype: of matrix products and convolutions, "float32" or "bfloat16".
    """
    return _FUNCTIONS[name](sizes, jnp.dtype(dtype))


class Part(beside_torch.OurProgram):
    """One part on one batch.

    Args:
      name: of `PARTS`.
      sizes: of the networks.
      inputs: as `draw_inputs` gives them.
      dtype: of matrix products and convolutions, "float32" or "bfloat16".
    """

    def __init__(self, name: str, sizes: Sizes, inputs: Arrays, dtype: str) -> None:
        super().__init__(*build(name, sizes, dtype), inputs)


def _no_params(*arguments: Any) -> dict[str, Any]:
    del arguments
    return {}


def _mel(sizes: Sizes, dtype: DTypeLike) -> Built:
    del dtype  # always float32
    return _no_params, lambda params, audio: log_mel(audio, sizes.mel)


def _vae_encode(sizes: Sizes, dtype: DTypeLike) -> Built:
    vae = Vae(sizes.vae, dtype)

    def encode(params: Any, spectrograms: jax.Array) -> Any:
        return vae.apply(params, spectrograms, method=Vae.encode)

    # the parameters that `encode` alone needs
    return lambda key, spectrograms: vae.init(key, spectrograms, method=Vae.encode), encode


def _vae_decode(sizes: Sizes, dtype: DTypeLike) -> Built:
    vae = Vae(sizes.vae, dtype)

    def decode(params: Any, latents: jax.Array) -> Any:
        return vae.apply(params, latents, method=Vae.decode)

    return lambda key, latents: vae.init(key, latents, method=Vae.decode), decode


def _vocoder(sizes: Sizes, dtype: DTypeLike) -> Built:
    vocoder = Hifigan(sizes.vocoder, dtype)
    return vocoder.init, vocoder.apply


def _codec_encode(sizes: Sizes, dtype: DTypeLike) -> Built:
    init, encode = _vae_encode(sizes, dtype)
    scale = sizes.vae.scaling_factor

    def spectrograms(audio: jax.Array) -> jax.Array:
        return log_mel(audio, sizes.mel)[:, : sizes.num_frames]

    def to_posterior(params: Any, audio: jax.Array) -> Any:
        mean, log_variance = encode(params, spectrograms(audio))
        return (
            to_tokens(mean * scale, sizes.patch_size),
            to_tokens(log_variance + 2 * np.log(scale), sizes.patch_size),
        )

    return lambda key, audio: init(key, spectrograms(audio)), to_posterior


def _codec_decode(sizes: Sizes, dtype: DTypeLike) -> Built:
    init_vae, decode = _vae_decode(sizes, dtype)
    init_vocoder, vocode = _vocoder(sizes, dtype)

    def latents(tokens: jax.Array) -> jax.Array:
        return from_tokens(tokens, sizes.patch_size, sizes.num_bands) / sizes.vae.scaling_factor

    def init(key: Any, tokens: jax.Array) -> Any:
        spectrogram = jnp.zeros((len(tokens), sizes.num_frames, sizes.mel.num_mels), jnp.float32)
        return init_vae(key, latents(tokens)), init_vocoder(key, spectrogram)

    def to_audio(params: Any, tokens: jax.Array) -> Any:
        return vocode(params[1], decode(params[0], latents(tokens)))

    return init, to_audio


def _t5(sizes: Sizes, dtype: DTypeLike) -> Built:
    encoder = T5Encoder(sizes.t5, dtype)
    return encoder.init, encoder.apply


def _clap_text(sizes: Sizes, dtype: DTypeLike) -> Built:
    encoder = ClapText(sizes.clap_text, dtype)
    return encoder.init, encoder.apply


def _clap_mel(sizes: Sizes, dtype: DTypeLike) -> Built:
    del sizes, dtype  # the grid of every published network, always float32
    return _no_params, lambda params, audio, lengths: clap_mel(audio, lengths, CLAP_MEL).features


def _clap_audio(sizes: Sizes, dtype: DTypeLike) -> Built:
    encoder = ClapAudio(sizes.clap_audio, dtype)
    return encoder.init, encoder.apply


_FUNCTIONS: dict[str, Callable[[Sizes, DTypeLike], Built]] = {
    "mel": _mel,
    "vae_encode": _vae_encode,
    "vae_decode": _vae_decode,
    "vocoder": _vocoder,
    "codec_encode": _codec_encode,
    "codec_decode": _codec_decode,
    "t5": _t5,
    "clap_text": _clap_text,
    "clap_mel": _clap_mel,
    "clap_audio": _clap_audio,
}
