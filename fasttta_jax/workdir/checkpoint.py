"""Checkpoints: trees on disk and back; the only importer of orbax.

A step is a folder that appears whole: named trees (`ema`, all that generation needs, and `rest`:
step count, parameters, optimizer), metrics, progress, and the checksums of all files. Saving is
asynchronous. A step is read onto any mesh and any number of hosts; before that the hosts share out
its files and compare the checksums, so that all of them take the same step.

Every host of a job makes these objects and calls their methods, in the same order.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fasttta_jax.multihost import coordination, distributed
from fasttta_jax.multihost.barrier import FailingBarrier, OtherHostFailed
from fasttta_jax.workdir import checksums
from fasttta_jax.workdir.checkpoint_finish import Finish
from fasttta_jax.workdir.checkpoint_folder import (
    FORMAT,
    LATE_FILES,
    METRICS,
    PROGRESS,
    CheckpointError,
    CheckpointFolder,
    DamagedCheckpoint,
    best_step,
    from_first_host,
    one_line,
    shorten,
    steps_to_keep,
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpoint",
    "Restored",
    "StoredCheckpoints",
]


class Restored(NamedTuple):
    """A checkpoint in memory.

    Attributes:
      step: optimizer steps behind it.
      items: named trees.
      progress: what `save` was given beside them; {} where an older version saved it.
    """

    step: int
    items: dict[str, Any]
    progress: dict[str, Any]


class StoredCheckpoints:
    """Reads the checkpoints of a workdir; nothing is made, moved or written there.

    Args:
      workdir: the run's folder, local or gs://.
      best_metric: what is lowest in the best step.

    Raises:
      CheckpointError: the folder cannot be listed.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, best_metric: str = "loss") -> None:
        self.folder = CheckpointFolder(workdir)
        self.best_metric = best_metric
        self._metrics = self.folder.all_metrics()

    def steps(self) -> list[int]:
        """Complete steps, rising; one that is being written is not among them."""
        return sorted(self._metrics)

    def best_step(self) -> int | None:
        """The step with the lowest `best_metric`; None where no step has one."""
        return best_step(self._metrics, self.best_metric)

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that were saved with a step; {} where there were none."""
        return dict(self._metrics.get(step, {}))

    def restore_ema(self, abstract: Any, *, step: int) -> Any:
        """Reads the averaged parameters of one step alone, with the shardings of `abstract`.

        Raises:
          CheckpointError: the step is missing, damaged, or does not hold such a tree.
        """
        if step not in self.steps():
            raise CheckpointError(f"{self.folder} has no step {step}; allowed: {self.steps()}")
        return self._read(step, {"ema": abstract}).items["ema"]

    def _differences(self, step: int, abstract: Mapping[str, Any]) -> list[str]:
        """How the trees on disk differ from `abstract`, a line for each leaf."""
        there = _stored_leaves(self.folder, step, abstract)
        here = _leaves(abstract)
        lines = []
        for name in sorted(there | here):
            if name not in here:
                lines.append(f"{name} is in the checkpoint only")
            elif name not in there:
                lines.append(f"{name} is not in the checkpoint")
            elif there[name] != here[name]:
                lines.append(f"{name} is {there[name]} in the checkpoint and {here[name]} here")
        return lines

    def _read(self, step: int, abstract: Mapping[str, Any]) -> Restored:
        """A step that was checked, with the shardings of `abstract`.

        Raises:
          DamagedCheckpoint: its files are not what was written.
          CheckpointError: it is of a newer format or another model, or its storage fails.
        """
        header = self.folder.check(step, list(abstract))
        where = f"step {step} in {self.folder}"
        # Whatever fails where there are no checksums is taken for damage.
        kind = CheckpointError if header.has_checksums else DamagedCheckpoint
        try:
            lines = from_first_host(lambda: self._differences(step, abstract), "its trees")
        except CheckpointError as error:
            raise kind(f"{where} cannot be read: {error}") from error
        if lines:
            raise CheckpointError(
                f"{where} cannot be read as this model: {shorten(lines)}. Go back to the config "
                "that it was trained with, or start in a new workdir"
            )
        items, error = {}, None
        try:
            for name, tree in abstract.items():
                # Not by a Checkpointer: where one host fails, its barriers hold the others.
                handler = ocp.StandardCheckpointHandler()
                path = self.folder.step(step) / name
                items[name] = handler.restore(path, args=ocp.args.StandardRestore(tree))
        except Exception as caught:
            error = kind(f"{where} cannot be read: {one_line(caught)}")
        distributed.agree_ok(error)
        return Restored(step, items, header.progress)


def _leaves(items: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of every leaf of named trees, {"ema/head/bias": "float32[64]"}."""
    return {
        f"{item}/{name}": f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for item, tree in items.items()
        for name, leaf in ocp.tree.to_flat_dict(tree, sep="/").items()
        if hasattr(leaf, "shape")
    }


def _stored_leaves(folder: CheckpointFolder, step: int, items: Iterable[str]) -> dict[str, str]:
    """As `_leaves`, of those trees that are on disk, each of whose arrays is opened."""
    handler = ocp.StandardCheckpointHandler()
    paths = {item: folder.step(step) / item for item in items}
    return _leaves({n: handler.metadata(path).tree for n, path in paths.items() if path.exists()})


