"""The parts of the front end in torch, diffusers and transformers, as pipelines run them on a CPU.

float32 in inference mode, random weights, the layouts and attention that the libraries choose.
Results are views in the layout of this package's. Log-mel spectrograms are `torch.stft` and a
matrix, as AudioLDM computes them. Imported only where the comparison runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.frontend_parts import CLAP_MEL, Arrays, Sizes
from fasttta_jax.audio.mel import MelConfig, mel_matrix
from fasttta_jax.pretrained import clap_mel
from fasttta_jax.pretrained.clap_audio import ClapAudioConfig

Tensors = tuple[torch.Tensor, ...]


class TorchPart:
    """One part on one batch.

    Args:
      name: of `frontend_parts.PARTS`.
      sizes: of the networks.
      inputs: as `frontend_parts.draw_inputs` gives them.
    """

    def __init__(self, name: str, sizes: Sizes, inputs: Arrays) -> None:
        torch.manual_seed(0)
        self._function = _FUNCTIONS[name](sizes)
        self._inputs = tuple(torch.from_numpy(array.copy()) for array in inputs)

    @torch.inference_mode()
    def __call__(self) -> Tensors:
        """What the part computes."""
        found = self._function(*self._inputs)
        return found if isinstance(found, tuple) else (found,)


Function = Callable[..., torch.Tensor | Tensors]


def spectrum(audio: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """Complex [B, R, T], with reflected ends."""
    padded = torch.nn.functional.pad(audio, (config.padding, config.padding), mode="reflect")
    return torch.stft(
        padded,
        config.n_fft,
        config.hop_length,
        window=torch.hann_window(config.n_fft),
        center=False,
        return_complex=True,
    )


def _mel(sizes: Sizes) -> Function:
    config = sizes.mel
    matrix = torch.from_numpy(mel_matrix(config))

    def log_mel(audio: torch.Tensor) -> torch.Tensor:
        magnitude = spectrum(audio, config).abs()
        return torch.matmul(matrix, magnitude).clamp_min(config.floor).log().mT

    return log_mel


def clap_decibels() -> Function:
    """The spectrograms that CLAP's audio tower takes."""
    matrix = torch.from_numpy(clap_mel.mel_matrix(CLAP_MEL.truncation).astype(np.float32))

    def decibels(audio: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        del lengths  # all clips are whole
        power = spectrum(audio, clap_mel.GRID).abs().square()
        mel = torch.matmul(matrix, power).clamp_min(clap_mel.POWER_FLOOR)
        return (10 * mel.log10()).mT[:, None]

    return decibels


def _vae(sizes: Sizes) -> diffusers.AutoencoderKL:
    levels = len(sizes.vae.block_out_channels)
    return diffusers.AutoencoderKL(
        **dataclasses.asdict(sizes.vae),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()


def _vae_encode(sizes: Sizes) -> Function:
    vae = _vae(sizes)

    def encode(spectrograms: torch.Tensor) -> Tensors:
        posterior: Any = vae.encode(spectrograms[:, None]).latent_dist
        return posterior.mean.permute(0, 2, 3, 1), posterior.logvar.permute(0, 2, 3, 1)

    return encode


def _vae_decode(sizes: Sizes) -> Function:
    vae = _vae(sizes)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        found: Any = vae.decode(latents.permute(0, 3, 1, 2).contiguous())
        return found.sample[:, 0]

    return decode


def _vocoder(sizes: Sizes) -> Function:
    config = transformers.SpeechT5HifiGanConfig(**dataclasses.asdict(sizes.vocoder))
    vocoder = transformers.SpeechT5HifiGan(config).eval()
    return lambda spectrograms: vocoder(spectrograms)[
        :, : spectrograms.shape[1] * sizes.vocoder.stride
    ]


def _codec_encode(sizes: Sizes) -> Function:
    log_mel, encode, patch = _mel(sizes), _vae_encode(sizes), sizes.patch_size
    scale = sizes.vae.scaling_factor

    def to_tokens(latents: torch.Tensor) -> torch.Tensor:
        batch_size, _, _, channels = latents.shape
        columns = latents.unflatten(1, (-1, patch)).unflatten(3, (-1, patch))
        tokens = columns.permute(0, 1, 3, 5, 2, 4)
        return tokens.reshape(batch_size, -1, channels * patch**2)

    def to_posterior(audio: torch.Tensor) -> Tensors:
        mean, log_variance = encode(log_mel(audio)[:, : sizes.num_frames])
        return to_tokens(mean * scale), to_tokens(log_variance + 2 * np.log(scale))

    return to_posterior


def _codec_decode(sizes: Sizes) -> Function:
    decode, vocode, patch = _vae_decode(sizes), _vocoder(sizes), sizes.patch_size
    channels = sizes.vae.latent_channels

    def to_audio(tokens: torch.Tensor) -> torch.Tensor:
        patches = tokens.reshape(len(tokens), -1, sizes.num_bands, channels, patch, patch)
        latents = patches.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)
        return vocode(decode(latents / sizes.vae.scaling_factor))

    return to_audio


def _t5(sizes: Sizes) -> Function:
    config = transformers.T5Config(**dataclasses.asdict(sizes.t5), feed_forward_proj="gated-gelu")
    encoder = transformers.T5EncoderModel(config).eval()
    return lambda ids, mask: encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def _clap_text(sizes: Sizes) -> Function:
    config = transformers.ClapTextConfig(**dataclasses.asdict(sizes.clap_text))
    encoder = transformers.ClapTextModelWithProjection(config).eval()

    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = encoder(input_ids=ids, attention_mask=mask).text_embeds
        return torch.nn.functional.normalize(found, dim=-1)

    return embed


def clap_tower(ours: ClapAudioConfig) -> Function:
    """CLAP's audio tower of such sizes."""
    config = transformers.ClapAudioConfig(
        **dataclasses.asdict(ours),
        hidden_size=ours.hidden_size,
        patch_stride=ours.patch_size,
    )
    encoder = transformers.ClapAudioModelWithProjection(config).eval()

    def embed(features: torch.Tensor) -> torch.Tensor:
        found = encoder(input_features=features).audio_embeds
        return torch.nn.functional.normalize(found, dim=-1)

    return embed


_FUNCTIONS: dict[str, Callable[[Sizes], Function]] = {
    "mel": _mel,
    "vae_encode": _vae_encode,
    "vae_decode": _vae_decode,
    "vocoder": _vocoder,
    "codec_encode": _codec_encode,
    "codec_decode": _codec_decode,
    "t5": _t5,
    "clap_text": _clap_text,
    "clap_mel": lambda sizes: clap_decibels(),
    "clap_audio": lambda sizes: clap_tower(sizes.clap_audio),
}
