"""A run from its config to everything that its first step needs: checked, opened and compiled for.

Every host calls `open_run`; only files are the first one's business. Data, codec, text and the
source of parameters are read here, from object stores through this host's cache; nothing after it
asks where they lie.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fasttta_jax.config import RunConfig, to_config_dict
from fasttta_jax.input_pipeline.mixture import open_dataset
from fasttta_jax.input_pipeline.pairs import check_pairs
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset
from fasttta_jax.multihost import distributed
from fasttta_jax.parallel.compile import (
    Program,
    abstract_state,
    compile_evaluate,
    compile_init,
    compile_train_step,
    on_every_device,
)
from fasttta_jax.parallel.mesh import check_batch_size, make_mesh
from fasttta_jax.parallel.sharding import check_rules, describe_warnings, layout_warnings
from fasttta_jax.randomness import stream
from fasttta_jax.systems import System, build_model
from fasttta_jax.training import programs
from fasttta_jax.training.initialization import (
    InitFrom,
    Initialization,
    open_init_from,
    uses_teacher,
)
from fasttta_jax.training.state import TrainState
from fasttta_jax.training.step import StepContext
from fasttta_jax.typing import Key, Metrics, Params
from fasttta_jax.workdir.folder import Workdir

logger = logging.getLogger(__name__)


class RunKeys(NamedTuple):
    """Root keys of a run, on every device."""

    train: Key
    init: Key
    validation: Key


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that can begin.

    Attributes:
      config: what was asked for.
      workdir: its folder.
      dataset: its data, on this host.
      mesh: its devices.
      model: what trains, with the text encoder.
      context: what is static in its programs.
      frozen: the teacher's parameters, where a step needs them; otherwise {}.
      keys: root keys.
      abstract: shapes and layout of the state.
      train_step: (state, frozen, batch, key) -> (state, metrics).
      evaluate_step: (averaged parameters, frozen, batch, key) -> metrics.
    """

    config: RunConfig
    workdir: Workdir
    dataset: EncodedDataset
    mesh: Mesh
    model: System
    context: StepContext
    frozen: Params
    keys: RunKeys
    abstract: TrainState
    train_step: Program[tuple[TrainState, Metrics]]
    evaluate_step: Program[Metrics]
    _open_source: Callable[[], InitFrom | None]
    _opened_sources: list[InitFrom]

    def release_source(self) -> None:
        """Lets go of parameters that only a new state would start from."""
        self._opened_sources.clear()

    def first_state(self) -> TrainState:
        """The state before the first step, born on the mesh; its source is let go."""
        source = self._opened_sources[0] if self._opened_sources else self._open_source()
        self.release_source()
        how = source.initialization(self.model) if source else Initialization(self.model)
        first = programs.first_state(self.context, how)
        init = compile_init(first, self.abstract, self.mesh)
        return init(self.keys.init, source.params if source else {})


def open_run(
    config: RunConfig,
    workdir: str | os.PathLike[str],
    *,
    devices: Sequence[Any] | None = None,
) -> Run:
    """Checks and opens everything that a run needs.

    Args:
      config: the run.
      workdir: its folder, the same for all hosts; may be gs://.
      devices: those of the mesh; None for all of the job.

    Raises:
      ConfigError, DatasetError, WorkdirError, HostsDisagree: before any training.
    """
    folder = Workdir(workdir, config.data.cache)
    dataset = open_dataset(config.data)
    dataset.check(config.model)
    for split in ("train", "validation"):
        if not len(dataset.split(split)):
            raise DatasetError(f"data.path is {config.data.path!r}, whose {split} split is empty")
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.data.batch_size, mesh, parts=config.optimizer.accumulation_steps)
    distributed.check_agreement(
        {
            "config": to_config_dict(config).to_dict(),
            "workdir": str(workdir),
            "data": dataset.fingerprint(),
            "code": distributed.code_version(),
        }
    )
    is_new = distributed.on_first_host(folder.prepare, config, dataset)
    try:
        return _open(config, folder, dataset, mesh, is_new=is_new)
    except Exception:  # of a wrong config, or a source that does not fit: on all hosts alike
        if is_new and jax.process_index() == 0:
            folder.abandon()
        raise


def _open(
    config: RunConfig, folder: Workdir, dataset: EncodedDataset, mesh: Mesh, *, is_new: bool
) -> Run:
    model = build_model(config, folder.text(dataset))
    if model.objective.wants_pairs:
        check_pairs(dataset, config.data, config.model.num_tokens)
    # A run that goes on from a checkpoint reads no source but its teacher.
    needs_source = is_new or uses_teacher(config, model)
    source = open_init_from(config, folder, mesh, model) if needs_source else None
    teacher = source.teacher if source and programs.has_teacher(config, model) else None
    context = programs.make_context(
        config,
        model,
        teacher.model if teacher else None,
        tokens_per_column=dataset.codec.tokens_per_column,
    )
    frozen: Params = teacher.params if teacher else {}
    abstract = _abstract_state(config, context, mesh)
    step = programs.train_step(context)
    return Run(
        config=config,
        workdir=folder,
        dataset=dataset,
        mesh=mesh,
        model=model,
        context=context,
        frozen=frozen,
        keys=_root_keys(config.seed, mesh),
        abstract=abstract,
        train_step=compile_train_step(step, abstract, frozen, mesh),
        evaluate_step=compile_evaluate(programs.evaluate_step(context), mesh),
        _open_source=lambda: open_init_from(config, folder, mesh, model),
        _opened_sources=[source] if source else [],
    )


def _root_keys(seed: int, mesh: Mesh) -> RunKeys:
    def keys() -> RunKeys:
        return RunKeys(*(stream(jax.random.key(seed), name) for name in RunKeys._fields))

    return on_every_device(keys, mesh)


def _abstract_state(config: RunConfig, context: StepContext, mesh: Mesh) -> TrainState:
    """Shapes and layout of the state; says what fsdp could not split."""
    rules = config.mesh.rules
    abstract = abstract_state(programs.fresh_state(context), mesh, rules)
    check_rules(abstract.params, mesh, rules)
    for line in describe_warnings(layout_warnings(abstract.params, mesh, rules)):
        logger.info("mesh.fsdp: %s", line)
    return abstract
