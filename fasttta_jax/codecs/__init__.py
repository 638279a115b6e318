"""Codecs: waveforms to latent tokens and back."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

from fasttta_jax.codecs.base import CONFIG_FILE, Codec
from fasttta_jax.codecs.spectrogram import SpectrogramCodec
from fasttta_jax.codecs.vae_codec import VaeCodec
from fasttta_jax.storage.files import damage, read_json

LOADERS: Mapping[str, Callable[[pathlib.Path], Codec]] = {
    "spectrogram": SpectrogramCodec.load,
    "vae": VaeCodec,
}


def load_codec(folder: str | pathlib.Path) -> Codec:
    """The codec that was saved in `folder`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is of an unknown kind, or a file of it is damaged; names the file.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `python -m data.encode_latents` writes it")
    kind = read_json(path).get("kind")
    if not isinstance(kind, str) or kind not in LOADERS:
        raise ValueError(f"{path}: kind is {kind!r}; allowed: {sorted(LOADERS)}")
    with damage(path):
        return LOADERS[kind](path.parent)


__all__ = ["Codec", "SpectrogramCodec", "VaeCodec", "load_codec"]
