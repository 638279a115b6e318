"""One-step text-to-audio generation in JAX: diffusion-head teacher, energy-scoring student.

    import fasttta_jax

    pipeline = fasttta_jax.load()  # or a run's folder, an exported model, OWNER/NAME on the Hub
    for clip in pipeline.generate(["a high bell rings nearby"]):
        clip.save("bell.wav")

Importing this package imports nothing heavy; `load` does.
"""

from __future__ import annotations

import os
import typing

from fasttta_jax.version import __version__ as __version__

if typing.TYPE_CHECKING:
    from fasttta_jax.generation.pipeline import Pipeline


def load(workdir: str | os.PathLike[str] | None = None, which: str | int = "last") -> Pipeline:
    """A trained model, ready to generate on all devices of this host.

    Args:
      workdir: folder of a trained teacher or student, or of an exported model, here or in an object
        store; OWNER/NAME or OWNER/NAME@REVISION of an exported model on the Hub; None for the model
        that comes with the package.
      which: "last", "best" (lowest validation loss) or a step.

    Raises:
      WorkdirError: no model or no checkpoint is there, `which` names none, the Hub cannot be
        reached, or a file of an exported model is not what was exported.
      CheckpointError: the checkpoint cannot be read.
    """
    from fasttta_jax.generation.pipeline import Pipeline

    return Pipeline.open(workdir, which)
