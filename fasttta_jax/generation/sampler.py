"""The compiled token sampler: captions and seeds to a batch of tokens.

A clip depends on its texts, its seed, its guidance, its known tokens and the settings, not on the
batch it is computed in.
Dimensions: B clips, N tokens, C channels, T iterations, X texts of a clip.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from fasttta_jax.config import DecodeConfig
from fasttta_jax.config.checks import check
from fasttta_jax.decoding.loop import DecodeResult, Guidance, Known
from fasttta_jax.multihost.distributed import to_host
from fasttta_jax.parallel.compile import Program, compile_sampler
from fasttta_jax.parallel.mesh import AnyMesh, batch_shards
from fasttta_jax.parallel.rows import spread_rows
from fasttta_jax.randomness import fold_in_each
from fasttta_jax.systems import System
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Key, Params

MAX_SEED = 2**32 - 1
MAX_PROGRAMS = 32
WINDOWS = zlib.crc32(b"windows")
"""Under which a clip's key has those of its windows; the first has the clip's own."""


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError where a seed is not 0 to 2**32 - 1; names it."""
    for index, seed in enumerate(seeds):
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seeds[{index}] is {seed}; allowed: 0 to {MAX_SEED}")


class TextGuidance(NamedTuple):
    """`decode.Guidance` before its text is embedded.

    Attributes:
      scales: float32 strength in each iteration.
      negative: tokenized texts, one a clip; "" is none. None where the model guides itself.
    """

    scales: Float[jax.Array | np.ndarray, "B T"]
    negative: TextBatch | None


