"""Several encoded datasets as one: training draws from all of them, each with its share.

Which dataset the clip number i of a run comes from, and which of its clips that is, is a function
of (seed, i). `BLOCK` clips in a row hold every dataset in exactly its share, rounded to one in
`BLOCK`, in an order that is drawn anew for each block. Within a dataset all clips come once before
one comes again, shuffled as they are without others.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from fasttta_jax.config import DataConfig, ModelConfig
from fasttta_jax.config.run import SMALLEST_SHARE
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset, Records
from fasttta_jax.storage.files import read_json
from fasttta_jax.text.table import SUMMARY_FILE

BLOCK = round(1 / SMALLEST_SHARE)
_STREAM = 0x6D6978
"""Keeps the draws of a block apart from other uses of the seed."""


def open_dataset(config: DataConfig) -> EncodedDataset:
    """The dataset at `data.path`, those of `data.mixture` mixed in where there are any.

    Raises:
      DatasetError: one is missing or incomplete, or two do not fit together; names them.
      StorageError: one is a URL that cannot be read.
    """
    return Mixture(config) if config.mixture else EncodedDataset(config.path, config.cache)


class Mixture(EncodedDataset):
    """The dataset at `data.path`, with those of `data.mixture` mixed in.

    It has the codec and the tokenizer of the first, and the tables of embeddings of all. Clips of
    validation are those of `data.validation_paths`.

    Raises:
      DatasetError: a folder or a part of it is missing, two have other codecs, or two are one.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config.path, config.cache)
        others = (EncodedDataset(path, config.cache) for path in config.mixture)
        self._parts = (EncodedDataset(config.path, config.cache), *others)
        self._weights = config.weights
        names = (config.path, *config.mixture)
        self._validation = [
            part
            for name, part in zip(names, self._parts, strict=True)
            if name in (config.validation_paths or names[:1])
        ]
        first = self._parts[0]
        seen: dict[pathlib.Path, str] = {}
        for name, part in zip(names, self._parts, strict=True):
            _check_codecs(first, part)
            other = seen.setdefault(pathlib.Path(part.path).resolve(), name)
            if other != name:
                raise DatasetError(
                    f"{other} and {name} are one folder; allowed in a mixture: each of them once"
                )

    @property
    def parts(self) -> tuple[EncodedDataset, ...]:
        return self._parts

    @property
    def weights(self) -> tuple[float, ...]:
        return self._weights

    def fingerprint(self) -> str:
        """Hash of all of the datasets, in order."""
        hashes = [part.fingerprint() for part in self._parts]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def split(self, split: str) -> Any:
        """The records of a split: for validation of the datasets that are named for it."""
        if split != "validation":
            return super().split(split)
        return Spread([part.split(split) for part in self._validation])

    def check(self, model: ModelConfig) -> None:
        super().check(model)
        if model.text.encoder == "frozen":
            for part in self._parts[1:]:
                _check_streams(self._parts[0], part)


class Spread(Sequence[dict[str, Any]]):
    """Records of several datasets, each once and spread evenly: a prefix has its share of all."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self.metadata = parts[0].metadata
        self._parts = parts
        self._order = sorted(
            ((index + 0.5) / len(part), number, index)
            for number, part in enumerate(parts)
            for index in range(len(part))
        )

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        _, number, place = self._order[index]
        return self._parts[number][place]


def _check_codecs(first: EncodedDataset, other: EncodedDataset) -> None:
    shapes = [(each.codec.tokens_per_column, each.codec.token_dim) for each in (first, other)]
    hashes = [each.codec_hash()[:12] for each in (first, other)]
    if hashes[0] != hashes[1]:
        what = "token columns of shape {}" if shapes[0] != shapes[1] else "the codec {}"
        said = [what.format(each) for each in (shapes if shapes[0] != shapes[1] else hashes)]
        raise DatasetError(
            f"{first.path} has {said[0]} and {other.path} has {said[1]}, so that their tokens mean "
            "other sounds; allowed in a mixture: one codec (data.encode_latents --codec)"
        )


def _check_streams(first: EncodedDataset, other: EncodedDataset) -> None:
    said = []
    for dataset in (first, other):
        file = dataset.text_folder / SUMMARY_FILE
        if not file.is_file():
            raise DatasetError(
                f"{dataset.path} has no table of text embeddings; `python -m data.embed_text` "
                "makes one"
            )
        summary = read_json(file)
        said.append({name: summary.get(name) for name in ("streams", "made_from")})
    for name in ("streams", "made_from"):
        if said[0][name] != said[1][name]:
            raise DatasetError(
                f"the text embeddings of {first.path} and of {other.path} differ: {name} is "
                f"{said[0][name]} and {said[1][name]}; allowed in a mixture: the same networks "
                "(data.embed_text)"
            )


@dataclasses.dataclass(frozen=True)
class Draws:
    """Which dataset each clip of a run comes from: `draws(index)`.

    Attributes:
      weights: of the datasets, none below `SMALLEST_SHARE` of their sum.
      seed: of the order.
    """

    weights: tuple[float, ...]
    seed: int

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Clips of each dataset in a block: the weights by largest remainder."""
        exact = BLOCK * np.asarray(self.weights) / sum(self.weights)
        counts = np.floor(exact + 1e-9).astype(int)  # a rounding error of the division is none
        for number in np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]:
            counts[number] += 1
        return tuple(counts.tolist())

    def __call__(self, index: int) -> tuple[int, int]:
        """The dataset of clip `index`, and how many clips of that dataset came before."""
        block, place = divmod(index, BLOCK)
        datasets, ranks = _block(self, block)
        number = int(datasets[place])
        return number, block * self.counts[number] + int(ranks[place])


@functools.lru_cache(maxsize=16)
def _block(draws: Draws, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The dataset of each place in a block, and its rank among those of its dataset, [BLOCK]."""
    rng = np.random.default_rng([_STREAM, draws.seed, block])
    datasets = rng.permutation(np.repeat(np.arange(len(draws.counts)), draws.counts))
    ranks = np.empty(BLOCK, int)
    for number, count in enumerate(draws.counts):
        ranks[datasets == number] = np.arange(count)
    return datasets, ranks


class Mixed(grain.MapDataset):
    """Clips of endless datasets in the order of `Draws`."""

    def __init__(self, parents: Sequence[grain.MapDataset], draws: Draws) -> None:
        super().__init__(parents)
        self._draws = draws

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        number, place = self._draws(index)
        return self._parents[number][place]


def part_seed(seed: int, number: int) -> int:
    """The seed of a dataset's own order; that of the first is the run's."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
