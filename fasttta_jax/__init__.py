"""One-step text-to-audio generation in JAX: diffusion-head teacher, energy-scoring student.

    import fasttta_jax

    pipeline = fasttta_jax.load("runs/demo/student")
    for clip in pipeline.generate(["a dog barks"]):
        clip.save("dog.wav")

Importing this package imports nothing else; `load` does.
"""

from __future__ import annotations

import os
import typing

if typing.TYPE_CHECKING:
    from fasttta_jax.generation.pipeline import Pipeline

__version__ = "0.1.0"


def load(workdir: str | os.PathLike[str] | None = None, which: str | int = "last") -> Pipeline:
    """A trained run, ready to generate on all devices of this host.

    Args:
      workdir: folder of a trained teacher or student, here or in an object store.
      which: "last", "best" (lowest validation loss) or a step.

    Raises:
      ValueError: no workdir is given, or `which` names no checkpoint.
      WorkdirError: no run or no checkpoint is there.
      CheckpointError: the checkpoint cannot be read.
    """
    if workdir is None:
        raise ValueError(
            "workdir is None, but no model comes with the package; allowed: the folder of a "
            "trained run, such as runs/demo/student, which `make demo` trains"
        )
    from fasttta_jax.generation.pipeline import Pipeline

    return Pipeline.open(os.fspath(workdir), which)
