"""Pairs of noise and the clips that a trained flow makes of it, once, before training on them.

    python -m data.pairs --workdir=runs/rivals/flow --data=runs/demo/encoded --out=runs/rivals/pairs

--workdir is a run whose network moves all tokens of a clip together, of objective "flow", or of
"reflow" for a second round. --data is an encoded dataset with its codec; the captions are those of
its clips. Every pair has a caption, the seed of its noise (`systems.latent.noise_of`), and the
tokens to which a solver takes that noise along the guided velocity, away from no text, in even
steps from time 1 to 0. Writes an encoded dataset, which training reads as any other:

    out/records            a TFDS dataset of tokens, seeds, captions and labels
    out/codec, out/text    those of --data

with --number pairs to train on, and a tenth as many to validate on, at most one for each such clip.
Clips come in a random order, each once before one comes again; a pair depends on its number and
--seed, and neither on --number nor on other pairs.

The work is cut into shards (`data.common.shards`): start the same command again after a kill, and
only what is missing is done. Processes that share a file system run it with their own --process_id
each.
Sources: Rectified Flow (Liu et al., 2022), AudioTurbo (2025), Rectified Diffusion (2024).
Dimensions: B clips, n pairs, N tokens, C channels.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from jaxtyping import Array, Float, Float64, Int, UInt32

from data.common.arguments import define_shard_flags
from data.common.batches import BATCH_SIZE, DTYPE
from data.common.codecs import copy_part
from data.common.shards import ITEMS_PER_SHARD, Item, Record, ShardedDataset, Summary
from data.common.tables import SPLITS
from fasttta_jax import cli
from fasttta_jax.codecs.columns import to_columns
from fasttta_jax.config.decode import MOST_ITERATIONS
from fasttta_jax.config.flow import Solver
from fasttta_jax.flow.jump import solve
from fasttta_jax.input_pipeline.pairs import NOISE_SEED
from fasttta_jax.input_pipeline.records import (
    CODEC_FOLDER,
    RECORDS_FOLDER,
    TEXT_FOLDER,
    EncodedDataset,
)
from fasttta_jax.parallel.compile import compile_sampler
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.files import as_path
from fasttta_jax.storage.shards import check_share
from fasttta_jax.storage.whole import remove_leftovers
from fasttta_jax.systems import FullLatent
from fasttta_jax.systems.latent import noise_of
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Params, unconditional
from fasttta_jax.workdir.folder import Workdir, same_files
from fasttta_jax.workdir.restore import TrainedModel, load_trained
from fasttta_jax.workdir.sources import find_model

NAME = "pairs"
FLOWS = ("flow", "reflow")
"""Objectives of networks that know the velocity at every time, and are told no guidance."""


class Draws(NamedTuple):
    """What the pairs of a split are made of.

    Attributes:
      clips: which clip of the split has the caption.
      captions: which of its captions, as a share of their number.
      seeds: of the noise.
    """

    clips: Int[np.ndarray, " n"]
    captions: Float64[np.ndarray, " n"]
    seeds: UInt32[np.ndarray, " n"]


def draw(seed: int, split: str, number: int, num_clips: int) -> Draws:
    """The first `number` pairs of a split of so many clips; more pairs begin with the same."""
    streams = np.random.SeedSequence([seed, SPLITS.index(split)]).spawn(3)
    order, captions = (np.random.default_rng(stream) for stream in streams[:2])
    rounds = [order.permutation(num_clips) for _ in range(math.ceil(number / num_clips))]
    return Draws(
        np.concatenate(rounds)[:number],
        captions.random(number),
        streams[2].generate_state(number),
    )


Program = Callable[[Params, TextBatch, UInt32[Array, " B"]], Float[Array, "B N C"]]


@functools.lru_cache(1)
def solver_program(model: FullLatent, guidance: float, steps: int, solver: Solver) -> Program:
    """(parameters, text, seeds of noise) -> the tokens that a flow makes of it."""
    shape = (model.config.num_tokens, model.config.token_dim)

    def tokens(params: Params, text: TextBatch, seeds: jax.Array) -> jax.Array:
        conditioning = model.condition(params, text)
        if guidance == 1:
            velocity = model.velocity(params, conditioning)
        else:
            scale = jnp.full(seeds.shape, guidance, jnp.float32)
            velocity = model.guided(params, conditioning, unconditional(conditioning), scale)
        start = jnp.zeros(seeds.shape, jnp.int32)
        points = np.linspace(1.0, 0.0, steps + 1)
        return solve(velocity, noise_of(seeds, shape), points, start, steps, solver)

    return compile_sampler(tokens, local_mesh())


class _Asked(NamedTuple):
    """All of a pair's record but the tokens."""

    id: str
    caption: str | None
    labels: str
    seed: np.uint32


