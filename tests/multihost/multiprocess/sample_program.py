"""Samples a trained run on a mesh over all hosts, and keeps what came out.

python -m tests.multihost.multiprocess.sample_program WORKDIR OUT.npz DATA FSDP TENSOR
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fasttta_jax.config import MeshConfig
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.multihost import distributed
from fasttta_jax.parallel.mesh import make_mesh

PROMPTS = ("a loud tone", "a quiet noise", "clicks that is loud", "")


def sample(
    workdir: pathlib.Path, mesh_config: MeshConfig, devices: Sequence[Any] | None = None
) -> dict[str, np.ndarray]:
    """Tokens [8, N, C] and audio [8, S] of eight prompts and seeds, and the sample rate."""
    pipeline = Pipeline.open(str(workdir), mesh=make_mesh(mesh_config, devices))
    clips = list(pipeline.generate([*PROMPTS, *PROMPTS], batch_size=8))
    return {
        "tokens": np.stack([clip.tokens for clip in clips]),
        "audio": np.stack([clip.audio for clip in clips]),
    }


def main() -> None:
    workdir, out, *sizes = sys.argv[1:]
    distributed.start()
    found = sample(pathlib.Path(workdir), MeshConfig(*map(int, sizes)))
    if jax.process_index() == 0:
        np.savez(out, **found)
    distributed.finish()


if __name__ == "__main__":
    main()
