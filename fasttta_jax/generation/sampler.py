"""The compiled token sampler: captions and seeds to a batch of tokens.

A clip depends on its prompt, its seed, its known tokens and the settings, not on the batch it is
computed in.
Dimensions: B clips, N tokens, C channels, T iterations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from fasttta_jax.config import DecodeConfig
from fasttta_jax.config.checks import check
from fasttta_jax.decode import DecodeResult, Known, parallel_decode, plan_segments
from fasttta_jax.multihost.distributed import to_host
from fasttta_jax.parallel.compile import Program, compile_sampler
from fasttta_jax.parallel.mesh import AnyMesh, batch_shards
from fasttta_jax.parallel.rows import spread_rows
from fasttta_jax.systems import TextToAudio
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Key, Params

MAX_SEED = 2**32 - 1
MAX_PROGRAMS = 32


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


class States(NamedTuple):
    """How decoding filled clips in: the state behind every iteration.

    Attributes:
      tokens: latents, zero where nothing is revealed yet.
      masked: True where nothing is revealed yet.
    """

    tokens: Float[np.ndarray, "*B T N C"]
    masked: Bool[np.ndarray, "*B T N"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples the tokens of a batch of one size; samplers of equal settings share one program.

    Attributes:
      model: of a run.
      config: iterations, guidance, temperature.
      mesh: devices; the batch is split over them. On an abstract mesh the program only compiles.
      batch_size: clips computed together; must divide over the mesh.
      num_known: tokens of every clip that will be given.
      with_states: also return the state behind every iteration.

    Raises:
      ValueError: more iterations than tokens to generate, or a batch that cannot be split.
    """

    model: TextToAudio
    config: DecodeConfig
    mesh: AnyMesh
    batch_size: int
    num_known: int = 0
    with_states: bool = False

    def __post_init__(self) -> None:
        shards = batch_shards(self.mesh)
        allowed = f"multiples of {shards}, the parts that a batch is split into over the mesh"
        check(self.batch_size % shards == 0, "batch_size", self.batch_size, allowed)
        plan_segments(self.config, self.model.config.num_tokens, self.num_known)

    @property
    def program(self) -> Program[DecodeResult]:
        """The jitted function of (parameters, text, start); its states are [B, T, ...]."""
        return _compiled(self.model, self.config, self.mesh, self.num_known, self.with_states)

    def inputs(
        self, prompts: Sequence[str], seeds: Sequence[int], known: Known | None = None
    ) -> tuple[TextBatch, Start]:
        """What `program` takes after the parameters, padded to the batch size.

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
        text = self.model.text.tokenize([*prompts, *[""] * surplus])
        numbers = np.asarray([*seeds, *[0] * surplus], np.uint32)
        keys = jax.vmap(jax.random.key)(numbers)
        start = Start(keys, self._padded(known, len(prompts)))
        assert isinstance(self.mesh, Mesh), "an abstract mesh has no devices for arrays"
        return spread_rows((text, start), self.mesh)

    def _padded(self, known: Known | None, num_prompts: int) -> Known | None:
        """`known` as checked arrays of a whole batch; the last clip fills the surplus."""
        if known is None:
            if self.num_known:
                raise ValueError(f"known is missing; this sampler takes {self.num_known} a clip")
            return None
        tokens, mask = np.asarray(known.tokens, np.float32), np.asarray(known.mask, bool)
        shape = (num_prompts, self.model.config.num_tokens, self.model.config.token_dim)
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
        return Known(tokens[rows], mask[rows])

    def __call__(
        self,
        params: Params,
        prompts: Sequence[str],
        seeds: Sequence[int],
        known: Known | None = None,
    ) -> tuple[Float[np.ndarray, "B N C"], States | None]:
        """Tokens, and states where this sampler keeps them; for arguments and errors see `inputs`.

        On a mesh of several hosts all of them call this with the same arguments, and get all.
        """
        found = to_host(self.program(params, *self.inputs(prompts, seeds, known)))
        tokens, states = jax.tree.map(lambda rows: rows[: len(prompts)], found)
        return tokens, None if states is None else States(*states)


@functools.lru_cache(MAX_PROGRAMS)
def _compiled(
    model: TextToAudio,
    config: DecodeConfig,
    mesh: AnyMesh,
    num_known: int,
    with_states: bool,
) -> Program[Any]:
    """Jitted once for equal arguments; every batch size is a specialization of its own."""

    def sample(params: Params, text: TextBatch, start: Start) -> DecodeResult:
        tokens, states = parallel_decode(
            model,
            params,
            model.condition(params, text),
            start.keys,
            config,
            num_tokens=model.config.num_tokens,
            token_dim=model.config.token_dim,
            known=start.known,
            num_known=num_known,
            return_states=with_states,
        )
        # The first axis is the one that is split over the mesh.
        return DecodeResult(tokens, jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1), states))

    return compile_sampler(sample, mesh)
