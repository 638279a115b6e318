"""A pair is a seed, a caption and what a flow makes of both, whoever made it and however often."""

import dataclasses
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import pairs
from fasttta_jax.config import ConfigError, DataConfig, DecodeConfig, FlowConfig, MeshConfig
from fasttta_jax.input_pipeline import batches as batches_lib
from fasttta_jax.input_pipeline.batches import TrainBatches, evaluation_batches
from fasttta_jax.input_pipeline.mixture import open_dataset
from fasttta_jax.input_pipeline.pairs import NOISE_SEED, NOISE_SEEDS, check_pairs
from fasttta_jax.input_pipeline.records import (
    CODEC_FOLDER,
    RECORDS_FOLDER,
    TEXT_FOLDER,
    DatasetError,
    EncodedDataset,
)
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.systems import FullLatent, Others
from fasttta_jax.training.loop import Trainer
from fasttta_jax.training.opening import open_run
from fasttta_jax.training.step import draw_clips
from fasttta_jax.typing import unconditional
from fasttta_jax.workdir.folder import Workdir, WorkdirError, same_files
from fasttta_jax.workdir.restore import load_trained
from tests.support import helpers
from tests.support.latent_runs import latent_config, save_flow
from tests.support.tolerance import assert_one_step_of_float16

NUMBER = 30  # more than the 24 clips, so that some come twice
GUIDANCE, STEPS = 1.5, 3
ASKED = {
    "number": NUMBER,
    "guidance": GUIDANCE,
    "steps": STEPS,
    "batch_size": 8,
    "pairs_per_shard": 10,
}


@pytest.fixture(scope="module")
def flow(encoded_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow") / "flow"
    return save_flow(folder, latent_config("flow", encoded_dataset), encoded_dataset)


@pytest.fixture(scope="module")
def made(flow, encoded_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    pairs.make(flow, encoded_dataset, out, **ASKED)
    return out


def records_of(folder, split="train"):
    records = EncodedDataset(folder).split(split)
    return [records[index] for index in range(len(records))]


def noise(seed):
    shape = (helpers.NUM_TOKENS, helpers.TOKEN_DIM)
    return np.asarray(jax.random.normal(jax.random.key(int(seed)), shape))


@pytest.fixture(scope="module")
def velocities(flow):
    """(captions, z, t) -> the velocity with text and without."""
    trained = load_trained(flow, local_mesh())

    @jax.jit
    def both(text, z, t):
        conditioning = trained.model.condition(trained.params, text)
        found = []
        for streams in (conditioning, unconditional(conditioning)):
            found.append(trained.model.velocity(trained.params, streams)(z, t, t))
        return found

    def at(captions, z, t):
        text = trained.model.text.tokenize(captions)
        times = jnp.full(len(captions), t, jnp.float32)
        return [np.asarray(v) for v in both(text, jnp.asarray(z, jnp.float32), times)]

    return at


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_pair_is_what_the_guided_flow_makes_of_its_noise(
    solver, flow, made, velocities, encoded_dataset, tmp_path
):
    if solver == "heun":
        made = tmp_path / "heun"
        pairs.make(flow, encoded_dataset, made, **ASKED | {"number": 8, "solver": solver})
    found = records_of(made)[:8]

    def guided(z, t):
        with_text, without = velocities([record["captions"][0] for record in found], z, t)
        return without + GUIDANCE * (with_text - without)

    z = np.stack([noise(record[NOISE_SEED]) for record in found])
    for step in range(STEPS):
        t, r = 1 - step / STEPS, 1 - (step + 1) / STEPS
        slope = guided(z, t)
        if solver == "heun":
            slope = (slope + guided(z - slope / STEPS, r)) / 2
        z = z - slope / STEPS
    tokens = np.stack([record["tokens"] for record in found])
    assert tokens.dtype == np.float16
    assert tokens.std() > 0.1
    assert_one_step_of_float16(tokens.reshape(z.shape), z.astype(np.float16))


def test_pairs_are_an_encoded_dataset(made, flow, encoded_dataset):
    clips = {record["id"]: record for record in records_of(encoded_dataset)}
    found = records_of(made)
    assert len(found) == NUMBER
    assert len(records_of(made, "validation")) == NUMBER // 10
    for index, record in enumerate(found):
        clip_id, _, place = record["id"].rpartition("_")
        assert int(place) == index
        assert record["labels"] == clips[clip_id]["labels"]
        assert len(record["captions"]) == 1
        assert record["captions"][0] in clips[clip_id]["captions"]
    assert {record["id"].rpartition("_")[0] for record in found[:24]} == set(clips)
    assert len({record["captions"][0] for record in found}) > len(
        {clip["captions"][0] for clip in clips.values()}
    )
    assert len({int(record[NOISE_SEED]) for record in found}) == NUMBER
    for part in (CODEC_FOLDER, TEXT_FOLDER):
        assert same_files(made / part, encoded_dataset / part)
    metadata = EncodedDataset(made).split("train").metadata
    assert metadata["flow"] == load_trained(flow, local_mesh()).origin()
    assert metadata["made_from"]["guidance"] == GUIDANCE
    assert metadata["made_from"]["solver"] == "euler"


def test_more_pairs_begin_with_the_same():
    few, many = (pairs.draw(3, "train", number, 24) for number in (10, 100))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:10])
    assert sorted(many.clips[24:48]) == list(range(24))
    assert many.seeds.dtype == np.uint32
    for other in (pairs.draw(4, "train", 100, 24), pairs.draw(3, "validation", 100, 24)):
        assert not np.any(other.seeds == many.seeds)


