"""The energy score of a model's tokens on clips it has not seen: one function for both systems.

Every clip is masked once, as in training, and each masked token is drawn M times given the visible
ones: by the teacher's whole diffusion chain or by the student's single step. The score is proper:
in expectation nothing scores lower than the true conditional distribution of a token. It says
nothing about how tokens go together, so it does not rank the quality of whole clips.

Source: Gneiting & Raftery (2007), section 4.3; the form of `losses.energy`.
Dimensions: B clips, N tokens, C channels, M draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float64

from fasttta_jax.config import MaskingConfig
from fasttta_jax.decoding.loop import Decodable
from fasttta_jax.losses.energy import energy_score
from fasttta_jax.masking import max_visible, sample_masks
from fasttta_jax.parallel.compile import compile_sampler
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Conditioning, Key, Params

Batch = Mapping[str, Any]
"""tokens [B, N, C], weight [B] (0 for padding), text: the text encoder's arrays."""


@runtime_checkable
class Conditional(Decodable, Protocol):
    """A backbone and a token sampler that reads captions: a teacher, a student, or a stand-in."""

    def condition(self, params: Params, batch: TextBatch) -> Conditioning: ...


class HeldOutEnergy(NamedTuple):
    """The score of one model.

    Attributes:
      mean: over all masked tokens; lower is better.
      standard_error: of the mean, with clips as the independent units; NaN for a single clip.
      num_clips: clips that were masked.
      num_tokens: masked tokens among them.
      num_draws: M.
    """

    mean: float
    standard_error: float
    num_clips: int
    num_tokens: int
    num_draws: int


def held_out_energy(
    model: Conditional,
    params: Params,
    batches: Iterable[Batch],
    masking: MaskingConfig,
    *,
    seed: int,
    mesh: Mesh,
    num_draws: int = 4,
    alpha: float = 1.0,
) -> HeldOutEnergy:
    """Scores a model on clips; masks and draws depend on the seed and a clip's place alone.

    Args:
      model: of a run.
      params: its parameters.
      batches: global batches of one size, padded with clips of weight 0 at the end.
      masking: distribution of the mask rate; scores under different ones cannot be compared.
      seed: of masks and draws.
      mesh: devices; a batch is split over them.
      num_draws: M.
      alpha: exponent of the distance.

    Raises:
      ValueError: there are no clips, or fewer than two samples a token.
    """

    def score(
        params: Params, batch: Batch, keys: Key
    ) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        return _clip_sums(model, params, batch, keys, masking, num_draws, alpha)

    compiled = compile_sampler(score, mesh)
    root = jax.random.key(seed)
    sums, counts, start = [], [], 0
    for batch in batches:
        places = np.arange(start, start + len(batch["weight"]), dtype=np.uint32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, places)
        is_clip = np.asarray(batch["weight"]) > 0
        totals, numbers = compiled(params, batch, keys)
        sums.append(np.asarray(totals, np.float64)[is_clip])
        counts.append(np.asarray(numbers, np.float64)[is_clip])
        start += len(places)
    if not sum(map(len, sums)):
        raise ValueError("there are no clips to score")
    return _summary(np.concatenate(sums), np.concatenate(counts), num_draws)


def _clip_sums(
    model: Conditional,
    params: Params,
    batch: Batch,
    keys: Key,
    masking: MaskingConfig,
    num_draws: int,
    alpha: float,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """For each clip the sum of the scores of its masked tokens, and their number."""
    tokens = batch["tokens"]
    num_tokens = tokens.shape[1]
    mask_keys, draw_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    masked = jax.vmap(lambda key: sample_masks(key, 1, num_tokens, **masking.rates)[0])(mask_keys)
    hidden = model.hidden(
        params,
        tokens,
        masked,
        model.condition(params, batch["text"]),
        num_visible=max_visible(num_tokens, masking.minimum),
    )

    def draw(keys: Key) -> Float[Array, "B N C"]:
        return model.sample_tokens(params, hidden, None, jnp.float32(1), keys, jnp.float32(1))

    every_draw = jax.vmap(lambda key: jax.random.split(key, num_draws), out_axes=1)(draw_keys)
    scores = energy_score(jax.vmap(draw)(every_draw), tokens, alpha=alpha)
    return jnp.sum(scores * masked, axis=1), jnp.sum(masked, axis=1, dtype=jnp.float32)


def _summary(
    sums: Float64[np.ndarray, " n"], counts: Float64[np.ndarray, " n"], num_draws: int
) -> HeldOutEnergy:
    # A ratio of two sums over clips; its error is that of the residuals (Cochran, 1977, ch. 2.11).
    num_clips = len(sums)
    mean = sums.sum() / counts.sum()
    error = math.nan
    if num_clips > 1:
        residuals = sums - mean * counts
        variance = num_clips / (num_clips - 1) * np.sum(residuals**2)
        error = math.sqrt(variance) / counts.sum()
    return HeldOutEnergy(float(mean), float(error), num_clips, int(counts.sum()), num_draws)
