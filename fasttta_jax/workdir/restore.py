"""Opens a trained run from its workdir: model, averaged parameters and codec."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from fasttta_jax.codecs import Codec
from fasttta_jax.config import RunConfig
from fasttta_jax.parallel.compile import abstract_state
from fasttta_jax.systems import TextToAudio, build_model
from fasttta_jax.workdir.checkpoint import StoredCheckpoints, tree_hash
from fasttta_jax.workdir.folder import Workdir, WorkdirError


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained run in memory.

    Attributes:
      config: of the run.
      model: what it trained.
      params: averaged parameters on the mesh.
      codec: tokens to audio.
      step: optimizer steps behind the parameters.
      workdir: where it came from.
    """

    config: RunConfig
    model: TextToAudio
    params: Any
    codec: Codec
    step: int
    workdir: str

    def origin(self) -> dict[str, Any]:
        """Source, step and hash of the parameters, to be recorded by whoever uses them."""
        return {"workdir": self.workdir, "step": self.step, "sha256": tree_hash(self.params)}


def load_trained(workdir: str, mesh: Mesh, *, which: str | int = "last") -> TrainedModel:
    """Reads a run's averaged parameters, and nothing else; writes nothing there.

    Args:
      workdir: the run's folder; it need not be writable.
      mesh: where the parameters go, whatever mesh they were trained on. Every host calls this.
      which: "last", "best" (lowest of the run's `best_metric`) or a step.

    Raises:
      WorkdirError: no run or no checkpoint is there.
      CheckpointError: the checkpoint cannot be read.
    """
    folder = Workdir(workdir)
    config = folder.config()
    model = build_model(config, folder.text())
    checkpoints = StoredCheckpoints(workdir, best_metric=config.best_metric)
    steps = checkpoints.steps()
    if not steps:
        raise WorkdirError(f"{workdir} holds no checkpoint yet")
    named = {"last": steps[-1], "best": checkpoints.best_step()}
    step = which if isinstance(which, int) else named.get(which)
    if step is None:
        missing = f" (none has the metric {config.best_metric!r})" if which == "best" else ""
        raise WorkdirError(
            f"checkpoint is {which!r}{missing}; allowed: last, best or one of {steps}"
        )
    params = checkpoints.restore_ema(abstract_state(model.init, mesh), step=step)
    return TrainedModel(config, model, params, folder.codec(), step, str(workdir))
