"""Prompts to sound: a trained model, its codec and the devices of its sampler as one object.

    pipeline = fasttta_jax.load("runs/demo/student")
    for clip in pipeline.generate(["a dog barks", "rain"], seed=3):
        clip.save(f"{clip.prompt}.wav")

Dimensions: N tokens, C channels, S audio samples.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import cast

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from fasttta_jax.audio.files import AudioFormat, playback_level, write_audio
from fasttta_jax.config import Counts, DecodeConfig, Order
from fasttta_jax.config.checks import NOT_NEGATIVE, check, check_choice, check_fields
from fasttta_jax.decoding.loop import Known
from fasttta_jax.generation.edits import Edits
from fasttta_jax.generation.requests import Request, read_requests
from fasttta_jax.generation.sampler import MAX_SEED, Sampler, States
from fasttta_jax.generation.sequences import Sequences
from fasttta_jax.generation.time_budget import MeasuredTimes, best_within, check_wait
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.parallel.mesh import batch_shards
from fasttta_jax.text import LearnedTextEncoder
from fasttta_jax.text.vocabulary import unknown_words_log
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.restore import TrainedModel, load_trained

logger = logging.getLogger(__name__)

DECODING = ("num_iterations", "counts", "order", "guided", "guidance_scale", "temperature")
"""Fields of `DecodeConfig` that may be given for a call."""


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How clips are made; None is what the run was configured with.

    Attributes:
      seed: of the first clip; clip i has seed + i.
      batch_size: most clips computed together; rounded up to fill all devices.
      num_iterations: of decoding, 1 to the number of tokens.
      counts: see `DecodeConfig`, also for order and guided; numbers may be text, such as "1,2,5".
      order: which tokens come first.
      guided: in which iterations there is guidance.
      guidance_scale: strength of classifier-free guidance; 1 is none.
      temperature: scale of the noise.
      with_states: also keep the tokens behind every iteration.
    """

    seed: int = 0
    batch_size: int = 8
    num_iterations: int | None = None
    counts: Counts | None = None
    order: Order | None = None
    guided: tuple[float, float] | str | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    with_states: bool = False

    def __post_init__(self) -> None:
        check(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        if self.num_iterations is not None:
            allowed = "1 to the number of tokens"
            check(self.num_iterations >= 1, "num_iterations", self.num_iterations, allowed)
        given = [
            name for name in ("guidance_scale", "temperature") if getattr(self, name) is not None
        ]
        check_fields(self, "", NOT_NEGATIVE, *given)

    def decode_config(self, run: DecodeConfig) -> DecodeConfig:
        """The run's settings with those that are given here in their place.

        Raises:
          ConfigError: they do not fit together.
        """
        values = {name: getattr(self, name) for name in DECODING}
        return run.changed(**{name: value for name, value in values.items() if value is not None})


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A sound that was generated.

    Attributes:
      audio: float32 waveform, as loud as the model made it; its peak may be beyond 1.
      sample_rate: samples per second.
      prompt: what it was made from.
      seed: what it was made with.
      tokens: float32 latents of all that was decoded, whose sound may have been cut.
      known: True where a token was given.
      states: the tokens behind every iteration, [T, N, C] and [T, N], where they were asked for
        and the clip is one window.
    """

    audio: Float[np.ndarray, " S"]
    sample_rate: int
    prompt: str
    seed: int
    tokens: Float[np.ndarray, "N C"]
    known: Bool[np.ndarray, " N"]
    states: States | None

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate

    @property
    def is_finite(self) -> bool:
        """Whether the audio is without NaN and infinity."""
        return bool(np.isfinite(self.audio).all())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .wav, .flac, .ogg or .mp3 file; a peak beyond full scale is brought down.

        Raises:
          ValueError: another ending.
          OSError: the file cannot be written.
        """
        ending = pathlib.Path(path).suffix.removeprefix(".")
        check_choice(f"the ending of {path}", ending, AudioFormat)
        audio = playback_level(self.audio)
        write_audio(path, audio, self.sample_rate, cast(AudioFormat, ending))


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A trained model on a mesh, from prompts to sound.

    Cheap to make: samplers of equal models, settings and meshes share one compiled program in a
    process, whatever the parameters.

    Attributes:
      trained: network, averaged parameters on the mesh, codec, and the run's settings.
      mesh: devices; where it spans several hosts, all of them make the same calls.
    """

    trained: TrainedModel
    mesh: Mesh

    @classmethod
    def open(
        cls,
        workdir: str | os.PathLike[str] | None = None,
        which: str | int = "last",
        *,
        mesh: Mesh | None = None,
    ) -> Pipeline:
        """The pipeline of a trained model.

        Args:
          workdir: a run's folder, which need not be writable, an exported model, a name on the Hub,
            or None for the model that comes with the package; see `workdir.sources.find_model`.
          which: "last", "best" (lowest validation loss) or a step.
          mesh: all devices of this host where None.

        Raises:
          WorkdirError: no model or no checkpoint is there, or a file is not what was exported.
          CheckpointError: the checkpoint cannot be read.
        """
        mesh = local_mesh() if mesh is None else mesh
        return cls(load_trained(workdir, mesh, which=which), mesh)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words that training never saw; [] for text encoders that do not learn their words."""
        text = self.trained.model.text
        return text.unknown_words(prompt) if isinstance(text, LearnedTextEncoder) else []

    @property
    def known_words(self) -> tuple[str, ...]:
        """The words of a text encoder that learned them in training."""
        text = self.trained.model.text
        return text.words if isinstance(text, LearnedTextEncoder) else ()

    def _note_unknown(self, prompts: Sequence[str]) -> None:
        """Warns, once, of the words that the model does not know."""
        if unknown := [word for prompt in prompts for word in self.unknown_words(prompt)]:
            unknown_words_log.add(list(dict.fromkeys(unknown)), self.known_words)

    def filled(self, batch_size: int) -> int:
        """The clips of a batch, rounded up to fill all devices."""
        shards = batch_shards(self.mesh)
        return math.ceil(batch_size / shards) * shards

    def sampler(self, config: GenerateConfig, num_known: int = 0, num_texts: int = 1) -> Sampler:
        """The token sampler of these settings, for so many known tokens and texts of every clip.

        Where the settings do not say how many iterations there are, they are the run's, or as many
        as there are tokens to generate.

        Raises:
          ValueError: more iterations than tokens to generate, or counts or an order of others.
        """
        decode = config.decode_config(self.trained.config.decode)
        if config.num_iterations is None and not isinstance(config.counts, tuple):
            decode = decode.at_most(max(1, self.trained.config.model.num_tokens - num_known))
        return self._sampler(config, decode, num_known, num_texts)

    def _sampler(
        self, config: GenerateConfig, decode: DecodeConfig, num_known: int, num_texts: int
    ) -> Sampler:
        return Sampler(
            self.trained.model,
            decode,
            self.mesh,
            self.filled(config.batch_size),
            self.trained.codec.tokens_per_column,
            num_known=num_known,
            num_texts=num_texts,
            with_states=config.with_states,
        )

    @functools.cached_property
    def measured_times(self) -> MeasuredTimes:
        """What is known of the times of this model on these devices."""
        return MeasuredTimes(tree_hash(self.trained.params), self.mesh)

    def within(self, max_seconds: float, batch_size: int = 1) -> Pipeline:
        """The pipeline with the best measured setting that makes a batch in that time.

        The log says which; so does `trained.config.decode`.

        Args:
          max_seconds: from prompts to sound, once compiled.
          batch_size: clips computed together.

        Raises:
          TimeBudgetError: nothing was measured for so many clips, or all of it takes longer.
        """
        batch_size = self.filled(batch_size)
        best = best_within(self.measured_times.read(), max_seconds, batch_size)
        seconds = best.seconds_for(batch_size)
        logger.info("within %g s: %s (%.3g s for %d)", max_seconds, best, seconds, batch_size)
        trained = self.trained.with_sampling(best.decode, best.sampling_steps)
        return dataclasses.replace(self, trained=trained)

    def generate(
        self,
        prompts: Iterable[str],
        *,
        seed: int = 0,
        seeds: Iterable[int] | None = None,
        negative: str | Iterable[str] = "",
        guidance_scale: float | Iterable[float | None] | None = None,
        num_iterations: int | None = None,
        counts: Counts | None = None,
        order: Order | None = None,
        guided: tuple[float, float] | str | None = None,
        temperature: float | None = None,
        seconds: float | Iterable[float | None] | None = None,
        audio: str | os.PathLike[str] | None = None,
        keep: str | None = None,
        vary: str | os.PathLike[str] | None = None,
        share: float | None = None,
        loop: bool = False,
        timeline: str | None = None,
        known: Known | None = None,
        batch_size: int = 8,
        max_seconds: float | None = None,
        with_states: bool = False,
        with_not_finite: bool = False,
    ) -> Iterator[Clip]:
        """A clip for every prompt, in order, computed a batch at a time as they are taken.

        A clip depends on its prompt, its seed, its known tokens and the settings, and not on the
        batch that it is computed in. The arguments are checked at once, before the first clip;
        what has no length, as it is read.

        Args:
          prompts: any number; what is no list is read as it is needed. "" is an unconditional clip.
          seed: see `GenerateConfig`, also for the other settings.
          seeds: one a prompt, in place of `seed`.
          negative: what guidance leads away from, in place of no text; for all, or one a prompt.
          guidance_scale: for all, or one a prompt; None is the run's.
          seconds: of any length, for all, or one a prompt; None is the model's, the end of the
            timeline or the length of the varied sound. A loop has whole token columns.
          audio: see `generation.edits.Edits`, also for the edits that follow; of all clips.
          known: given tokens, [1, N, C] for all clips or [len(prompts), N, C], from the beginning.
          max_seconds: how long a batch may take; `within` then chooses how it is decoded. Goes with
            clips of the model's length, and with neither num_iterations nor edits.
          with_not_finite: a clip with values that are not finite is no error: its `is_finite` says.

        Raises:
          ValueError: a setting, seed or known token that does not fit, prompts, seeds or settings
            that end before the others, or edits that do not go together.
          AudioError: a sound file is missing or cannot be used.
          FloatingPointError: at the clip, which has values that are not finite.
        """
        config = GenerateConfig(
            seed=seed,
            batch_size=batch_size,
            num_iterations=num_iterations,
            counts=counts,
            order=order,
            guided=guided,
            temperature=temperature,
            with_states=with_states,
        )
        edits = Edits(audio, keep, vary, share, loop, timeline)
        if isinstance(prompts, Sized):
            # One prompt alone need not pay for a whole batch.
            config = dataclasses.replace(config, batch_size=min(batch_size, max(1, len(prompts))))
            if known is not None and len(known.mask) not in (1, len(prompts)):
                raise ValueError(
                    f"known has {len(known.mask)} clips; allowed: 1 or {len(prompts)}, the prompts"
                )
        pipeline = self
        if max_seconds is not None:
            chosen = {"num_iterations": num_iterations, "counts": counts, "order": order}
            chosen |= {"guided": guided, "seconds": seconds, "known": known}
            check_wait(max_seconds, chosen | edits.given())
            pipeline = self.within(max_seconds, config.batch_size)
        requests = read_requests(
            prompts,
            seed=seed,
            seeds=seeds,
            negative=negative,
            guidance_scale=guidance_scale,
            seconds=seconds,
            run_scale=pipeline.trained.config.decode.guidance_scale,
            check_strength=self.trained.model.check_strength,
        )
        each = isinstance(seconds, Iterable)
        batch_size = pipeline.filled(config.batch_size)
        sequences = Sequences.plan(
            pipeline.trained,
            functools.partial(pipeline._window_sampler, config),
            batch_size,
            edits,
            seconds=None if each else cast(float | None, seconds),
            each=each,
            known=known,
        )
        if sequences.is_one_window:
            pipeline.sampler(config, sequences.num_known)
        clips = pipeline._clips(sequences, batch_size, requests)
        return clips if with_not_finite else map(_finite, clips)

    def _window_sampler(
        self, config: GenerateConfig, scale: float, num_known: int, num_texts: int
    ) -> Sampler:
        """The sampler of a window, with no more iterations than tokens to make."""
        unknown = self.trained.config.model.num_tokens - num_known
        decode = config.decode_config(self.trained.config.decode).at_most(unknown)
        decode = dataclasses.replace(decode, guidance_scale=scale)
        return self._sampler(config, decode, num_known, num_texts)

    def _clips(
        self, sequences: Sequences, batch_size: int, requests: Iterator[Request]
    ) -> Iterator[Clip]:
        first, rate = 0, self.trained.codec.sample_rate
        while batch := list(itertools.islice(requests, batch_size)):
            self._note_unknown([text for each in batch for text in sequences.texts(each)])
            for request, made in zip(batch, sequences.make(batch, first), strict=True):
                tokens, known, states = made.tokens, made.known, made.states
                yield Clip(made.audio, rate, request.prompt, request.seed, tokens, known, states)
            first += len(batch)


def _finite(clip: Clip) -> Clip:
    if not clip.is_finite:
        raise FloatingPointError(
            f"the sound for {clip.prompt!r}, seed {clip.seed}, is not finite; the checkpoint or "
            "the guidance scale may be at fault"
        )
    return clip
