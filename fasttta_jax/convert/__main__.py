"""Converts published weights to parameters of this package; neither torch nor a GPU is needed.

    python -m fasttta_jax.convert mar checkpoint-last.pth converted/mar_base
    python -m fasttta_jax.convert mar ear.pth converted/ear_small --num_heads=8 --weights=model

The arguments are a kind, the checkpoint and the folder to write. Kinds:

    mar   MAR or EAR (told apart by their keys), as their original torch code saves them

CHECKPOINT is a torch file in zip format (.pth .pt .bin .ckpt) or .safetensors. Nothing in it is
executed: a pickle that asks for more than tensors and plain containers is refused. Every key must
be known; what is missing, unexpected or misshapen is listed. OUT gets weights.safetensors (float32)
and weights.json (sizes, source, hash, and which keys were left out). Running the same conversion
again is fine; another one needs another folder.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags

from fasttta_jax.convert import mar
from fasttta_jax.convert.write import Conversion, check_target, describe, write_conversion

USAGE = "python -m fasttta_jax.convert KIND CHECKPOINT OUT [flags]"


def _define_flags() -> None:
    flags.DEFINE_enum(
        "weights",
        None,
        list(mar.STATES),
        "Which weights of a training checkpoint to take: the averaged ones (ema, also where the "
        "flag is left out) or those of the last step (model). A bare state dict has only one.",
    )
    flags.DEFINE_integer(
        "num_heads",
        None,
        "Attention heads. Left out, those of the published models: "
        + ", ".join(f"{heads} for width {width}" for width, heads in mar.PUBLISHED_HEADS.items()),
    )


def _mar(checkpoint: pathlib.Path) -> Conversion:
    values = flags.FLAGS
    return mar.convert(checkpoint, weights=values.weights, num_heads=values.num_heads)


KINDS: Mapping[str, Callable[[pathlib.Path], Conversion]] = {"mar": _mar}


def main(argv: Sequence[str]) -> None:
    """Runs one conversion; expected errors become one message and exit code 1."""
    if len(argv) != 4:
        sys.exit(f"error: {len(argv) - 1} arguments, expected 3: {USAGE}; --help says more")
    kind, checkpoint, out = argv[1], pathlib.Path(argv[2]), pathlib.Path(argv[3])
    if kind not in KINDS:
        sys.exit(f"error: the kind is {kind!r}; allowed: {', '.join(KINDS)}")
    try:
        check_target(out)
        conversion = KINDS[kind](checkpoint)
        write_conversion(conversion, out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(describe(conversion))
    print(f"{conversion.metadata['kind']} weights are in {out}")


if __name__ == "__main__":
    _define_flags()
    app.run(main)
