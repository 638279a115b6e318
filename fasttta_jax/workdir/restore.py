"""Opens a trained model, of a workdir or exported: network, averaged parameters and codec."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from jax.sharding import Mesh

from fasttta_jax.codecs import Codec
from fasttta_jax.config import DecodeConfig, RunConfig
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, TEXT_FOLDER
from fasttta_jax.parallel.compile import abstract_state
from fasttta_jax.systems import System, build_model
from fasttta_jax.workdir.exported import check_files, describe, read_params, reading
from fasttta_jax.workdir.folder import Workdir, WorkdirError
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.sources import Source, find_model


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model in memory.

    Attributes:
      config: of the run.
      model: what it trained.
      params: averaged parameters on the mesh.
      codec: tokens to audio.
      step: optimizer steps behind the parameters.
      workdir: folder or URL of the workdir, or folder of the exported model.
      name: what is recorded of where it came from; "" for `workdir`.
    """

    config: RunConfig
    model: System
    params: Any
    codec: Codec
    step: int
    workdir: str
    name: str = ""

    def origin(self) -> dict[str, Any]:
        """Source, step and hash of the parameters, to be recorded by whoever uses them."""
        name = self.name or self.workdir
        return {"workdir": name, "step": self.step, "sha256": tree_hash(self.params)}

    def with_sampling(
        self, decode: DecodeConfig, sampling_steps: int | None = None
    ) -> TrainedModel:
        """The same parameters with other settings of sampling.

        Args:
          decode: in place of the run's.
          sampling_steps: diffusion steps, in place of the run's; None keeps them.
        """
        config = dataclasses.replace(self.config, decode=decode)
        if sampling_steps is None:
            return dataclasses.replace(self, config=config)
        diffusion = dataclasses.replace(config.diffusion, sampling_steps=sampling_steps)
        config = dataclasses.replace(config, diffusion=diffusion)
        return dataclasses.replace(self, config=config, model=build_model(config, self.model.text))


def which_checkpoint(text: str) -> str | int:
    """What a command line calls a checkpoint, as `load_trained` takes it: a step, or a name."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else text


def load_trained(
    source: str | os.PathLike[str] | None, mesh: Mesh, *, which: str | int = "last"
) -> TrainedModel:
    """Reads averaged parameters and what belongs to them, and nothing else; writes nothing there.

    Args:
      source: a workdir, which need not be writable, or whatever else `find_model` takes.
      mesh: where the parameters go, whatever mesh they were trained on. Every host calls this.
      which: "last", "best" (lowest of the run's `best_metric`) or a step; of an exported model
        "last" or the step that it is of.

    Raises:
      WorkdirError: no run, no model or no checkpoint is there, or an exported file is not what was
        exported.
      CheckpointError: the checkpoint cannot be read.
    """
    found = find_model(source)
    load = _load_exported if found.is_exported else _load_run
    return load(found, mesh, which)


def _load_run(source: Source, mesh: Mesh, which: str | int) -> TrainedModel:
    # Here, because an exported model need not wait for orbax to be imported.
    from fasttta_jax.workdir.checkpoint import StoredCheckpoints

    folder = Workdir(source.path)
    config = folder.config()
    model = build_model(config, folder.text())
    checkpoints = StoredCheckpoints(source.path, best_metric=config.best_metric)
    steps = checkpoints.steps()
    if not steps:
        raise WorkdirError(f"{source.path} holds no checkpoint yet")
    named = {"last": steps[-1], "best": checkpoints.best_step()}
    step = which if isinstance(which, int) else named.get(which)
    if step is None:
        missing = f" (none has the metric {config.best_metric!r})" if which == "best" else ""
        raise WorkdirError(
            f"checkpoint is {which!r}{missing}; allowed: last, best or one of {steps}"
        )
    params = checkpoints.restore_ema(abstract_state(model.init, mesh), step=step)
    return TrainedModel(config, model, params, folder.codec(), step, source.path, source.name)


def _load_exported(source: Source, mesh: Mesh, which: str | int) -> TrainedModel:
    check_files(source.path)
    step = describe(source.path)["step"]
    if which not in ("last", step):
        raise WorkdirError(
            f"checkpoint is {which!r}; allowed: last or {step}, the only one of an exported model"
        )
    folder = Workdir(source.path)
    config = folder.config()
    with reading(folder.path / TEXT_FOLDER):
        text = folder.text()
    with reading(folder.path / CODEC_FOLDER):
        codec = folder.codec()
    model = build_model(config, text)
    params = read_params(source.path, abstract_state(model.init, mesh))
    return TrainedModel(config, model, params, codec, step, source.path, source.name)
