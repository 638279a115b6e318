"""A training run from config to last checkpoint, on one host or many.

The run is opened (`training.opening`), its state is restored or born, and its steps are done. Every
host runs the same lines; only files are the first one's business. Metrics are read one step late
and batches are placed ahead, so the loop never waits for the device except to save. The data
position and every draw are functions of the step, so a restored state is all there is to resume, on
whatever mesh and number of hosts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fasttta_jax.config import ConfigError, RunConfig
from fasttta_jax.input_pipeline.batches import TrainBatches, evaluation_batches
from fasttta_jax.multihost.preemption import Preempted, Preemption
from fasttta_jax.multihost.watchdog import Watchdog
from fasttta_jax.parallel.compile import Program
from fasttta_jax.performance import compilations
from fasttta_jax.performance.profiler import Profiler, ProfileWindow
from fasttta_jax.performance.throughput import Meter
from fasttta_jax.training import programs
from fasttta_jax.training.opening import open_run
from fasttta_jax.training.reporting import NonFiniteStep, StepReporter
from fasttta_jax.training.samples import SampleSheet
from fasttta_jax.training.state import TrainState, from_items, to_items
from fasttta_jax.typing import Metrics
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.lock import Guard, only_training
from fasttta_jax.workdir.metrics_log import MetricsWriter

logger = logging.getLogger(__name__)

HOSTS_FOLDER = "hosts"
PROFILE_FOLDER = "profile"


class _Session(NamedTuple):
    """Resources held open during the step loop."""

    checkpoints: Checkpoints
    batches: TrainBatches
    writer: MetricsWriter
    meter: Meter
    reporter: StepReporter
    profiler: Profiler
    watchdog: Watchdog
    preemption: Preemption
    guard: Guard


class _Start(NamedTuple):
    """Where a run begins or goes on.

    Attributes:
      state: parameters and all.
      step: steps done.
      skipped: steps among them that were not finite.
    """

    state: TrainState
    step: int
    skipped: int


class Trainer:
    """An opened run and its step loop; every host makes one.

    Args:
      config: the run.
      workdir: its folder, the same for all hosts; may be gs://.
      profile: steps whose trace is written to the workdir.
      devices: those that it trains on; None for all of the job.

    Attributes:
      opened: what `open_run` returned.
      train_step: its compiled step.

    Raises:
      ConfigError, DatasetError, WorkdirError, HostsDisagree: before any training.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: str | os.PathLike[str],
        *,
        profile: ProfileWindow | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.opened = run = open_run(config, workdir, devices=devices)
        self.train_step: Callable[..., tuple[TrainState, Metrics]] = run.train_step
        self._profile = profile
        self._samples = SampleSheet(config, run.model, run.dataset.codec, run.mesh, run.workdir)

    def validate(
        self, state: TrainState, beat: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Losses of the averaged parameters on the validation split, the same draws every time.

        Args:
          state: whose averaged parameters are evaluated.
          beat: called after every batch.
        """
        totals: dict[str, float] = {}
        total_weight = 0.0
        run, config = self.opened, self.opened.config
        batches = evaluation_batches(
            run.dataset,
            run.model.text,
            "validation",
            batch_size=config.data.batch_size,
            num_tokens=config.model.num_tokens,
            mesh=run.mesh,
            max_clips=config.validation_clips,
            with_noise=run.model.objective.wants_pairs,
        )
        for index, batch in enumerate(batches):
            key = jax.random.fold_in(run.keys.validation, index)
            metrics = dict(run.evaluate_step(state.ema, run.frozen, batch, key))
            weight = float(metrics.pop("weight"))
            total_weight += weight
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + weight * float(value)
            beat()
        return {name: value / total_weight for name, value in totals.items()}

    def _start(self, checkpoints: Checkpoints) -> _Start:
        """The last checkpoint, or a new state."""
        run = self.opened
        restored = checkpoints.restore_latest(to_items(run.abstract))
        if restored is None:
            return _Start(run.first_state(), 0, 0)
        run.release_source()
        state, progress = from_items(restored.items), restored.progress
        step = int(state.step)
        if progress.get("next_batch", step) != step:
            raise ConfigError(
                f"the checkpoint of step {restored.step} in {run.workdir.path} goes on with batch "
                f"{progress['next_batch']}, not with {step}: it is of another program"
            )
        logger.info("resuming %s after step %d", run.workdir.path, step)
        return _Start(state, step, progress.get("skipped", 0))

    def _compile(self) -> None:
        """Compiles the step before the first batch is asked for, and says what it needs."""
        if not isinstance(self.train_step, Program):
            return
        run, before = self.opened, compilations.count()
        batch = programs.abstract_batch(run.config, run.model.text, run.mesh)
        compiled = self.train_step.compile(run.abstract, run.frozen, batch, run.keys.train)
        self.train_step = compiled
        cache = compilations.count().since(before).describe_cache()
        logger.info("the training step is %s; %s", compiled.report, cache)

    def run(self) -> TrainState:
        """Trains from the last checkpoint, or from the start, to `num_steps`.

        Raises:
          NonFiniteStep: a loss is not finite, and no more may be skipped; names the step.
          CheckpointError: a checkpoint cannot be written or none can be read.
          WorkdirError: another process trains in this workdir, or has begun to.
          Preempted: after SIGTERM or Ctrl-C on any host, when all of them have saved.
        """
        with only_training(self.opened.workdir.path) as guard:
            return self._run(guard)

    def _run(self, guard: Guard) -> TrainState:
        config, path = self.opened.config, self.opened.workdir.path
        checkpoints = Checkpoints(
            path,
            keep=config.checkpoints_to_keep,
            keep_every=config.keep_every,
            best_metric=config.best_metric,
        )
        start = self._start(checkpoints)
        state = start.state
        if start.step >= config.num_steps:
            logger.info("%s is complete: %d steps", path, start.step)
        else:
            self._compile()
            with contextlib.ExitStack() as stack:
                stack.callback(checkpoints.settle)
                session = self._open(start, checkpoints, guard, stack)
                try:
                    state = self._train(start, session)
                except NonFiniteStep as error:  # on all hosts alike
                    checkpoints.wait()
                    good = checkpoints.steps()
                    left = f"step {good[-1]}" if good else "none: the run had not saved yet"
                    raise NonFiniteStep(f"{error}. The last good checkpoint is {left}") from error
        # Not where this host alone has failed: closing waits for the others.
        checkpoints.close()
        return state

    def _open(
        self,
        start: _Start,
        checkpoints: Checkpoints,
        guard: Guard,
        stack: contextlib.ExitStack,
    ) -> _Session:
        """Everything that the steps need; closed, last first, with the stack."""
        run, config, path = self.opened, self.opened.config, self.opened.workdir.path
        codec, devices = run.dataset.codec, run.mesh.devices.flatten().tolist()
        columns = config.model.num_tokens // codec.tokens_per_column
        clip_seconds = columns * codec.samples_per_column / codec.sample_rate
        teacher = run.context.teacher and run.context.teacher.config
        meter = Meter(config, clip_seconds, devices, teacher=teacher)
        watchdog = stack.enter_context(Watchdog(path / HOSTS_FOLDER, config.hang_timeout))
        preemption = stack.enter_context(Preemption())
        is_first_host = jax.process_index() == 0
        writer = stack.enter_context(
            MetricsWriter(path, start_step=start.step, enabled=is_first_host)
        )
        batches = stack.enter_context(
            TrainBatches(
                run.dataset,
                run.model.text,
                config.data,
                num_tokens=config.model.num_tokens,
                seed=config.seed,
                mesh=run.mesh,
                start=start.step,
                with_noise=run.model.objective.wants_pairs,
            )
        )
        reporter = StepReporter(
            config, writer, meter, name=str(path), first_step=start.step, skipped=start.skipped
        )
        stack.callback(reporter.close)
        profiler = Profiler(self._profile, lambda: run.workdir.folder(PROFILE_FOLDER))
        stack.callback(profiler.close)
        return _Session(
            checkpoints, batches, writer, meter, reporter, profiler, watchdog, preemption, guard
        )

    def _train(self, start: _Start, session: _Session) -> TrainState:
        run, config = self.opened, self.opened.config
        batches, reporter = session.batches, session.reporter
        beat, meter = session.watchdog.heartbeat, session.meter
        state = start.state
        meter.resume()
        for step in range(start.step + 1, config.num_steps + 1):
            beat(step, "data")
            batch = next(batches)
            beat(step, "step")
            with session.profiler.step(step):
                state, metrics = self.train_step(state, run.frozen, batch, run.keys.train)
            session.profiler.after(step, state.step.block_until_ready)
            reporter.step(step, metrics, batches.waited)
            evaluates = step % config.evaluate_every == 0 or step == config.num_steps
            saves = config.checkpoint_every and step % config.checkpoint_every == 0
            stops = session.preemption.reached(step)
            if not (evaluates or saves or stops):
                continue
            reporter.finish(batches.waited)
            meter.pause()
            if evaluates:
                self._evaluate(step, state, session)
            else:
                self._save(step, state, session, None)
            if stops and step < config.num_steps:
                session.checkpoints.wait()
                raise Preempted(step, session.preemption.signal)
            meter.resume()
        beat(config.num_steps, "save")
        session.checkpoints.wait()
        return state

    def _evaluate(self, step: int, state: TrainState, session: _Session) -> None:
        beat, writer = session.watchdog.heartbeat, session.writer
        beat(step, "evaluation")
        validation = self.validate(state, lambda: beat(step, "evaluation"))
        writer.write_scalars(
            step, {f"validation/{name}": value for name, value in validation.items()}
        )
        self._save(step, state, session, validation)
        beat(step, "samples")
        self._samples.write(step, state.ema, writer)
        writer.flush()

    def _save(
        self, step: int, state: TrainState, session: _Session, metrics: dict[str, float] | None
    ) -> None:
        session.watchdog.heartbeat(step, "save")
        session.guard.check()
        session.writer.flush()  # a checkpoint never is ahead of its metrics
        progress = session.batches.state() | {"skipped": session.reporter.skipped}
        session.checkpoints.save(step, to_items(state), metrics, progress)
