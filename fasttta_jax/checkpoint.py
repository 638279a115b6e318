"""Checkpoints on disk; the only importer of orbax.

A step holds named trees: `ema`, which is all that generation needs, and `rest` (step count,
parameters, optimizer). Saving is asynchronous and atomic; the newest steps and the best one are
kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
ITEMS = ("rest", "ema")
BEST_METRIC = "loss"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read, with what is still good."""


def _validation_loss(metrics: Mapping[str, float]) -> float:
    return metrics[BEST_METRIC]


def _policy(keep: int) -> Any:
    policies = ocp.checkpoint_managers
    return policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=_validation_loss, reverse=True, n=1),
        ]
    )


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: the run's folder.
      keep: newest steps to keep, beside the one with the lowest validation loss.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2) -> None:
        self.folder = pathlib.Path(os.path.abspath(workdir)) / FOLDER
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy(keep),
            best_fn=_validation_loss,  # what makes orbax keep the metrics on disk
            best_mode="min",
            enable_async_checkpointing=True,
        )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder, options=self._options, item_names=(*ITEMS, "metrics")
        )

    def steps(self) -> list[int]:
        """Steps on disk, rising."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest validation loss among those on disk."""
        losses = {step: self.metrics(step).get(BEST_METRIC, np.inf) for step in self.steps()}
        return min(losses, key=lambda step: (losses[step], -step)) if losses else None

    def metrics(self, step: int) -> dict[str, float]:
        """The validation metrics that were saved with a step."""
        return dict(self._manager.metrics(step) or {})

    def save(self, step: int, items: Mapping[str, Any], metrics: dict[str, float]) -> None:
        """Starts writing; an error of the write before it is raised here.

        Raises:
          CheckpointError: the disk is full or not writable; names the newest good step.
        """
        arguments = {name: ocp.args.StandardSave(items[name]) for name in ITEMS}
        try:
            self._manager.save(step, args=ocp.args.Composite(**arguments), metrics=metrics)
        except Exception as error:
            raise self._write_error(step, error) from error

    def wait(self) -> None:
        """Returns when everything started is on disk; raises CheckpointError if it is not."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_error(None, error) from error

    def _write_error(self, step: int | None, error: Exception) -> CheckpointError:
        which = "" if step is None else f" of step {step}"
        good = self.steps()
        left = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
        return CheckpointError(
            f"a checkpoint{which} could not be written to {self.folder}; {left}. Cause: {error}"
        )

    def restore_latest(self, abstract: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest state that can be read, laid out as `abstract` says; None where there is none.

        A step that cannot be read is moved to `unreadable/` with a warning and the one before it is
        taken.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, abstract)
            except Exception as error:
                aside = self.folder.parent / "unreadable" / str(step)
                logger.warning(
                    "checkpoint of step %d cannot be read and is moved to %s (%s)",
                    step,
                    aside,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                self._manager.close()
                shutil.move(self.folder / str(step), aside)
                self._manager = self._open()
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self.folder} can be read; they are in "
                f"{self.folder.parent / 'unreadable'}. Start again in a new workdir, or remove it"
            )
        return None

    def _restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: restored[name] for name in abstract}

    def restore_ema(self, abstract: Any, *, step: int) -> Any:
        """The averaged parameters of one step, laid out as `abstract` says.

        Raises:
          CheckpointError: the step is missing or does not hold such a tree.
        """
        if step not in self.steps():
            raise CheckpointError(f"{self.folder} has no step {step}; allowed: {self.steps()}")
        try:
            return self._restore(step, {"ema": abstract})["ema"]
        except Exception as error:
            raise CheckpointError(
                f"step {step} in {self.folder} cannot be read as this model: {error}"
            ) from error

    def close(self) -> None:
        """Waits for what is under way and closes."""
        self.wait()
        self._manager.close()


def tree_hash(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a tree of fully addressable arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
