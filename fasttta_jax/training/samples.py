"""The sound of a run on its way: the config's sample prompts as audio and pictures."""

from __future__ import annotations

import logging
from typing import Any

import jax
from jax.sharding import Mesh

from fasttta_jax.audio.files import playback_level, write_audio
from fasttta_jax.codecs import Codec
from fasttta_jax.config import RunConfig
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.storage.files import write_atomically
from fasttta_jax.systems import System
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.metrics_log import MetricsWriter
from fasttta_jax.workdir.restore import TrainedModel

logger = logging.getLogger(__name__)

SAMPLE_SEED = 0


class SampleSheet:
    """Generates the same prompts with the same seed each time; all hosts take part.

    Args:
      config: prompts and decoding.
      model: what trains.
      codec: tokens to audio.
      mesh: devices.
      workdir: the sheets go to its samples/.
    """

    def __init__(
        self,
        config: RunConfig,
        model: System,
        codec: Codec,
        mesh: Mesh,
        workdir: Workdir,
    ) -> None:
        self._config, self._model, self._codec = config, model, codec
        self._mesh, self._workdir = mesh, workdir
        self._prompts = list(config.sample_prompts)

    def write(self, step: int, params: Any, writer: MetricsWriter) -> None:
        """Samples with `params`; the first host writes. Nothing without prompts.

        A sample that is not finite does not stop a run: a warning names it, the others are written.
        """
        prompts = self._prompts
        if not prompts:
            return
        workdir = str(self._workdir.path)
        trained = TrainedModel(self._config, self._model, params, self._codec, step, workdir)
        clips = Pipeline(trained, self._mesh).generate(
            prompts,
            seeds=[SAMPLE_SEED] * len(prompts),
            batch_size=len(prompts),
            with_not_finite=True,
        )
        made = list(enumerate(clips))
        if jax.process_index() != 0:
            return
        if lost := [f"{index} ({clip.prompt!r})" for index, clip in made if not clip.is_finite]:
            logger.warning("samples of step %d that are not finite: %s", step, ", ".join(lost))
        if len(lost) == len(made):
            return
        with self._workdir.folder(f"samples/{step:08d}") as folder:
            for index, clip in made:
                if not clip.is_finite:
                    continue
                audio, rate = playback_level(clip.audio), clip.sample_rate
                picture = spectrogram_png(clip.audio, rate, title=clip.prompt)
                write_audio(folder / f"{index:02d}.wav", audio, rate)
                write_atomically(folder / f"{index:02d}.png", picture)
                writer.write_audio(step, f"samples/{index:02d}", audio, rate)
                writer.write_image(step, f"samples/{index:02d}", picture)