class Checkpoints(StoredCheckpoints):
    """Reads and writes the checkpoints of a run.

    Args:
      workdir: the run's folder, local or gs://, the same for all hosts.
      keep: newest steps to keep.
      keep_every: steps that are multiples of it are kept too; 0 for none.
      best_metric: the step in which this validation metric is lowest is kept too.

    Raises:
      CheckpointError: the folder cannot be written, or is not the same on all hosts.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int = 2,
        keep_every: int = 0,
        best_metric: str = "loss",
    ) -> None:
        folder = CheckpointFolder(workdir)
        folder.check_writable()
        from_first_host(folder.remove_half_written, f"{folder} cannot be tidied")
        super().__init__(workdir, best_metric=best_metric)
        self._keep = keep
        self._keep_every = keep_every
        self._barrier = FailingBarrier()
        self._saving: tuple[int, dict[str, float]] | None = None
        self._finish: Finish | None = None
        self._checkpointer = self._open()

    def _open(self) -> ocp.AsyncCheckpointer:
        options = ocp.AsyncOptions(
            barrier_sync_fn=self._barrier,
            post_finalization_callback=self._write_checksums,
            # In the background a failure to make a folder would leave the others waiting for it.
            create_directories_asynchronously=False,
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for name in (METRICS, PROGRESS):
            registry.add(name, ocp.args.JsonSave, ocp.JsonCheckpointHandler(filename=name))
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(async_options=options),
            handler_registry=registry,
        )
        return ocp.AsyncCheckpointer(handler, async_options=options)

    def _unfinished(self, step: int) -> epath.Path:
        """Where a step lies until it is committed."""
        path = self.folder.step(step)
        temporary = path.with_name(path.name + ocp.utils.TMP_DIR_SUFFIX)
        return temporary if temporary.exists() else path

    def _write_checksums(self) -> None:
        """In the first host's background thread, when all files are there, before the commit."""
        assert self._saving is not None
        checksums.write(self._unfinished(self._saving[0]), leave_out=LATE_FILES)

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
        progress: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts writing, when the write before it has ended; a step that exists is left alone.

        Args:
          step: optimizer steps behind the trees.
          items: named trees of arrays that span the mesh.
          metrics: of the validation; None for a checkpoint between evaluations.
          progress: position of the run beside its trees, JSON.

        Raises:
          CheckpointError: on all hosts, if this write cannot begin or that before it has failed on
            any; names the newest good step.
          TypeError: `progress` is not JSON.
        """
        header = {"format": FORMAT, "progress": json.loads(json.dumps(dict(progress or {})))}
        self.wait()
        if step in self._metrics:
            return
        error = None
        try:
            self.folder.probe()
        except Exception as caught:
            error = self._write_error(step, caught)
        distributed.agree_ok(error)
        named: dict[str, Any] = {n: ocp.args.StandardSave(tree) for n, tree in items.items()}
        named[PROGRESS] = ocp.args.JsonSave(header)
        saved = {} if metrics is None else {name: float(value) for name, value in metrics.items()}
        if saved:
            named[METRICS] = ocp.args.JsonSave(saved)
        self._saving = (step, saved)
        self._barrier.begin()
        try:
            arguments = ocp.args.Composite(**named)
            self._checkpointer.save(self.folder.step(step), args=arguments, force=True)
        except Exception as caught:
            error = self._write_error(step, caught)
            self._barrier.fail(caught)
        try:
            distributed.agree_ok(error)
        except CheckpointError:
            with contextlib.suppress(Exception):
                self._checkpointer.wait_until_finished()
            raise
        everything = self._metrics | {step: saved}
        kept = steps_to_keep(
            everything,
            keep=self._keep,
            keep_every=self._keep_every,
            best_metric=self.best_metric,
        )
        old = sorted(set(everything) - kept)
        self._finish = Finish(
            self._checkpointer.wait_until_finished,
            self._barrier,
            self.folder,
            step,
            _leaves(items),
            lambda: _stored_leaves(self.folder, step, items),
            old,
        )
        self._finish.start()

    def wait(self) -> None:
        """Returns when what was started is on disk.

        Raises:
          CheckpointError: on all hosts, if it has failed on any; names the newest good step.
        """
        if self._finish is None or self._saving is None:
            return
        finish, (step, metrics) = self._finish, self._saving
        finish.join()
        self._finish = None
        error = None
        if finish.error is not None and not isinstance(finish.error, OtherHostFailed):
            error = self._write_error(step, finish.error)
        try:
            distributed.agree_ok(error)
        except CheckpointError:
            with contextlib.suppress(CheckpointError):
                from_first_host(self.folder.remove_half_written, "the rest of it stays")
            raise
        self._metrics[step] = metrics
        for old in finish.old_steps:
            self._metrics.pop(old, None)

    def settle(self) -> None:
        """On one host: returns when a write that was started has ended, however it did.

        For a run that ends in an error, so that the next one in this process finds it whole. With
        several hosts it returns at once: the others may never do their part of the write.
        """
        if self._finish is not None and coordination.count() == 1:
            self._finish.join()

    def _write_error(self, step: int, cause: Exception) -> CheckpointError:
        good = self.steps()
        left = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        return CheckpointError(
            f"a checkpoint of step {step} could not be written to {self.folder}; {left}. "
            f"Cause: {one_line(cause)}. Make room or mend the storage, then give the same command"
        )

    def restore_latest(self, abstract: Mapping[str, Any]) -> Restored | None:
        """The newest step that is whole, with the shardings of `abstract`; None without any step.

        A damaged step is moved to `unreadable/` with a warning, and the one before it is taken.

        Raises:
          CheckpointError: there are steps, but all are damaged; or the newest one that is whole is
            of a newer format or of another model, and nothing is moved.
        """
        self.wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step, abstract)
            except DamagedCheckpoint as damage:
                self.folder.move_aside(step, str(damage))
                del self._metrics[step]
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.folder} can be read; they are in "
                f"{self.folder.unreadable}. Start again in a new workdir, or remove it"
            )
        return None

    def close(self) -> None:
        """Waits for what is under way and closes."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
