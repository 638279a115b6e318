"""Prompts to waveforms: tokenizing, batching, the jitted sampler and the codec.

A clip depends on its prompt, its seed, its known tokens and the settings, not on the batch it is
computed in.
Dimensions: B clips, N tokens, C channels, T iterations, S samples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decode import DecodeState, Known, parallel_decode, reveal_counts
from fasttta_jax.multihost.distributed import to_host
from fasttta_jax.parallel.compile import compile_sampler
from fasttta_jax.parallel.mesh import AnyMesh, check_batch_size
from fasttta_jax.parallel.rows import spread_rows
from fasttta_jax.systems import TextToAudio
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Key, Params, Tokens
from fasttta_jax.workdir.restore import TrainedModel

MAX_SEED = 2**32 - 1


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError where a seed is not 0 to 2**32 - 1; names it."""
    for index, seed in enumerate(seeds):
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seeds[{index}] is {seed}; allowed: 0 to {MAX_SEED}")


class Start(NamedTuple):
    """What every clip starts from, beside its text.

    Attributes:
      keys: one key per clip, [B].
      known: tokens that are given, if any.
    """

    keys: Key
    known: Known | None


class TokenGenerator:
    """The compiled sampler of one model, settings, batch size and number of known tokens.

    Args:
      model: of a run.
      config: iterations, guidance, temperature.
      mesh: devices; the batch is split over them.
      batch_size: clips computed together; must divide over the mesh.
      num_known: tokens of every clip that will be given.

    Attributes:
      program: the jitted sampler of (parameters, text, start).

    Raises:
      ValueError: more iterations than tokens to generate, or a batch that cannot be split.
    """

    def __init__(
        self,
        model: TextToAudio,
        config: DecodeConfig,
        mesh: AnyMesh,
        batch_size: int,
        *,
        num_known: int = 0,
    ) -> None:
        check_batch_size(batch_size, mesh)
        self.batch_size = batch_size
        self.num_known = num_known
        self._model, self._mesh = model, mesh
        num_tokens, token_dim = model.config.num_tokens, model.config.token_dim
        reveal_counts(num_tokens, num_known, config.num_iterations)

        decode = functools.partial(
            parallel_decode,
            model,
            config=config,
            num_tokens=num_tokens,
            token_dim=token_dim,
            num_known=num_known,
        )

        def sample(params: Params, text: TextBatch, start: Start) -> Tokens:
            conditioning = model.condition(params, text)
            return decode(params, conditioning, start.keys, known=start.known)

        def trace(params: Params, text: TextBatch, start: Start) -> tuple[Tokens, DecodeState]:
            conditioning = model.condition(params, text)
            tokens, states = decode(
                params, conditioning, start.keys, known=start.known, return_states=True
            )
            # The first axis is the one that is split over the mesh.
            return tokens, jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1), states)

        self.program = compile_sampler(sample, mesh)
        self._trace = compile_sampler(trace, mesh)

    def inputs(
        self, prompts: Sequence[str], seeds: Sequence[int], known: Known | None = None
    ) -> tuple[TextBatch, Start]:
        """What `sample` takes after the parameters, padded to the batch size.

        Args:
          prompts: at most `batch_size`.
          seeds: one a prompt, 0 to 2**32 - 1.
          known: given tokens [len(prompts), N, C], exactly `num_known` in each clip.

        Raises:
          ValueError: a seed is out of range, or the lengths or the known tokens do not fit.
        """
        if not 1 <= len(prompts) <= self.batch_size or len(seeds) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds; allowed: 1 to {self.batch_size}, "
                "the batch size, and one seed a prompt"
            )
        check_seeds(seeds)
        surplus = self.batch_size - len(prompts)
        text = self._model.text.tokenize([*prompts, *[""] * surplus])
        numbers = np.asarray([*seeds, *[0] * surplus], np.uint32)
        keys = jax.vmap(jax.random.key)(numbers)
        return spread_rows((text, Start(keys, self._padded(known, len(prompts)))), self._mesh)

    def _padded(self, known: Known | None, num_prompts: int) -> Known | None:
        """`known` as checked arrays of a whole batch; the last clip fills the surplus."""
        if known is None:
            if self.num_known:
                raise ValueError(f"known is missing; this sampler takes {self.num_known} a clip")
            return None
        tokens, mask = np.asarray(known.tokens, np.float32), np.asarray(known.mask, bool)
        shape = (num_prompts, self._model.config.num_tokens, self._model.config.token_dim)
        if tokens.shape != shape or mask.shape != shape[:2]:
            raise ValueError(
                f"known has tokens {tokens.shape} and a mask {mask.shape}; "
                f"expected {shape} and {shape[:2]}"
            )
        found = sorted(set(mask.sum(axis=1).tolist()))
        if found != [self.num_known]:
            raise ValueError(
                f"known gives {found} tokens a clip; this sampler takes {self.num_known} in each"
            )
        rows = np.minimum(np.arange(self.batch_size), num_prompts - 1)
        return Known(tokens[rows], mask[rows])  # type: ignore[arg-type]

    def sample(self, params: Params, text: TextBatch, start: Start) -> Tokens:
        """The compiled program alone: tokens [batch_size, N, C] on the devices, not waited for."""
        return self.program(params, text, start)

    def __call__(
        self,
        params: Params,
        prompts: Sequence[str],
        seeds: Sequence[int],
        known: Known | None = None,
    ) -> np.ndarray:
        """Tokens, float32 [len(prompts), N, C]; see `inputs` for arguments and errors.

        On a mesh of several hosts all of them call this with the same arguments, and get all.
        """
        tokens = self.sample(params, *self.inputs(prompts, seeds, known))
        return np.asarray(to_host(tokens))[: len(prompts)]

    def with_states(
        self,
        params: Params,
        prompts: Sequence[str],
        seeds: Sequence[int],
        known: Known | None = None,
    ) -> tuple[np.ndarray, DecodeState]:
        """Tokens and the states behind every iteration, clip by clip.

        Returns:
          float32 [len(prompts), N, C], and states of [len(prompts), T, N, C] and
          [len(prompts), T, N].
        """
        found = self._trace(params, *self.inputs(prompts, seeds, known))
        return jax.tree.map(lambda rows: np.asarray(rows)[: len(prompts)], found)


