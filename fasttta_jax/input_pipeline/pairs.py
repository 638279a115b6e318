"""Pairs: encoded clips that a network made of noise, whose seed their records hold.

`python -m data.pairs` writes them, and objectives that want pairs read both ends of a path from
them: the tokens, and the noise that `systems.latent.noise_of` makes of the seed.
"""

from __future__ import annotations

from fasttta_jax.config import DataConfig
from fasttta_jax.config.checks import check
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset

NOISE_SEED = "noise_seed"
"""Of a record."""
NOISE_SEEDS = "noise_seeds"
"""Of a batch, uint32 [B]."""


def check_pairs(dataset: EncodedDataset, config: DataConfig, num_tokens: int) -> None:
    """Whether every clip that training draws is a pair of so many tokens.

    Args:
      dataset: the run's.
      config: where it lies.
      num_tokens: of the model; noise belongs to all tokens of its clip, and to no window of them.

    Raises:
      ConfigError: tokens are to be drawn anew.
      DatasetError: a dataset is empty or holds no pairs, or clips of another length; names it.
    """
    allowed = "False where the objective learns from pairs, whose tokens belong to one noise"
    check(not config.sample_posterior, "data.sample_posterior", config.sample_posterior, allowed)
    for index, part in enumerate(dataset.parts):
        where = f"data.{'mixture holds' if index else 'path is'} {str(part.path)!r}"
        records = part.split("train")
        if not len(records):
            raise DatasetError(f"{part.path} has no training clips")
        record = records[0]  # all have its features
        if NOISE_SEED not in record:
            raise DatasetError(
                f"{where}, whose records hold no noise; the objective learns from pairs, which "
                "`python -m data.pairs` makes"
            )
        found = record["tokens"].shape[0] * record["tokens"].shape[1]
        if found != num_tokens:
            raise DatasetError(
                f"{where}, whose pairs have {found} tokens; allowed: model.num_tokens = "
                f"{num_tokens}, as a window of a clip has no noise of its own"
            )
