"""Converts published weights to parameters of this package; neither torch nor a GPU is needed.

    python -m fasttta_jax.convert mar checkpoint-last.pth converted/mar_base
    python -m fasttta_jax.convert mar ear.pth converted/ear_small --num_heads=8 --weights=model
    python -m fasttta_jax.convert vae cvssp/audioldm converted/vae
    python -m fasttta_jax.convert hifigan cvssp/audioldm converted/vocoder
    python -m fasttta_jax.convert t5 google/flan-t5-large converted/flan-t5-large
    python -m fasttta_jax.convert clap laion/clap-htsat-fused converted/clap
    python -m fasttta_jax.convert clap 630k-audioset-best.pt converted/clap --tokenizer=roberta-base
    python -m fasttta_jax.convert panns Cnn14_16k_mAP=0.438.pth converted/panns_16k
    python -m fasttta_jax.convert vggish vggish-10086976.pth converted/vggish

The arguments are a kind, a source and the folder to write. Kinds:

    mar       MAR or EAR (told apart by their keys), as their original torch code saves them
    vae       AutoencoderKL of AudioLDM: diffusers' folder, or an original checkpoint
    hifigan   the vocoder: transformers' SpeechT5HifiGan, or an original checkpoint
    t5        the encoder of Flan-T5 of any size, with its tokenizer
    clap      CLAP's text tower with its tokenizer, and its audio tower where the source has one
    panns     PANNs' Cnn14 at 16 or 32 kHz, as its project saves it
    vggish    VGGish as torchvggish saves it; with its principal components, where their file is
              beside it (vggish_pca_params*.pth, .npz) or given by --pca

SOURCE is a folder in the layout of transformers or diffusers (config.json beside .safetensors or
.bin, whole or in shards; of a pipeline, the part that is needed), a single file of an original
project (torch's .pth .pt .bin .ckpt of any age, or .safetensors), or the Hub's owner/name, which is
fetched. Without a network, download the files elsewhere and give their folder. Nothing in a file is
executed: a pickle that asks for more than tensors and plain containers is refused. Every key must
be known; what is missing, unexpected or misshapen is listed. OUT gets weights.safetensors
(float32), weights.json (sizes, source, hash, and which keys were left out) and a text model's
tokenizer.json.
Running the same conversion again is fine; another one needs another folder.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from absl import flags

from fasttta_jax import cli
from fasttta_jax.convert import clap, hifigan, mar, panns, t5, vae, vggish
from fasttta_jax.convert.source import Source, open_source
from fasttta_jax.convert.write import Conversion, check_target, describe, write_conversion


class Kind(NamedTuple):
    """One kind of weights.

    Attributes:
      convert: an opened source to the conversion.
      parts: subfolders of a published pipeline that hold this kind.
      flags: those that mean something to it.
    """

    convert: Callable[[Source], Conversion]
    parts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    flags.DEFINE_enum(
        "weights",
        None,
        list(mar.STATES),
        "mar: which weights of a training checkpoint to take, the averaged ones (ema, also where "
        "the flag is left out) or those of the last step (model). A bare state dict has only one.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_heads",
        None,
        "mar: attention heads. Left out, those of the published models: "
        + ", ".join(f"{heads} for width {width}" for width, heads in mar.PUBLISHED_HEADS.items()),
        flag_values=values,
    )
    flags.DEFINE_float(
        "scaling_factor",
        None,
        "vae: what latents are multiplied by, where the source does not say it: the checkpoint of "
        "a VAE alone.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer",
        None,
        "clap: folder with the files of RoBERTa's tokenizer, for an original checkpoint, which "
        "has none.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "pca",
        None,
        "vggish: the file of its principal components, where it is not beside the network.",
        flag_values=values,
    )


def _mar(source: Source) -> Conversion:
    values = flags.FLAGS
    return mar.convert(source, weights=values.weights, num_heads=values.num_heads)


def _vae(source: Source) -> Conversion:
    return vae.convert(source, scaling_factor=flags.FLAGS.scaling_factor)


def _clap(source: Source) -> Conversion:
    folder = flags.FLAGS.tokenizer
    return clap.convert(source, tokenizer=None if folder is None else pathlib.Path(folder))


def _vggish(source: Source) -> Conversion:
    file = flags.FLAGS.pca
    return vggish.convert(source, pca=None if file is None else pathlib.Path(file))


KINDS: Mapping[str, Kind] = {
    "mar": Kind(_mar, flags=("weights", "num_heads")),
    "vae": Kind(_vae, parts=("vae",), flags=("scaling_factor",)),
    "hifigan": Kind(hifigan.convert, parts=("vocoder",)),
    "t5": Kind(t5.convert, parts=("text_encoder", "text_encoder_2")),
    "clap": Kind(_clap, parts=("text_encoder",), flags=("tokenizer",)),
    "panns": Kind(panns.convert),
    "vggish": Kind(_vggish, flags=("pca",)),
}


def _check_flags(kind: str) -> None:
    """Raises ValueError where a flag is given that means nothing to the kind."""
    for other, entry in KINDS.items():
        for name in entry.flags:
            if flags.FLAGS[name].present and name not in KINDS[kind].flags:
                raise ValueError(f"--{name} belongs to {other}, and the kind is {kind}")


def main(kind: str, source: str, out: str) -> None:
    """Runs one conversion."""
    if kind not in KINDS:
        raise ValueError(f"the kind is {kind!r}; allowed: {', '.join(KINDS)}")
    _check_flags(kind)
    folder = pathlib.Path(out)
    check_target(folder)
    with open_source(source, parts=KINDS[kind].parts) as opened:
        conversion = KINDS[kind].convert(opened)
    write_conversion(conversion, folder)
    print(describe(conversion))
    print(f"{conversion.metadata['kind']} weights are in {folder}")


if __name__ == "__main__":
    define_flags()
    cli.run(main, "KIND SOURCE OUT")