def generate(
    trained: TrainedModel,
    generator: TokenGenerator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    known: Known | None = None,
) -> Iterator[np.ndarray]:
    """Waveforms, float32 [S], one per prompt, in order, a batch at a time.

    Args:
      trained: parameters and codec.
      generator: the sampler.
      prompts: any number.
      seeds: one a prompt, 0 to 2**32 - 1.
      known: given tokens of every clip, [len(prompts), N, C].

    Raises:
      ValueError: see `TokenGenerator.inputs`.
      FloatingPointError: a clip came out with values that are not finite.
    """
    check_seeds(seeds)
    for part in _batches(len(prompts), generator.batch_size):
        batch = prompts[part], seeds[part], _rows(known, part)
        tokens = generator(trained.params, *batch)
        yield from _decode_checked(trained, tokens, *batch[:2], generator.batch_size)


def generate_with_states(
    trained: TrainedModel,
    generator: TokenGenerator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    known: Known | None = None,
) -> Iterator[tuple[np.ndarray, DecodeState]]:
    """As `generate`, each waveform with its states of [T, N, C] and [T, N]."""
    check_seeds(seeds)
    for part in _batches(len(prompts), generator.batch_size):
        batch = prompts[part], seeds[part], _rows(known, part)
        tokens, states = generator.with_states(trained.params, *batch)
        clips = _decode_checked(trained, tokens, *batch[:2], generator.batch_size)
        for row, clip in enumerate(clips):
            yield clip, DecodeState(states.tokens[row], states.masked[row])


def decode_padded(trained: TrainedModel, tokens: np.ndarray, batch_size: int) -> np.ndarray:
    """Audio [B, S] of tokens [B, N, C], in a batch of fixed size so that one program serves."""
    padded = np.zeros((batch_size, *tokens.shape[1:]), np.float32)
    padded[: len(tokens)] = tokens
    return np.asarray(trained.codec.decode(jnp.asarray(padded)))[: len(tokens)]


def _batches(length: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, length, batch_size):
        yield slice(start, start + batch_size)


def _rows(known: Known | None, part: slice) -> Known | None:
    return None if known is None else Known(known.tokens[part], known.mask[part])


def _decode_checked(
    trained: TrainedModel,
    tokens: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
) -> Iterator[np.ndarray]:
    audio = decode_padded(trained, tokens, batch_size)
    for prompt, seed, clip in zip(prompts, seeds, audio, strict=True):
        if not np.isfinite(clip).all():
            raise FloatingPointError(
                f"the sound for {prompt!r}, seed {seed}, is not finite; the checkpoint or the "
                "guidance scale may be at fault"
            )
        yield clip
