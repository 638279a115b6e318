"""Prompts to sound: a trained model, its codec and the devices of its sampler as one object.

    pipeline = fasttta_jax.load("runs/demo/student")
    for clip in pipeline.generate(["a dog barks", "rain"], seed=3):
        clip.save(f"{clip.prompt}.wav")

Dimensions: N tokens, C channels, S audio samples.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from fasttta_jax.audio.files import AudioFormat, playback_level, write_audio
from fasttta_jax.config import DecodeConfig
from fasttta_jax.config.checks import NOT_NEGATIVE, check, check_choice, check_fields
from fasttta_jax.decode import Known
from fasttta_jax.generation.sampler import MAX_SEED, Sampler, States, check_seeds
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.parallel.mesh import batch_shards
from fasttta_jax.text import LearnedTextEncoder
from fasttta_jax.text.vocabulary import unknown_words_log
from fasttta_jax.workdir.restore import TrainedModel, load_trained


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How clips are made; None is what the run was configured with.

    Attributes:
      seed: of the first clip; clip i has seed + i.
      batch_size: most clips computed together; rounded up to fill all devices.
      num_iterations: of decoding, 1 to the number of tokens.
      guidance_scale: strength of classifier-free guidance; 1 is none.
      temperature: scale of the noise.
      with_states: also keep the tokens behind every iteration.
    """

    seed: int = 0
    batch_size: int = 8
    num_iterations: int | None = None
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
        """The run's settings with those that are given here in their place."""
        names = "num_iterations", "guidance_scale", "temperature"
        values = {name: getattr(self, name) for name in names}
        return dataclasses.replace(
            run, **{name: value for name, value in values.items() if value is not None}
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A sound that was generated.

    Attributes:
      audio: float32 waveform, as loud as the model made it; its peak may be beyond 1.
      sample_rate: samples per second.
      prompt: what it was made from.
      seed: what it was made with.
      tokens: float32 latents.
      known: True where a token was given.
      states: the tokens behind every iteration, [T, N, C] and [T, N], where they were asked for.
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

    def sampler(self, config: GenerateConfig, num_known: int = 0) -> Sampler:
        """The token sampler of these settings.

        Raises:
          ValueError: more iterations than tokens to generate.
        """
        shards = batch_shards(self.mesh)
        return Sampler(
            self.trained.model,
            config.decode_config(self.trained.config.decode),
            self.mesh,
            math.ceil(config.batch_size / shards) * shards,
            num_known,
            config.with_states,
        )

    def generate(
        self,
        prompts: Iterable[str],
        *,
        seed: int = 0,
        seeds: Iterable[int] | None = None,
        num_iterations: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        known: Known | None = None,
        batch_size: int = 8,
        with_states: bool = False,
        with_not_finite: bool = False,
    ) -> Iterator[Clip]:
        """A clip for every prompt, in order, computed a batch at a time as they are taken.

        A clip depends on its prompt, its seed, its known tokens and the settings, and not on the
        batch that it is computed in. The arguments are checked at once, before the first clip.

        Args:
          prompts: any number; what is no list is read as it is needed. "" is an unconditional clip.
          seed: see `GenerateConfig`, also for the other settings.
          seeds: one a prompt, in place of `seed`; read as they are needed, like the prompts.
          known: given tokens, [1, N, C] for all clips or [len(prompts), N, C]; as many in each.
          with_not_finite: a clip with values that are not finite is no error: its `is_finite` says.

        Raises:
          ValueError: a setting, seed or known token that does not fit; or, when a batch is read,
            prompts or seeds that end before the others.
          FloatingPointError: at the clip, which has values that are not finite.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the string {prompts!r}; allowed: a list of strings")
        config = GenerateConfig(
            seed, batch_size, num_iterations, guidance_scale, temperature, with_states
        )
        num_known = 0 if known is None else int(np.sum(known.mask[0]))
        if isinstance(prompts, Sized):
            # One prompt alone need not pay for a whole batch.
            config = dataclasses.replace(config, batch_size=min(batch_size, max(1, len(prompts))))
            last = seed + max(0, len(prompts) - 1)
            if isinstance(seeds, Sized) and len(seeds) != len(prompts):
                raise ValueError(
                    f"{len(seeds)} seeds for {len(prompts)} prompts; allowed: one each"
                )
            if seeds is None and last > MAX_SEED:
                raise ValueError(f"seed + {last - seed} is {last}; allowed: 0 to {MAX_SEED}")
            if known is not None and len(known.mask) not in (1, len(prompts)):
                raise ValueError(
                    f"known has {len(known.mask)} clips; allowed: 1 or {len(prompts)}, the prompts"
                )
        if isinstance(seeds, Sequence):
            check_seeds(seeds)
        requests = zip(prompts, itertools.count(seed)) if seeds is None else _pairs(prompts, seeds)
        clips = self._clips(self.sampler(config, num_known), requests, known)
        return clips if with_not_finite else map(_finite, clips)

    def _clips(
        self, sampler: Sampler, requests: Iterator[tuple[str, int]], known: Known | None
    ) -> Iterator[Clip]:
        trained, first = self.trained, 0
        while batch := list(itertools.islice(requests, sampler.batch_size)):
            prompts, seeds = [prompt for prompt, _ in batch], [seed for _, seed in batch]
            self._note_unknown(prompts)
            part = _known_rows(known, first, len(batch))
            tokens, states = sampler(trained.params, prompts, seeds, part)
            audio = decode_padded(trained, tokens, sampler.batch_size)
            mask = np.zeros(tokens.shape[:2], bool) if part is None else np.asarray(part.mask)
            for row, (prompt, seed) in enumerate(batch):
                yield Clip(
                    audio[row],
                    trained.codec.sample_rate,
                    prompt,
                    seed,
                    tokens[row],
                    mask[row],
                    None if states is None else States(states.tokens[row], states.masked[row]),
                )
            first += len(batch)


def decode_padded(
    trained: TrainedModel, tokens: Float[np.ndarray, "n N C"], batch_size: int
) -> Float[np.ndarray, "n S"]:
    """Audio of tokens, decoded in a batch of fixed size so that one program serves."""
    padded = np.zeros((batch_size, *tokens.shape[1:]), np.float32)
    padded[: len(tokens)] = tokens
    return np.asarray(trained.codec.decode(jnp.asarray(padded)))[: len(tokens)]


def _pairs(prompts: Iterable[str], seeds: Iterable[int]) -> Iterator[tuple[str, int]]:
    """A prompt and a seed for each clip; ValueError where one of them ends before the other."""
    ended = object()
    for number, (prompt, seed) in enumerate(itertools.zip_longest(prompts, seeds, fillvalue=ended)):
        if prompt is ended or seed is ended:
            first, second = ("prompts", "seeds") if prompt is ended else ("seeds", "prompts")
            raise ValueError(
                f"{first} end after {number}, {second} go on; allowed: one seed a prompt"
            )
        yield cast(str, prompt), cast(int, seed)


def _finite(clip: Clip) -> Clip:
    if not clip.is_finite:
        raise FloatingPointError(
            f"the sound for {clip.prompt!r}, seed {clip.seed}, is not finite; the checkpoint or "
            "the guidance scale may be at fault"
        )
    return clip


def _known_rows(known: Known | None, first: int, number: int) -> Known | None:
    """The known tokens of some clips, [number, N, C]."""
    if known is None:
        return None
    rows = slice(first, first + number) if len(known.mask) > 1 else np.zeros(number, int)
    return Known(np.asarray(known.tokens)[rows], np.asarray(known.mask)[rows])
