"""Joins a converted VAE and a converted vocoder to a codec that encodes datasets.

    python -m fasttta_jax.convert vae cvssp/audioldm converted/vae
    python -m fasttta_jax.convert hifigan cvssp/audioldm converted/vocoder
    python -m data.vae_codec --vae converted/vae --vocoder converted/vocoder --out runs/codec
    python -m data.encode_latents --data runs/mine/data --out runs/mine/encoded \\
        --codec runs/codec --posterior=moments

The codec's folder holds links to the weights where the file system can, copies elsewhere. Datasets
and runs made with it do the same, so that each is whole in itself.
"""

from __future__ import annotations

import pathlib
from typing import get_args

from absl import flags

from fasttta_jax import cli
from fasttta_jax.audio.mel import Framing, MelConfig
from fasttta_jax.codecs.base import CONFIG_FILE
from fasttta_jax.codecs.vae_codec import DTYPES, VaeCodec, VaeCodecConfig


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_string(
        "vae", None, "Folder that `convert vae` wrote.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "vocoder", None, "Folder that `convert hifigan` wrote.", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "Folder to write; must not hold a codec.", required=True, flag_values=values
    )
    flags.DEFINE_enum(
        "framing",
        MelConfig().framing,
        get_args(Framing),
        "Where frame k of a log-mel spectrogram lies: half a hop after sample hop * k, as in the "
        "training of AudioLDM's VAE (hifigan), or at sample hop * k, as in AudioLDM's and Tango's "
        "inference (center).",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "patch_size", 4, "Latent frames and rows that make one token.", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype", "float32", DTYPES, "Type of convolutions and matrix products.", flag_values=values
    )


def main() -> None:
    """The command line."""
    values, out = flags.FLAGS, pathlib.Path(flags.FLAGS.out)
    if (out / CONFIG_FILE).exists():
        raise ValueError(f"--out is {values.out!r}, which holds a codec; choose another folder")
    codec = VaeCodec.create(
        out,
        vae=values.vae,
        vocoder=values.vocoder,
        config=VaeCodecConfig(
            mel=MelConfig(framing=values.framing), patch_size=values.patch_size, dtype=values.dtype
        ),
    )
    seconds = codec.samples_per_column / codec.sample_rate
    print(
        f"{out}: {codec.tokens_per_column} tokens of {codec.token_dim} numbers for every "
        f"{seconds:g} s"
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
