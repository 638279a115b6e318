"""A mixture draws from its datasets in their shares, as a function of seed and step alone."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from data import encode_latents
from data.common.records import Clip
from fasttta_jax.config import DataConfig, RunConfig, TextConfig
from fasttta_jax.input_pipeline.batches import evaluation_batches, read_batches
from fasttta_jax.input_pipeline.mixture import BLOCK, Draws, Mixture, open_dataset
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.text import load_text_encoder
from fasttta_jax.text.table import write_table
from fasttta_jax.workdir.folder import Workdir, WorkdirError
from tests.support import commands, helpers, launch, world

BATCH = 8
SEED = 5
FROZEN = TextConfig(encoder="frozen", token_dropout=0.0, streams=(("t5", 2, 3),))


def test_a_block_holds_every_dataset_in_its_share() -> None:
    for weights, counts in {
        (0.7, 0.3): (700, 300),
        (1, 1, 1): (334, 333, 333),
        (2, 0.002): (999, 1),
        (999, 1): (999, 1),
    }.items():
        draws = Draws(weights, SEED)
        assert draws.counts == counts
        seen = collections.defaultdict(list)
        for index in range(2 * BLOCK):
            number, place = draws(index)
            seen[number].append(place)
        for number, places in seen.items():
            assert places == list(range(2 * counts[number]))


def test_the_order_is_drawn_by_seed_and_block() -> None:
    def order(seed: int, block: int) -> list[int]:
        draws = Draws((0.5, 0.5), seed)
        return [draws(block * BLOCK + index)[0] for index in range(BLOCK)]

    first = order(0, 0)
    assert first == order(0, 0)
    assert first not in (order(0, 1), order(1, 0))
    # A batch has its share, give or take: four deviations of a draw without replacement.
    means = np.reshape(first, (-1, 40)).mean(axis=1)
    assert np.abs(means - 0.5).max() < 4 * 0.5 / 40**0.5


def write_others(folder: pathlib.Path) -> pathlib.Path:
    """A dataset in the tokens of the tiny one, of other clips."""

    def clips(split: str, count: int) -> list[Clip]:
        rng = np.random.default_rng([3, count])
        return [
            Clip(f"{split}_{i}", helpers.synthetic_audio("noise", 0.4, rng), [f"hiss number {i}"])
            for i in range(count)
        ]

    helpers.write_clips(
        folder / "audio",
        "others",
        {"train": clips("train", 5), "validation": clips("validation", 4)},
    )
    encode_latents.encode(folder / "audio", folder / "others", folder / "encoded")
    return folder / "others"


@pytest.fixture(scope="module")
def others(encoded_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    def write(folder: pathlib.Path) -> None:
        shutil.copytree(encoded_dataset / "codec", folder / "encoded" / "codec")
        write_others(folder)

    return world.shared(tmp_path_factory, "others", write) / "others"


@pytest.fixture
def config(encoded_dataset: pathlib.Path, others: pathlib.Path) -> DataConfig:
    return DataConfig(
        path=str(encoded_dataset),
        mixture=(str(others),),
        weights=(0.75, 0.25),
        batch_size=BATCH,
        num_threads=0,
    )


def read(config: DataConfig, rows: np.ndarray, start: int, count: int) -> list[Any]:
    batches = read_batches(
        open_dataset(config),
        helpers.tiny_text_encoder(),
        config,
        num_tokens=helpers.NUM_TOKENS,
        seed=SEED,
        rows=rows,
        start=start,
    )
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def tokens_of(path: pathlib.Path, split: str) -> dict[bytes, int]:
    records = EncodedDataset(path).split(split)
    tokens = [records[index]["tokens"].astype(np.float32) for index in range(len(records))]
    return {values.tobytes(): index for index, values in enumerate(tokens)}


def test_clips_come_from_all_in_epochs_of_their_own(
    config: DataConfig, encoded_dataset: pathlib.Path, others: pathlib.Path
) -> None:
    seen = [tokens_of(path, "train") for path in (encoded_dataset, others)]
    found: list[list[int]] = [[], []]
    numbers = []
    for batch in read(config, np.arange(BATCH), 0, 16):
        for tokens in batch["tokens"]:
            key = tokens.tobytes()
            numbers.append(int(key in seen[1]))
            found[numbers[-1]].append(seen[numbers[-1]][key])
    draws = Draws(config.weights, SEED)
    assert numbers == [draws(index)[0] for index in range(16 * BATCH)]
    for places, size in zip(found, (24, 5), strict=True):
        for epoch in range(len(places) // size):
            assert set(places[size * epoch : size * (epoch + 1)]) == set(range(size))
    assert found[1][:5] != found[1][5:10] or found[1][:5] != found[1][10:15]


def test_any_number_of_hosts_and_any_start_give_the_same_batches(config: DataConfig) -> None:
    whole = read(config, np.arange(BATCH), 0, 6)
    for rows in (np.arange(4), np.arange(4, 8), np.array([1, 3, 5])):
        for step, batch in enumerate(read(config, rows, 4, 2), 4):
            np.testing.assert_array_equal(batch["tokens"], whole[step]["tokens"][rows])
            for name, values in batch["text"].items():
                np.testing.assert_array_equal(values, whole[step]["text"][name][rows])
    single = dataclasses.replace(config, mixture=(), weights=())
    assert not np.array_equal(read(single, np.arange(BATCH), 0, 1)[0]["tokens"], whole[0]["tokens"])


@pytest.mark.parametrize(("named", "sizes"), [((), (10, 0)), ((1,), (0, 4)), ((0, 1), (10, 4))])
def test_the_datasets_that_are_named_are_validated_on(
    config: DataConfig,
    encoded_dataset: pathlib.Path,
    others: pathlib.Path,
    named: tuple[int, ...],
    sizes: tuple[int, int],
) -> None:
    paths = tuple((config.path, *config.mixture)[index] for index in named)
    seen = [tokens_of(path, "validation") for path in (encoded_dataset, others)]
    numbers = []
    for batch in evaluation_batches(
        open_dataset(dataclasses.replace(config, validation_paths=paths)),
        helpers.tiny_text_encoder(),
        "validation",
        batch_size=BATCH,
        num_tokens=helpers.NUM_TOKENS,
        mesh=make_mesh(RunConfig().mesh),
    ):
        held = np.asarray(batch["tokens"])[np.asarray(batch["weight"]) > 0]
        numbers += [int(tokens.tobytes() in seen[1]) for tokens in held]
    assert (numbers.count(0), numbers.count(1)) == sizes
    if named == (0, 1):
        assert numbers[:7].count(1) == 2  # spread, so that fewer clips are some of both


def test_datasets_that_do_not_fit_are_named(
    config: DataConfig, others: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(others, other)
    file = next(path for path in (other / "codec").iterdir() if path.suffix == ".npz")
    arrays = dict(np.load(file))
    name = next(name for name, array in arrays.items() if array.dtype.kind == "f")
    np.savez(file, **arrays | {name: arrays[name] + 1})
    changed = dataclasses.replace(config, mixture=(str(other),))
    with pytest.raises(DatasetError, match=rf"{config.path} has the codec .* and {other} has the"):
        open_dataset(changed)

    dataset = open_dataset(config)
    model = helpers.tiny_model_config(text=FROZEN)
    with pytest.raises(DatasetError, match=r"has no table of text embeddings"):
        dataset.check(model)


def test_captions_are_looked_up_in_the_tables_of_all(tmp_path: pathlib.Path) -> None:
    values, lengths = np.ones((1, 2, 3), np.float32), np.array([2], np.int32)
    for number, name in enumerate(("a", "b")):
        write_table(tmp_path / name, [f"in {name}"], {"t5": (values * number, lengths)})
    folders = (tmp_path / "a", tmp_path / "b")
    text = load_text_encoder(tmp_path / "a", FROZEN, table_folders=folders)
    found = text.tokenize(["in b", "in a"])
    np.testing.assert_array_equal(np.asarray(found["t5"])[:, 0, 0], [1, 0])
    with pytest.raises(
        ValueError, match=r"/a and .*/b has no embedding of 'in c'.* the 2 captions"
    ):
        text.tokenize(["in c"])


def test_tables_of_other_networks_are_refused(
    config: DataConfig, encoded_dataset: pathlib.Path, others: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    values, lengths = np.ones((1, 2, 3), np.float32), np.array([2], np.int32)
    paths = []
    for name, source in (("a", encoded_dataset), ("b", others)):
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("text"))
        write_table(tmp_path / name / "text", [name], {"t5": (values, lengths)}, {"network": name})
        paths.append(str(tmp_path / name))
    dataset = open_dataset(dataclasses.replace(config, path=paths[0], mixture=(paths[1],)))
    model = helpers.tiny_model_config(text=FROZEN)
    with pytest.raises(DatasetError, match=r"/a and of .*/b differ: made_from is .*'a'.*'b'"):
        dataset.check(model)


def test_a_run_keeps_its_weights_and_may_move_its_data(
    config: DataConfig, others: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = helpers.tiny_teacher_config(config.path, data=config)
    dataset = open_dataset(config)
    assert isinstance(dataset, Mixture)
    dataset.check(run.model)
    workdir = Workdir(tmp_path / "run")
    workdir.prepare(run, dataset)
    assert workdir.config() == run
    shutil.copytree(others, tmp_path / "moved")
    moved = dataclasses.replace(config, mixture=(str(tmp_path / "moved"),))
    workdir.prepare(dataclasses.replace(run, data=moved), open_dataset(moved))
    heavier = dataclasses.replace(config, weights=(0.5, 0.5))
    with pytest.raises(WorkdirError, match=r"holds a run with other settings: data\.weights"):
        workdir.prepare(dataclasses.replace(run, data=heavier), dataset)
    alone = dataclasses.replace(config, mixture=(), weights=())
    with pytest.raises(WorkdirError, match=r"other settings|other data"):
        workdir.prepare(dataclasses.replace(run, data=alone), open_dataset(alone))


def test_one_folder_under_two_names_is_refused(config: DataConfig) -> None:
    twice = dataclasses.replace(
        config, mixture=(f"{config.path}/../{pathlib.Path(config.path).name}",)
    )
    with pytest.raises(
        DatasetError, match="are one folder; allowed in a mixture: each of them onc"
    ):
        open_dataset(twice)


@pytest.mark.long
def test_a_killed_run_ends_where_one_that_was_left_alone_ends(
    config: DataConfig, tmp_path: pathlib.Path
) -> None:
    """The place in each dataset is a function of the step: nothing of it is kept in a file."""
    run = helpers.tiny_teacher_config(
        config.path, data=config, num_steps=40, evaluate_every=5, checkpoints_to_keep=1
    )
    file = helpers.run_config_file(run, tmp_path / "run.py")
    command = helpers.train_command(file, tmp_path / "killed")
    launch.killed_at(command, tmp_path / "killed", 10)
    again = commands.run(*command)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stderr
    left_alone = commands.run(*helpers.train_command(file, tmp_path / "whole"))
    assert left_alone.returncode == 0, left_alone.stderr
    rows = [helpers.rows_of(tmp_path / name) for name in ("killed", "whole")]
    assert rows[0] == rows[1]
    assert max(row["step"] for row in rows[0]) == 40
