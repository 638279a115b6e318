"""What is computed from trained runs: sounds for captions, energy scores, sampling times.

Dimensions: n clips, S samples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import tqdm
from jaxtyping import Float

from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationError, EvaluationSetup
from fasttta_jax.evaluation.timing import SamplingTime, quickest, time_samplers
from fasttta_jax.generation.pipeline import GenerateConfig, Pipeline
from fasttta_jax.input_pipeline.batches import evaluation_batches
from fasttta_jax.metrics.energy_score import Conditional, HeldOutEnergy, held_out_energy
from fasttta_jax.parallel.mesh import batch_shards

TIMING_BATCH = 8


class Runs:
    """Computes with the runs of a setup.

    Args:
      config: batch size, seed, number of clips.
      setup: the runs and their data.

    Attributes:
      encoded: the data that the runs were trained on.
      num_samples: length of a clip.

    Raises:
      EvaluationError: the setup has no runs.
    """

    def __init__(self, config: EvaluationConfig, setup: EvaluationSetup) -> None:
        if setup.encoded is None or setup.num_samples is None:
            raise EvaluationError("there are no runs")
        self.config = config
        self.setup = setup
        self.encoded = setup.encoded
        self.num_samples = setup.num_samples

    def pipeline(self, name: str) -> Pipeline:
        """A run with the settings of decoding that it is evaluated with."""
        trained = self.setup.trained[name]
        config = dataclasses.replace(trained.config, decode=self.setup.decode[name])
        return Pipeline(dataclasses.replace(trained, config=config), self.setup.mesh)

    def sounds(self, name: str, prompts: Sequence[str]) -> Float[np.ndarray, "n S"]:
        """What a run generates for the prompts; each clip's seed is that of its place.

        Raises:
          FloatingPointError: a clip is not finite.
        """
        seeds = np.random.SeedSequence(self.config.seed).generate_state(len(prompts)).tolist()
        batch_size = self.config.batch_size
        clips = self.pipeline(name).generate(prompts, seeds=seeds, batch_size=batch_size)
        bar = tqdm.tqdm(clips, f"generating, {name}", len(prompts), unit="clip")
        return np.stack([clip.audio for clip in bar])

    def energy(self, name: str) -> HeldOutEnergy | None:
        """The energy score of a run on test clips, one iteration, without guidance; None where its
        network makes no tokens given others.
        """
        setup, trained = self.setup, self.setup.trained[name]
        if not isinstance(trained.model, Conditional):
            return None
        number = min(self.config.num_energy_clips, len(self.encoded.split(self.config.split)))
        batches = evaluation_batches(
            self.encoded,
            trained.model.text,
            self.config.split,
            batch_size=self.config.batch_size,
            num_tokens=trained.config.model.num_tokens,
            mesh=setup.mesh,
            max_clips=number,
        )
        total = math.ceil(number / self.config.batch_size)
        progress = tqdm.tqdm(batches, f"energy score, {name}", total, unit="batch")
        return held_out_energy(
            trained.model,
            trained.params,
            iter(progress),  # the bar itself passes for a collection, of which checks read one item
            trained.config.masking,
            seed=self.config.seed,
            mesh=setup.mesh,
        )

    @property
    def timing_batch(self) -> int:
        """Clips sampled together when runs are timed: TIMING_BATCH, or the next that splits."""
        shards = batch_shards(self.setup.mesh)
        return math.ceil(TIMING_BATCH / shards) * shards

    @functools.cached_property
    def quickest(self) -> str | None:
        """The run that sampling times are held against; None where there is none to compare."""
        return quickest({name: self.pipeline(name).trained.config for name in self.setup.trained})

    def times(self, prompts: Sequence[str]) -> dict[str, SamplingTime]:
        """Sampling times of all runs, taken in turns."""
        timed = GenerateConfig(batch_size=self.timing_batch)
        samplers = {
            name: (self.pipeline(name).sampler(timed), trained.params)
            for name, trained in self.setup.trained.items()
        }
        clip_seconds = self.num_samples / self.setup.sample_rate
        return time_samplers(samplers, prompts, clip_seconds=clip_seconds)