class Start(NamedTuple):
    """What every clip starts from, beside its texts.

    Attributes:
      keys: one key per clip, [B].
      known: tokens that are given, if any.
      guidance: of each clip, where the sampler guides.
      weights: of the texts at each position, where a clip has several.
    """

    keys: Key
    known: Known | None
    guidance: TextGuidance | None = None
    weights: Float[jax.Array | np.ndarray, "B N X"] | None = None


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
      config: iterations, guidance, temperature. The scale of guidance is an input of the program:
        samplers that differ in it alone share one, but for a scale of 1, which guides nothing.
      mesh: devices; the batch is split over them. On an abstract mesh the program only compiles.
      batch_size: clips computed together; must divide over the mesh.
      tokens_per_column: of the codec; needed where the order is that of a grid.
      num_known: tokens of every clip that will be given.
      num_texts: X, texts of every clip.
      with_states: also return the state behind every iteration.

    Raises:
      ValueError: more iterations than tokens to generate, counts or an order of other tokens, or a
        batch that cannot be split.
    """

    model: System
    config: DecodeConfig
    mesh: AnyMesh
    batch_size: int
    tokens_per_column: int | None = None
    num_known: int = 0
    num_texts: int = 1
    with_states: bool = False

    def __post_init__(self) -> None:
        shards = batch_shards(self.mesh)
        allowed = f"multiples of {shards}, the parts that a batch is split into over the mesh"
        check(self.batch_size % shards == 0, "batch_size", self.batch_size, allowed)
        self.model.check_decoding(
            self.config, self.tokens_per_column, self.num_known, self.num_texts
        )

    @property
    def guided(self) -> bool:
        return self.config.guidance_scale != 1.0

    @property
    def program(self) -> Program[DecodeResult]:
        """The jitted function of (parameters, text, start); its states are [B, T, ...]."""
        any_scale = dataclasses.replace(self.config, guidance_scale=2.0 if self.guided else 1.0)
        return _compiled(
            self.model,
            any_scale,
            self.mesh,
            self.tokens_per_column,
            self.num_known,
            self.with_states,
        )

    def inputs(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        known: Known | None = None,
        *,
        negatives: Sequence[str] | None = None,
        scales: Sequence[float] | None = None,
        weights: Float[np.ndarray, "n N X"] | None = None,
        window: int = 0,
    ) -> tuple[TextBatch, Start]:
        """What `program` takes after the parameters, padded to the batch size.

        Args:
          texts: `num_texts` for each of at most `batch_size` clips, those of a clip in a row.
          seeds: one a clip, 0 to 2**32 - 1.
          known: given tokens [n, N, C], exactly `num_known` in each clip.
          negatives: what guidance leads away from, one a clip; "", nothing, where None.
          scales: strength of guidance, one a clip; the config's where None.
          weights: of a clip's texts at each position; needed where there are several.
          window: number of this stretch of the clip, which has randomness of its own.

        Raises:
          ValueError: a seed is out of range, or the lengths or the known tokens do not fit.
        """
        num_clips, num_texts = len(seeds), self.num_texts
        if not 1 <= num_clips <= self.batch_size or len(texts) != num_clips * num_texts:
            raise ValueError(
                f"{len(texts)} prompts and {num_clips} seeds; allowed: 1 to {self.batch_size} "
                f"clips, the batch size, and one seed and {num_texts} prompts a clip"
            )
        check_seeds(seeds)
        surplus = self.batch_size - num_clips
        text = self.model.text.tokenize([*texts, *[""] * surplus * num_texts])
        keys = jax.vmap(jax.random.key)(np.asarray([*seeds, *[0] * surplus], np.uint32))
        if window:
            keys = fold_in_each(fold_in_each(keys, WINDOWS), window)
        rows = np.minimum(np.arange(self.batch_size), num_clips - 1)  # the last fills the surplus
        start = Start(
            keys,
            self._known(known, num_clips, rows),
            self._guidance(negatives, scales, num_clips, rows),
            self._weights(weights, num_clips, rows),
        )
        assert isinstance(self.mesh, Mesh), "an abstract mesh has no devices for arrays"
        return spread_rows((text, start), self.mesh)

    def _guidance(
        self,
        negatives: Sequence[str] | None,
        scales: Sequence[float] | None,
        num_clips: int,
        rows: np.ndarray,
    ) -> TextGuidance | None:
        negatives = [""] * num_clips if negatives is None else list(negatives)
        scales = [self.config.guidance_scale] * num_clips if scales is None else list(scales)
        if len(negatives) != num_clips or len(scales) != num_clips:
            raise ValueError(
                f"{len(negatives)} negative prompts and {len(scales)} scales of guidance for "
                f"{num_clips} clips; allowed: one each"
            )
        self.model.check_negatives(negatives)
        if not self.guided:
            if any(negatives) or any(scale != 1.0 for scale in scales):
                raise ValueError("this sampler guides nothing: its config's guidance_scale is 1")
            return None
        found = {scale: self._scales(scale) for scale in set(scales)}
        every = np.stack([found[scales[row]] for row in rows])
        if self.model.guides_itself and not any(negatives):
            for scale in scales:
                self.model.check_strength("guidance_scale", scale)
            return TextGuidance(every, None)
        return TextGuidance(every, self.model.text.tokenize([negatives[row] for row in rows]))

    def _scales(self, scale: float) -> Float[np.ndarray, " T"]:
        """Strength in each iteration, rounded as a constant of the program would be."""
        config = dataclasses.replace(self.config, guidance_scale=scale)
        return np.asarray(self.model.guidance_scales(config, self.num_known), np.float32)

    def _weights(
        self, weights: Float[np.ndarray, "n N X"] | None, num_clips: int, rows: np.ndarray
    ) -> Float[np.ndarray, "B N X"] | None:
        shape = (num_clips, self.model.config.num_tokens, self.num_texts)
        if weights is None and self.num_texts == 1:
            return None
        if weights is None or weights.shape != shape:
            found = None if weights is None else weights.shape
            raise ValueError(f"weights are {found}; allowed: {shape} for {self.num_texts} texts")
        return np.asarray(weights, np.float32)[rows]

    def _known(self, known: Known | None, num_clips: int, rows: np.ndarray) -> Known | None:
        """`known` as checked arrays of a whole batch."""
        if known is None:
            if self.num_known:
                raise ValueError(f"known is missing; this sampler takes {self.num_known} a clip")
            return None
        tokens, mask = np.asarray(known.tokens, np.float32), np.asarray(known.mask, bool)
        shape = (num_clips, self.model.config.num_tokens, self.model.config.token_dim)
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
        return Known(tokens[rows], mask[rows])

    def __call__(
        self,
        params: Params,
        texts: Sequence[str],
        seeds: Sequence[int],
        known: Known | None = None,
        **more: Any,
    ) -> tuple[Float[np.ndarray, "B N C"], States | None]:
        """Tokens, and states where this sampler keeps them; for arguments and errors see `inputs`.

        On a mesh of several hosts all of them call this with the same arguments, and get all.
        """
        found = to_host(self.program(params, *self.inputs(texts, seeds, known, **more)))
        tokens, states = jax.tree.map(lambda rows: rows[: len(seeds)], found)
        return tokens, None if states is None else States(*states)


@functools.lru_cache(MAX_PROGRAMS)
def _compiled(
    model: System,
    config: DecodeConfig,
    mesh: AnyMesh,
    tokens_per_column: int | None,
    num_known: int,
    with_states: bool,
) -> Program[Any]:
    """Jitted once for equal arguments; every batch size is a specialization of its own."""

    def sample(params: Params, text: TextBatch, start: Start) -> DecodeResult:
        guidance, weights = None, None
        if start.guidance is not None:
            text_away = start.guidance.negative
            negative = None if text_away is None else model.condition(params, text_away)
            guidance = Guidance(jnp.asarray(start.guidance.scales), negative)
        if start.weights is not None:
            weights = jnp.asarray(start.weights)
        tokens, states = model.generate(
            params,
            model.condition(params, text),
            start.keys,
            config,
            tokens_per_column=tokens_per_column,
            known=start.known,
            num_known=num_known,
            guidance=guidance,
            weights=weights,
            return_states=with_states,
        )
        # The first axis is the one that is split over the mesh.
        return DecodeResult(tokens, jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1), states))

    return compile_sampler(sample, mesh)