class _Maker:
    """Makes pairs of a flow and an encoded dataset.

    Args:
      trained: the flow.
      program: of it.
      data: has captions and labels.
      draws: of every split.
      batch_size: rows of a batch, a multiple of the number of local devices.
    """

    def __init__(
        self,
        trained: TrainedModel,
        program: Program,
        data: EncodedDataset,
        draws: dict[str, Draws],
        batch_size: int,
    ) -> None:
        self._trained = trained
        self._program = program
        self._records = {split: data.split(split) for split in draws}
        self._draws = draws
        self._batch_size = batch_size

    def read(self, items: Iterable[Item]) -> Generator[list[_Asked], None, None]:
        """The pair of each item of the dataset to be."""
        for split, index in items:
            clip, share, seed = (values[index] for values in self._draws[split])
            record = self._records[split][int(clip)]
            captions = record["captions"]
            caption = captions[int(share * len(captions))] if captions else None
            labels = json.dumps(record["labels"], ensure_ascii=False)
            yield [_Asked(f"{record['id']}_{index}", caption, labels, seed)]

    def to_records(self, asked: Iterable[_Asked]) -> Iterator[Record]:
        """Of a shard, batch by batch; the last one is filled with its last pair."""
        batch: list[_Asked] = []
        for one in asked:
            batch.append(one)
            if len(batch) == self._batch_size:
                yield from self._records_of(batch)
                batch = []
        if batch:
            yield from self._records_of(batch)

    def _records_of(self, asked: list[_Asked]) -> Iterator[Record]:
        filled = asked + asked[-1:] * (self._batch_size - len(asked))
        text = self._trained.model.text.tokenize([one.caption or "" for one in filled])
        seeds = np.asarray([one.seed for one in filled], np.uint32)
        tokens = self._program(self._trained.params, text, jnp.asarray(seeds))
        columns = to_columns(tokens, self._trained.codec).astype(DTYPE)
        for one, values in zip(asked, columns, strict=False):
            yield {
                "id": one.id,
                "captions": [] if one.caption is None else [one.caption],
                "labels": one.labels,
                "tokens": values,
                NOISE_SEED: one.seed,
            }


def make(
    workdir: str,
    data: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    number: int = 2048,
    guidance: float = 3.0,
    steps: int = 10,
    solver: Solver = "euler",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    pairs_per_shard: int = ITEMS_PER_SHARD,
    process_id: int = 0,
    num_processes: int = 1,
) -> None:
    """Makes pairs of a trained flow, or what of them is missing, in `out`.

    Args:
      workdir: of the flow: whatever `load_trained` takes.
      data: an encoded dataset of its codec.
      out: folder to write; must not hold other data.
      number: pairs to train on.
      guidance: strength of classifier-free guidance; 1 is none.
      steps: of the solver.
      solver: "euler" asks for one velocity a step, "heun" for two.
      seed: of the choice of clips, captions and noise.
      batch_size: pairs made at once; a multiple of the number of local devices.
      pairs_per_shard: what a kill can cost, and the unit that processes share.
      process_id: which of the processes this is.
      num_processes: how many share the work.

    Raises:
      ValueError: an argument is out of range, the run is no such flow, the data have another codec,
        or `out` holds other data.
      StorageError: run or data are not there, or cannot be read.
    """
    _check_arguments(number, guidance, steps, solver, seed, batch_size)
    check_share(process_id, num_processes)
    out, source = pathlib.Path(out), EncodedDataset(data)
    _check_run(workdir, source, guidance)
    lengths = _lengths(source, number)
    trained = load_trained(workdir, local_mesh())
    model, codec, origin = trained.model, trained.codec, trained.origin()
    assert isinstance(model, FullLatent), "other networks have been refused"
    columns = model.config.num_tokens // codec.tokens_per_column
    shape = (columns, codec.tokens_per_column, codec.token_dim)
    dataset = ShardedDataset(
        out / RECORDS_FOLDER,
        name=NAME,
        description=f"Tokens that the flow of {origin['workdir']} makes of noise.",
        arrays={
            "tokens": tfds.features.Tensor(shape=shape, dtype=DTYPE, encoding="bytes"),
            NOISE_SEED: tfds.features.Tensor(shape=(), dtype=np.uint32, encoding="bytes"),
        },
        lengths={split: pairs for split, (pairs, _) in lengths.items()},
        shard_size=pairs_per_shard,
        settings={
            "flow_sha256": origin["sha256"],
            "data_sha256": source.fingerprint(),
            "number": number,
            "guidance": guidance,
            "steps": steps,
            "solver": solver,
            "seed": seed,
        },
    )
    if not dataset.is_complete:
        dataset.work.start()
        copy_part(source.path / CODEC_FOLDER, out / CODEC_FOLDER)
        if source.text_folder.is_dir():
            copy_part(source.text_folder, out / TEXT_FOLDER)
    maker = _Maker(
        trained,
        solver_program(model, guidance, steps, solver),
        source,
        {split: draw(seed, split, *sizes) for split, sizes in lengths.items()},
        batch_size,
    )

    def describe(summary: Summary) -> dict[str, Any]:
        return {
            "sample_rate": codec.sample_rate,
            "codec_sha256": source.codec_hash(),
            "num_records": dict(summary.num_records),
            "flow": origin,
            "source_metadata": source.split("train").metadata.get("source_metadata", {}),
        }

    summary = dataset.make(
        maker.read,
        maker.to_records,
        describe,
        process_id=process_id,
        num_processes=num_processes,
        unit="pair",
    )
    if dataset.is_complete:
        remove_leftovers(out, deep=False)
    if summary is not None:
        sizes = ", ".join(f"{count} {split}" for split, count in summary.num_records.items())
        print(f"{out}: {sizes} pairs of {origin['workdir']}, step {origin['step']}")


