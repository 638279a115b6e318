"""A training run from config to last checkpoint.

Order of things: data, mesh, model, teacher (for a student), state; then restore; then steps.
Metrics are read one step late, so the loop never waits for the device except to save. The data
position and every draw are functions of the step, so a restored state is all there is to resume.
"""

from __future__ import annotations

import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from fasttta_jax.audio import write_audio
from fasttta_jax.checkpoint import Checkpoints
from fasttta_jax.config import RunConfig
from fasttta_jax.generation import TokenGenerator
from fasttta_jax.input_pipeline import (
    DatasetError,
    evaluation_batches,
    train_batches,
)
from fasttta_jax.metrics.pictures import mel_picture
from fasttta_jax.metrics.writer import MetricsWriter
from fasttta_jax.models.text_to_audio import Teacher, build_model
from fasttta_jax.on_the_fly import open_dataset
from fasttta_jax.parallel.compile import (
    abstract_state,
    compile_evaluate,
    compile_init,
    compile_train_step,
)
from fasttta_jax.parallel.mesh import check_batch_size, make_mesh
from fasttta_jax.training.initialization import Source, initial_params, open_source
from fasttta_jax.training.optim import make_optimizer
from fasttta_jax.training.state import TrainState, from_items, new_state, to_items
from fasttta_jax.training.steps import (
    StepContext,
    student_loss,
    student_step,
    teacher_loss,
    teacher_step,
)
from fasttta_jax.typing import Key, Metrics, Params
from fasttta_jax.workdir import Workdir

logger = logging.getLogger(__name__)

VALIDATION_CLIPS = 512
SAMPLE_SEED = 0


