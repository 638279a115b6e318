"""Prompts to waveforms: tokenizing, batching, the jitted sampler and the codec.

A clip depends on its prompt, its seed and the settings, not on the batch it is computed in.
Dimensions: B clips, N tokens, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fasttta_jax.config import DecodeConfig
from fasttta_jax.decode import parallel_decode
from fasttta_jax.models.text_to_audio import Student, Teacher
from fasttta_jax.parallel.compile import compile_sampler
from fasttta_jax.parallel.mesh import check_batch_size
from fasttta_jax.restore import TrainedModel
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Key, Params, Tokens


class TokenGenerator:
    """The compiled sampler of one model, settings and batch size.

    Args:
      model: teacher or student.
      config: iterations, guidance, temperature.
      mesh: devices; the batch is split over them.
      batch_size: clips computed together; must divide over the mesh.
    """

    def __init__(
        self, model: Teacher | Student, config: DecodeConfig, mesh: Mesh, batch_size: int
    ) -> None:
        check_batch_size(batch_size, mesh)
        self.batch_size = batch_size
        self._model = model
        tokens = model.config.num_tokens
        if config.num_iterations > tokens:
            raise ValueError(
                f"num_iterations is {config.num_iterations}; allowed: 1 to the model's {tokens} "
                "tokens"
            )

        def sample(params: Params, text: TextBatch, keys: Key) -> Tokens:
            return parallel_decode(
                model,
                params,
                model.condition(params, text),
                keys,
                config,
                num_tokens=tokens,
                token_dim=model.config.token_dim,
            )

        self._sample = compile_sampler(sample, mesh)

    def inputs(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[TextBatch, Key]:
        """What `sample` takes: tokenized prompts and one key a clip, padded to the batch size."""
        surplus = self.batch_size - len(prompts)
        text = self._model.text.tokenize([*prompts, *[""] * surplus])
        numbers = np.asarray([*seeds, *[0] * surplus], np.uint32)
        return text, jax.vmap(jax.random.key)(numbers)

    def sample(self, params: Params, text: TextBatch, keys: Key) -> Tokens:
        """The compiled program alone: tokens [batch_size, N, C] on the devices, not waited for."""
        return self._sample(params, text, keys)

    def __call__(self, params: Params, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Tokens, float32 [len(prompts), N, C]; at most `batch_size` prompts, padded inside."""
        text, keys = self.inputs(prompts, seeds)
        return np.asarray(self.sample(params, text, keys))[: len(prompts)]


def generate(
    trained: TrainedModel,
    generator: TokenGenerator,
    prompts: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[np.ndarray]:
    """Waveforms, float32 [S], one per prompt, in order, a batch at a time.

    Raises:
      FloatingPointError: a clip came out with values that are not finite.
    """
    for start in range(0, len(prompts), generator.batch_size):
        stop = start + generator.batch_size
        tokens = generator(trained.params, prompts[start:stop], seeds[start:stop])
        audio = decode_padded(trained, tokens, generator.batch_size)
        for row, clip in enumerate(audio):
            if not np.isfinite(clip).all():
                raise FloatingPointError(
                    f"the sound for {prompts[start + row]!r}, seed {seeds[start + row]}, is not "
                    "finite; the checkpoint or the guidance scale may be at fault"
                )
            yield clip


def decode_padded(trained: TrainedModel, tokens: np.ndarray, batch_size: int) -> np.ndarray:
    """Audio [B, S] of tokens [B, N, C], in a batch of fixed size so that one program serves."""
    padded = np.zeros((batch_size, *tokens.shape[1:]), np.float32)
    padded[: len(tokens)] = tokens
    return np.asarray(trained.codec.decode(jnp.asarray(padded)))[: len(tokens)]