def _check_arguments(
    number: int, guidance: float, steps: int, solver: str, seed: int, batch_size: int
) -> None:
    devices, solvers = jax.local_device_count(), get_args(Solver)
    for name, value, valid, allowed in (
        ("number", number, number >= 1, "1 or more"),
        ("guidance", guidance, 0 <= guidance < math.inf, "0 or more; 1 is none"),
        ("steps", steps, 1 <= steps <= MOST_ITERATIONS, f"1 to {MOST_ITERATIONS}"),
        ("solver", solver, solver in solvers, " or ".join(map(repr, solvers))),
        ("seed", seed, seed >= 0, "0 or more"),
        (
            "batch_size",
            batch_size,
            batch_size >= 1 and batch_size % devices == 0,
            f"multiples of the {devices} local devices",
        ),
    ):
        if not valid:
            raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def _check_run(workdir: str, data: EncodedDataset, guidance: float) -> None:
    """Raises ValueError where a run is no flow of whole clips, or not of these tokens."""
    found = find_model(workdir)
    config = Workdir(found.path).config()
    kind = f"objective {config.objective!r} and model.network {config.model.network!r}"
    if config.objective not in FLOWS or config.model.network != "latent":
        raise ValueError(
            f"workdir is {workdir!r}, a run of {kind}; allowed: objective "
            f"{' or '.join(map(repr, FLOWS))} and model.network 'latent', whose velocity leads "
            "from noise to data"
        )
    if not same_files(as_path(found.path) / CODEC_FOLDER, data.path / CODEC_FOLDER):
        raise ValueError(
            f"{workdir} was trained with another codec than that of {data.path}, so its tokens "
            "mean other sounds; allowed: data of its codec (data.encode_latents --codec)"
        )
    if guidance != 1 and config.model.text.drop_rate == 0:
        raise ValueError(
            f"guidance is {guidance:g}; allowed: 1, as the network of {workdir} has learned "
            "nothing without text"
        )


def _lengths(data: EncodedDataset, number: int) -> dict[str, tuple[int, int]]:
    """Pairs and clips of every split."""
    clips = {split: len(data.split(split)) for split in ("train", "validation")}
    for split, count in clips.items():
        if not count:
            raise ValueError(f"data is {str(data.path)!r}, whose {split} split is empty")
    tenth = min(math.ceil(number / 10), clips["validation"])
    return {"train": (number, clips["train"]), "validation": (tenth, clips["validation"])}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, required=True, flag_values=values)

    def integer(name: str, default: int, help: str) -> None:
        flags.DEFINE_integer(name, default, help, flag_values=values)

    text("workdir", "Run of a flow that moves all tokens of a clip together.")
    text("data", "Encoded dataset of its codec, whose captions are taken.")
    text("out", "Folder to write; must not hold other data.")
    integer("number", 2048, "Pairs to train on; a tenth as many are made to validate on.")
    flags.DEFINE_float(
        "guidance", 3.0, "Strength of guidance away from no text; 1 is none.", flag_values=values
    )
    integer("steps", 10, "Even steps of the solver from noise to data.")
    flags.DEFINE_enum(
        "solver", "euler", get_args(Solver), "One velocity a step, or two.", flag_values=values
    )
    integer("seed", 0, "Of the choice of clips, captions and noise.")
    integer("batch_size", BATCH_SIZE, "Pairs made at once; a multiple of the local devices.")
    define_shard_flags(values)


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    process_id, num_processes = cli.share(jax.process_index, jax.process_count)
    make(
        values.workdir,
        values.data,
        values.out,
        number=values.number,
        guidance=values.guidance,
        steps=values.steps,
        solver=values.solver,
        seed=values.seed,
        batch_size=values.batch_size,
        pairs_per_shard=values.clips_per_shard,
        process_id=process_id,
        num_processes=num_processes,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