class Trainer:
    """Everything a run needs, built once; `run` trains to the end.

    Args:
      config: the run.
      workdir: its folder.
    """

    def __init__(self, config: RunConfig, workdir: str | pathlib.Path) -> None:
        self.config = config
        self.workdir = Workdir(workdir)
        self.dataset = open_dataset(config.data)
        self.dataset.check(config.model)
        for split in ("train", "validation"):
            if not len(self.dataset.split(split)):
                raise DatasetError(
                    f"data.path is {config.data.path!r}, whose {split} split is empty"
                )
        self.mesh = make_mesh(config.mesh)
        check_batch_size(config.data.batch_size, self.mesh)
        self.workdir.prepare(config, self.dataset)
        self.text = self.workdir.text()
        self.model = build_model(config, self.text)
        self.source = self._open_source() if config.stage == "student" else None
        freeze = config.stage == "student" and config.distillation.freeze_backbone
        optimizer = make_optimizer(config.optimizer, config.num_steps, freeze_backbone=freeze)
        teacher = None
        if config.stage == "student" and self.source and config.distillation.weight > 0:
            teacher = self.source.trained
        self.context = StepContext(
            config,
            self.model,
            optimizer,
            teacher.model if teacher else None,  # type: ignore[arg-type]
        )
        self.frozen: Params = teacher.params if teacher else {}
        self.root_key, self.init_key, self.evaluation_key = jax.random.split(
            jax.random.key(config.seed), 3
        )
        self.abstract = abstract_state(self._fresh_state, self.mesh)
        self.train_step = compile_train_step(self._step, self.abstract, self.frozen, self.mesh)
        self.evaluate_step = compile_evaluate(self._evaluate, self.mesh)
        self._generator: TokenGenerator | None = None

    def _open_source(self) -> Source | None:
        return open_source(self.config, self.workdir, self.mesh, self.model)

    def _fresh_state(self, key: Key) -> TrainState:
        return new_state(self.context.optimizer, self.model.init(key))

    def _new_state(self, key: Key, given: Params) -> TrainState:
        params = initial_params(self.config, self.model, self.source, key, given)
        return new_state(self.context.optimizer, params)

    def _step(
        self, state: TrainState, frozen: Params, batch: Any, key: Key
    ) -> tuple[TrainState, Metrics]:
        if isinstance(self.model, Teacher):
            return teacher_step(state, batch, key, context=self.context)
        return student_step(state, frozen, batch, key, context=self.context)

    def _evaluate(self, params: Params, frozen: Params, batch: Any, key: Key) -> Metrics:
        if isinstance(self.model, Teacher):
            return teacher_loss(self.context, params, batch, key, train=False)[1]
        return student_loss(self.context, params, frozen, batch, key, train=False)[1]

    def validate(self, state: TrainState) -> dict[str, float]:
        """Losses of the averaged parameters on the validation split, the same draws every time."""
        totals: dict[str, float] = {}
        total_weight = 0.0
        batches = evaluation_batches(
            self.dataset,
            self.text,
            "validation",
            batch_size=self.config.data.batch_size,
            num_tokens=self.config.model.num_tokens,
            mesh=self.mesh,
            max_clips=VALIDATION_CLIPS,
        )
        for index, batch in enumerate(batches):
            key = jax.random.fold_in(self.evaluation_key, index)
            metrics = self.evaluate_step(state.ema, self.frozen, batch, key)
            weight = float(jnp.sum(batch["weight"]))
            total_weight += weight
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + weight * float(value)
        return {name: value / total_weight for name, value in totals.items()}

    def write_samples(self, step: int, state: TrainState, writer: MetricsWriter) -> None:
        """Generates the sample prompts and writes them as audio and pictures."""
        prompts = [prompt for prompt in self.config.sample_prompts.split("|") if prompt.strip()]
        if not prompts:
            return
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if self._generator is None:
            batch_size = math.ceil(len(prompts) / shards) * shards
            self._generator = TokenGenerator(self.model, self.config.decode, self.mesh, batch_size)
        tokens = self._generator(state.ema, prompts, [SAMPLE_SEED] * len(prompts))
        audio = np.asarray(self.dataset.codec.decode(jnp.asarray(tokens)))
        rate = self.dataset.codec.sample_rate
        folder = self.workdir.path / "samples" / f"{step:08d}"
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for index, (prompt, clip) in enumerate(zip(prompts, audio, strict=True)):
                if np.isfinite(clip).all():
                    peak = max(1.0, float(np.abs(clip).max()))
                    write_audio(folder / f"{index:02d}.wav", clip / peak, rate, "wav")
                    picture = mel_picture(clip, rate, title=prompt)
                    (folder / f"{index:02d}.png").write_bytes(picture)
                    writer.write_audio(step, f"samples/{index:02d}", clip / peak, rate)
                    writer.write_image(step, f"samples/{index:02d}", picture)

    def _first_state(self, checkpoints: Checkpoints) -> TrainState:
        """That of the last checkpoint, or a new one; the source's parameters are let go."""
        items = checkpoints.restore_latest(to_items(self.abstract))
        if items is None:
            self.source = self.source or self._open_source()
            given = self.source.params if self.source else {}
            state = compile_init(self._new_state, self.abstract, self.mesh)(self.init_key, given)
        else:
            state = from_items(items)
            logger.info("resuming %s after step %d", self.workdir.path, int(state.step))
        self.source = None
        return state

    def run(self) -> TrainState:
        """Trains from the last checkpoint, or from the start, to `num_steps`.

        Raises:
          FloatingPointError: the loss is not finite; names the step.
          CheckpointError: a checkpoint cannot be written or none can be read.
        """
        config = self.config
        checkpoints = Checkpoints(self.workdir.path, keep=config.checkpoints_to_keep)
        state = self._first_state(checkpoints)
        first_step = int(state.step)
        if first_step >= config.num_steps:
            logger.info("%s is complete: %d steps", self.workdir.path, first_step)
            checkpoints.close()
            return state
        is_first_host = jax.process_index() == 0
        with MetricsWriter(
            self.workdir.path, start_step=first_step, enabled=is_first_host
        ) as writer:
            state = self._train(state, first_step, checkpoints, writer)
        checkpoints.close()
        return state

    def _train(
        self, state: TrainState, first_step: int, checkpoints: Checkpoints, writer: MetricsWriter
    ) -> TrainState:
        config = self.config
        batches = train_batches(
            self.dataset,
            self.text,
            config.data,
            num_tokens=config.model.num_tokens,
            seed=config.seed,
            first_step=first_step,
            mesh=self.mesh,
        )
        progress = tqdm.tqdm(
            desc=str(self.workdir.path),
            initial=first_step,
            total=config.num_steps,
            unit="step",
            mininterval=1.0,
            disable=jax.process_index() != 0,
        )
        late: tuple[int, Metrics] | None = None
        with progress:
            for step in range(first_step + 1, config.num_steps + 1):
                state, metrics = self.train_step(state, self.frozen, next(batches), self.root_key)
                if late is not None:
                    self._report(*late, checkpoints, writer, progress)
                late = (step, metrics)
                progress.update()
                if step % config.evaluate_every == 0 or step == config.num_steps:
                    self._report(*late, checkpoints, writer, progress)
                    late = None
                    self._evaluate_and_save(step, state, checkpoints, writer)
        return state

    def _report(
        self,
        step: int,
        metrics: Metrics,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        progress: tqdm.tqdm,
    ) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
            checkpoints.wait()
            good = checkpoints.steps()
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise FloatingPointError(
                f"training stopped at step {step}: {shown}. The last good checkpoint is "
                + (f"step {good[-1]}" if good else "none: the run had not saved yet")
            )
        if step % self.config.log_every == 0 or step == self.config.num_steps:
            writer.write_scalars(step, {f"train/{name}": value for name, value in values.items()})
            progress.set_postfix({"loss": f"{values['loss']:.3f}"}, refresh=False)

    def _evaluate_and_save(
        self, step: int, state: TrainState, checkpoints: Checkpoints, writer: MetricsWriter
    ) -> None:
        validation = self.validate(state)
        writer.write_scalars(
            step, {f"validation/{name}": value for name, value in validation.items()}
        )
        writer.flush()
        checkpoints.save(step, to_items(state), validation)
        self.write_samples(step, state, writer)
