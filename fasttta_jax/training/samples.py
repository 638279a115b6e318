"""The sound of a run on its way: the config's sample prompts as audio and pictures."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fasttta_jax.audio.files import write_audio
from fasttta_jax.codecs import Codec
from fasttta_jax.config import RunConfig
from fasttta_jax.generation.sampler import TokenGenerator
from fasttta_jax.parallel.mesh import batch_shards
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.systems import TextToAudio
from fasttta_jax.workdir.folder import Workdir
from fasttta_jax.workdir.metrics_log import MetricsWriter

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
        model: TextToAudio,
        codec: Codec,
        mesh: Mesh,
        workdir: Workdir,
    ) -> None:
        self._config, self._model, self._codec = config, model, codec
        self._mesh, self._workdir = mesh, workdir
        self._prompts = list(config.sample_prompts)
        self._generator: TokenGenerator | None = None

    def write(self, step: int, params: Any, writer: MetricsWriter) -> None:
        """Samples with `params`; the first host decodes and writes. Nothing without prompts."""
        prompts = self._prompts
        if not prompts:
            return
        if self._generator is None:
            shards = batch_shards(self._mesh)
            batch_size = math.ceil(len(prompts) / shards) * shards
            self._generator = TokenGenerator(
                self._model, self._config.decode, self._mesh, batch_size
            )
        tokens = self._generator(params, prompts, [SAMPLE_SEED] * len(prompts))
        if jax.process_index() != 0:
            return
        audio, rate = np.asarray(self._codec.decode(jnp.asarray(tokens))), self._codec.sample_rate
        with self._workdir.folder(f"samples/{step:08d}") as folder:
            for index, (prompt, clip) in enumerate(zip(prompts, audio, strict=True)):
                if np.isfinite(clip).all():
                    peak = max(1.0, float(np.abs(clip).max()))
                    write_audio(folder / f"{index:02d}.wav", clip / peak, rate, "wav")
                    picture = spectrogram_png(clip, rate, title=prompt)
                    (folder / f"{index:02d}.png").write_bytes(picture)
                    writer.write_audio(step, f"samples/{index:02d}", clip / peak, rate)
                    writer.write_image(step, f"samples/{index:02d}", picture)