def test_neither_neighbours_nor_shards_nor_processes_change_a_pair(
    made, flow, encoded_dataset, tmp_path, capsys
):
    out = tmp_path / "two"
    for process_id in (1, 0):
        pairs.make(flow, encoded_dataset, out, **ASKED, process_id=process_id, num_processes=2)
    assert "30 train, 3 validation pairs" in capsys.readouterr().out
    metadata = [EncodedDataset(folder).split("train").metadata for folder in (out, made)]
    assert metadata[0] == metadata[1]

    out = tmp_path / "others"
    pairs.make(flow, encoded_dataset, out, **ASKED | {"number": 13, "pairs_per_shard": 3})
    for found, expected in zip(records_of(out), records_of(made), strict=False):
        assert_one_step_of_float16(found.pop("tokens"), expected.pop("tokens"))
        assert found == expected


def test_what_a_kill_left_is_kept(made, flow, encoded_dataset, tmp_path, monkeypatch, capsys):
    out = tmp_path / "killed"
    records_of_batch, calls = pairs._Maker._records_of, []

    def killed(self, asked):
        calls.append(asked)
        if len(calls) > 5:  # two batches a shard
            raise KeyboardInterrupt
        return records_of_batch(self, asked)

    with monkeypatch.context() as patch:
        patch.setattr(pairs._Maker, "_records_of", killed)
        with pytest.raises(KeyboardInterrupt):
            pairs.make(flow, encoded_dataset, out, **ASKED)
    incomplete = out / "records.incomplete"
    notes = [path.relative_to(incomplete) for path in incomplete.glob("*/*/shards/*.json")]
    assert len(notes) == 2
    finished = {path: (incomplete / path).stat().st_mtime_ns for path in notes}
    for changed in ({"guidance": 2.0}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"other settings: {next(iter(changed))} is"):
            pairs.make(flow, encoded_dataset, out, **ASKED | changed)
    pairs.make(flow, encoded_dataset, out, **ASKED)
    left = {path: (out / RECORDS_FOLDER / path).stat().st_mtime_ns for path in notes}
    assert left == finished
    metadata = [EncodedDataset(folder).split("train").metadata for folder in (out, made)]
    assert metadata[0] == metadata[1]
    pairs.make(flow, encoded_dataset, out, **ASKED)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_made_is_refused_first(flow, encoded_dataset, tmp_path):
    out = tmp_path / "out"
    for options, message in (
        ({"number": 0}, "number is 0; allowed: 1 or more"),
        ({"guidance": -1.0}, r"guidance is -1\.0; allowed: 0 or more"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"steps": 0}, "steps is 0; allowed: 1 to 4096"),
        ({"solver": "rk4"}, "solver is 'rk4'; allowed: 'euler' or 'heun'"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 12}, "batch_size is 12; allowed: multiples of the 8 local devices"),
        ({"pairs_per_shard": 0}, "clips_per_shard is 0"),
        ({"process_id": 2, "num_processes": 2}, "process_id is 2; allowed: 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pairs.make(flow, encoded_dataset, out, **ASKED | options)
    with pytest.raises(WorkdirError, match="holds no run"):
        pairs.make(str(tmp_path), encoded_dataset, out)
    with pytest.raises(DatasetError, match="has no records/ folder"):
        pairs.make(flow, tmp_path, out)

    masked = helpers.tiny_teacher_config(encoded_dataset)
    Workdir(tmp_path / "masked").prepare(masked, EncodedDataset(encoded_dataset))
    with pytest.raises(ValueError, match=r"objective 'diffusion' and model\.network 'masked'; al"):
        pairs.make(str(tmp_path / "masked"), encoded_dataset, out)

    text = dataclasses.replace(latent_config("flow").model.text, drop_rate=0.0)
    model = dataclasses.replace(latent_config("flow").model, text=text)
    decode = DecodeConfig(num_iterations=2, guidance_schedule="constant", guidance_scale=1.0)
    config = latent_config("flow", encoded_dataset, model=model, decode=decode)
    Workdir(tmp_path / "without").prepare(config, EncodedDataset(encoded_dataset))
    with pytest.raises(ValueError, match="guidance is 3; allowed: 1, as the network of"):
        pairs.make(str(tmp_path / "without"), encoded_dataset, out)

    other = tmp_path / "other"
    shutil.copytree(flow, other, ignore=shutil.ignore_patterns("checkpoints"))
    with open(other / CODEC_FOLDER / "codec.json", "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="was trained with another codec than that of"):
        pairs.make(str(other), encoded_dataset, out)
    assert not out.exists()


# ---------------------------------------------------------------------------------- pipeline


def seeds_by_tokens(folder, split="train"):
    return {
        record["tokens"].astype(np.float32).tobytes(): record[NOISE_SEED]
        for record in records_of(folder, split)
    }


@pytest.mark.parametrize("num_threads", [0, 2])
def test_batches_of_pairs_hold_the_seeds_of_their_noise(made, num_threads):
    known = seeds_by_tokens(made)

    def batch_of(*, with_noise):
        with TrainBatches(
            EncodedDataset(made),
            helpers.tiny_text_encoder(),
            DataConfig(batch_size=8, num_threads=num_threads),
            num_tokens=helpers.NUM_TOKENS,
            seed=0,
            mesh=make_mesh(MeshConfig()),
            start=5,  # in another epoch
            with_noise=with_noise,
        ) as batches:
            return next(batches)

    batch, without = batch_of(with_noise=True), batch_of(with_noise=False)
    assert batch[NOISE_SEEDS].dtype == np.uint32
    for tokens, seed in zip(np.asarray(batch["tokens"]), batch.pop(NOISE_SEEDS), strict=True):
        assert known[tokens.tobytes()] == int(seed)
    jax.tree.map(np.testing.assert_array_equal, batch, without)


def test_reading_processes_are_told_of_noise(made):
    """A process reads with a copy of what this one reads with."""
    text = helpers.tiny_text_encoder()
    example = batches_lib._Example(EncodedDataset(made), text, helpers.NUM_TOKENS, False, True)
    record = records_of(made)[0]
    found = pickle.loads(pickle.dumps(example)).random_map(record, np.random.default_rng(0))
    assert found[NOISE_SEEDS] == record[NOISE_SEED]


@pytest.mark.parametrize("with_noise", [True, False])
def test_pairs_of_validation_hold_theirs(made, with_noise):
    (batch,) = evaluation_batches(
        EncodedDataset(made),
        helpers.tiny_text_encoder(),
        "validation",
        batch_size=8,
        num_tokens=helpers.NUM_TOKENS,
        mesh=make_mesh(MeshConfig()),
        with_noise=with_noise,
    )
    assert (NOISE_SEEDS in batch) == with_noise
    if with_noise:
        expected = list(seeds_by_tokens(made, "validation").values())
        np.testing.assert_array_equal(batch[NOISE_SEEDS], expected + expected[-1:] * 5)


def reflow_config(path, **changes):
    data = DataConfig(path=str(path), batch_size=8, num_threads=1)
    return latent_config("reflow", path, flow=FlowConfig(), data=data, **changes)


def test_a_run_on_pairs_learns_the_line_from_noise_to_tokens(made, tmp_path, monkeypatch):
    """What moves along it at every time has no loss; and such a run trains and validates."""
    trainer = Trainer(
        reflow_config(made, num_steps=2, evaluate_every=2),
        tmp_path / "run",
        devices=jax.devices()[:1],
    )
    params = trainer.run().params
    losses = [row["train/loss"] for row in helpers.rows_of(tmp_path / "run") if "train/loss" in row]
    assert len(losses) == 2
    assert np.all(np.isfinite(losses))

    records = records_of(made)[:8]
    tokens = np.stack([record["tokens"] for record in records]).reshape(8, helpers.NUM_TOKENS, -1)
    line = jnp.asarray(np.stack([noise(record[NOISE_SEED]) for record in records]) - tokens)
    monkeypatch.setattr(FullLatent, "velocity", lambda *_: lambda z, r, t: line)
    run = trainer.opened
    batch = {
        "tokens": jnp.asarray(tokens, jnp.float32),
        "weight": jnp.ones(8),
        "text": run.model.text.tokenize([""] * 8),
        NOISE_SEEDS: jnp.asarray([record[NOISE_SEED] for record in records], jnp.uint32),
    }
    clips = draw_clips(run.context, batch, jax.random.key(0), train=True)
    others = Others(None, {}, params, None)
    found = run.model.losses(params, clips, jax.random.key(1), others, freeze=False, train=True)
    for values in found.values.values():
        np.testing.assert_allclose(values, 0, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
def test_data_without_noise_are_refused_and_leave_no_run(made, encoded_dataset, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(DatasetError, match=rf"data\.path is '{encoded_dataset}', whose records"):
        open_run(reflow_config(encoded_dataset), run)
    config = reflow_config(made)
    model = dataclasses.replace(config.model, num_tokens=helpers.NUM_TOKENS // 2)
    with pytest.raises(DatasetError, match=r"pairs have 8 tokens; allowed: model\.num_tokens = 4"):
        open_run(dataclasses.replace(config, model=model), run)
    data = dataclasses.replace(config.data, sample_posterior=True)
    with pytest.raises(ConfigError, match=r"data\.sample_posterior is True; allowed: False where"):
        open_run(dataclasses.replace(config, data=data), run)
    for path, other in ((made, encoded_dataset), (encoded_dataset, made)):
        data = DataConfig(path=str(path), mixture=(str(other),), weights=(0.5, 0.5))
        with pytest.raises(DatasetError, match=f"{encoded_dataset}', whose records hold no noise"):
            check_pairs(open_dataset(data), data, helpers.NUM_TOKENS)
    assert not (run / "config.json").exists()
