"""Captions become a tokenizer or a checked table; runs train on either, or on no captions at all.

The runs at the end are the stages of a real one in small: unconditional pre-training, a teacher
that starts from it, a teacher on embeddings of frozen encoders.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from data import embed_text, encode_latents
from fasttta_jax.config import DecodeConfig, ModelConfig, OptimizerConfig, RunConfig, TextConfig
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, RECORDS_FOLDER, EncodedDataset
from fasttta_jax.text import load_text_encoder, table
from fasttta_jax.text.networks import Networks, load_networks
from fasttta_jax.text.table import EmbeddingError
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.folder import ORIGIN_FILE
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.metrics_log import read_metrics
from tests.support import conversions, helpers
from tests.support.tolerance import assert_one_step_of_float16

STREAMS = (("words", 5, 12), ("clip", 1, 6))
TEXT = TextConfig(encoder="frozen", streams=STREAMS, token_dropout=0.0)


@pytest.fixture(autouse=True, scope="module")
def one_device() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda: devices)
        patch.setattr(jax, "local_devices", lambda: devices)
        yield


def all_captions() -> list[str]:
    return sorted(
        {
            caption
            for split in helpers.NUM_CLIPS
            for clip in helpers.synthetic_clips(split)
            for caption in clip.captions
        }
    )


def random_embeddings(captions: list[str]) -> dict[str, np.ndarray]:
    """What a file of embeddings holds; the stream "clip" has no lengths."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=(len(captions), positions, width)).astype(np.float32)
        for name, positions, width in STREAMS
    }
    lengths = rng.integers(1, 6, len(captions))
    return {"captions": np.array(captions), "words_lengths": lengths, **arrays}


def save(path: pathlib.Path, **arrays: np.ndarray) -> pathlib.Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def dataset(encoded_dataset, tmp_path) -> pathlib.Path:
    """A copy of the encoded dataset without anything about text."""
    for name in (RECORDS_FOLDER, CODEC_FOLDER):
        shutil.copytree(encoded_dataset / name, tmp_path / "data" / name)
    return tmp_path / "data"


def test_a_table_gives_every_caption_its_rows(dataset, tmp_path, capsys):
    captions = all_captions()
    arrays = random_embeddings(captions)
    before = EncodedDataset(dataset).fingerprint()
    embed_text.bring(dataset, save(tmp_path / "e.npz", **arrays))
    assert f"streams={STREAMS}" in capsys.readouterr().out
    assert EncodedDataset(dataset).fingerprint() != before
    batch = load_text_encoder(dataset / "text", TEXT).tokenize(captions[::-1])
    for name, positions, _ in STREAMS:
        lengths = arrays.get(f"{name}_lengths", np.full(len(captions), positions))[::-1]
        held = np.arange(positions)[None] < lengths[:, None]
        np.testing.assert_array_equal(batch[f"{name}_mask"], held)
        np.testing.assert_array_equal(
            batch[name][held], arrays[name][::-1].astype(np.float16)[held]
        )


def test_a_second_table_leaves_no_stream_of_the_first(dataset, tmp_path):
    captions = all_captions()
    arrays = random_embeddings(captions)
    embed_text.bring(dataset, save(tmp_path / "e.npz", **arrays))
    swapped = {"captions": np.array(captions[::-1]), "clip": arrays["clip"]}
    folder = embed_text.bring(dataset, save(tmp_path / "e.npz", **swapped))
    assert {path.name for path in folder.glob("*/*.npy")} == {"clip.npy", "clip_lengths.npy"}


def test_missing_captions_are_counted_and_the_first_is_named(dataset, tmp_path):
    captions = all_captions()
    in_training = next(helpers.synthetic_clips("train")).captions[0]
    left = [caption for caption in captions if caption not in (in_training, captions[-1])]
    file = save(tmp_path / "e.npz", **random_embeddings(left))
    with pytest.raises(EmbeddingError, match=rf"lacks 2 captions .* '{in_training}', in the train"):
        embed_text.bring(dataset, file)
    assert not (dataset / "text").exists()


FROZEN = TextConfig(encoder="frozen", streams=(("clap", 1, 6), ("t5", 16, 12)), token_dropout=0.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("converted")
    return {
        "clap": conversions.random_clap(folder / "clap"),
        "t5": conversions.random_t5(folder / "t5"),
    }


def test_networks_fill_the_table_and_stay_for_later_captions(dataset, sources, capsys):
    embed_text.embed(dataset, sources, positions={"t5": 16})
    assert (
        f"encoder='frozen', token_dropout=0.0, streams={FROZEN.streams}" in capsys.readouterr().out
    )
    text = load_text_encoder(dataset / "text", FROZEN)
    found = text.tokenize([*all_captions(), "never heard before"])
    alone = load_networks(dataset / "text")
    assert alone is not None
    for name, (values, lengths) in alone.encode(all_captions()).items():
        np.testing.assert_array_equal(found[f"{name}_mask"][:-1].sum(axis=1), lengths)
        held = np.asarray(found[f"{name}_mask"])[:-1]
        assert_one_step_of_float16(np.asarray(found[name])[:-1][held], values[held])
    assert np.asarray(found["t5_mask"])[-1].all()


def test_a_killed_run_goes_on_and_hosts_share_the_work(dataset, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "SHARD_SIZE", 3)
    shutil.copytree(dataset, tmp_path / "hosts")
    encode, calls = Networks.encode, []

    def dies(self, captions):
        calls.append(list(captions))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, captions)

    monkeypatch.setattr(Networks, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        embed_text.embed(dataset, sources, positions={"t5": 16})
    assert not (dataset / "text" / "table.json").exists()
    embed_text.embed(dataset, sources, positions={"t5": 16})
    assert calls.count(calls[0]) == 1, "the finished shard was not made again"
    for host in range(2):
        assert not (tmp_path / "hosts" / "text" / "table.json").exists()
        embed_text.embed(
            tmp_path / "hosts", sources, positions={"t5": 16}, process_id=host, num_processes=2
        )
    summaries = [
        json.loads((folder / "text" / "table.json").read_text())
        for folder in (dataset, tmp_path / "hosts")
    ]
    assert summaries[0] == summaries[1]


def test_malformed_stream_flags_are_refused():
    assert embed_text.named("encoder", ["t5=a/b", "clap=c"]) == {"t5": "a/b", "clap": "c"}
    for given, message in (
        (["t5"], "--encoder is 't5'; allowed: NAME=VALUE"),
        (["t5=a", "t5=b"], "--encoder names 't5' twice"),
        (["a/b=c"], "--encoder is 'a/b=c'"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_text.named("encoder", given)


MALFORMED = {
    "no captions": ({"captions": None}, r"captions in .* is missing; allowed: unicode"),
    "bytes": ({"captions": np.array([b"x"])}, r"captions in .* is \|S1 of shape \(1,\)"),
    "objects": ({"captions": np.array(["x", 1], object)}, r"cannot be read: .*without objects"),
    "no stream": ({"words": None, "words_lengths": None, "clip": None}, r"holds no stream"),
    "lengths alone": ({"words": None}, r"words_lengths in .* belongs to no stream; .* are: clip"),
    "two dimensions": ({"clip": np.zeros((3, 6))}, r"clip in .* float64 of shape \(3, 6\)"),
    "whole numbers": ({"clip": np.zeros((3, 1, 6), int)}, r"clip in .* is int64"),
    "too large": ({"clip": np.full((3, 1, 6), 1e5)}, r"clip in .* beyond 65504"),
    "fractions": ({"words_lengths": np.ones(3)}, r"words_lengths in .* is float64; allowed: whole"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_array(tmp_path, case):
    changes, message = MALFORMED[case]
    arrays = {**random_embeddings(["a", "b", "c"]), **changes}
    file = save(tmp_path / "e.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(EmbeddingError, match=message):
        embed_text.read_embeddings(file)


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(EmbeddingError, match=r"captions in .* is float64 of shape"):
        embed_text.read_embeddings(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError):
        embed_text.read_embeddings(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "changes", [{"words_lengths": [9, 1, 1]}, {"clip": np.full((3, 1, 6), np.nan)}]
)
def test_values_that_cannot_be_are_refused(dataset, tmp_path, changes, monkeypatch):
    monkeypatch.setattr(embed_text, "captions_of", lambda *_: iter(["a"]))
    arrays = {**random_embeddings(["a", "b", "c"]), **changes}
    with pytest.raises(EmbeddingError, match=next(iter(changes)).removesuffix("_lengths")):
        embed_text.bring(dataset, save(tmp_path / "e.npz", **arrays))


def small_model(text: TextConfig) -> ModelConfig:
    """One block, which compiles in a third of the time."""
    model = helpers.tiny_model_config(text=text)
    return dataclasses.replace(
        model, backbone=dataclasses.replace(model.backbone, encoder_depth=0, mlp_ratio=1)
    )


def short(config: RunConfig, **changes) -> RunConfig:
    """Two steps at a constant rate."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, ema_decay=0.9)
    changes = {"num_steps": 2, "evaluate_every": 2, "optimizer": optimizer, **changes}
    return dataclasses.replace(config, **changes)


def test_a_run_on_embeddings_trains_and_resumes(dataset, tmp_path):
    embed_text.bring(dataset, save(tmp_path / "e.npz", **random_embeddings(all_captions())))
    config = helpers.tiny_teacher_config(dataset, model=small_model(TEXT))
    config = short(config, num_steps=3)
    interrupted = Trainer(config, tmp_path / "run")
    step = interrupted.train_step

    def killed(state, *arguments):
        if int(state.step) == 2:
            raise KeyboardInterrupt
        return step(state, *arguments)

    interrupted.train_step = killed
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = Trainer(config, tmp_path / "run")
    resumed.train_step = step  # the same program, compiled already
    assert int(resumed.run().step) == 3
    rows = read_metrics(tmp_path / "run")
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert list(losses) == [1, 2, 3]
    assert np.isfinite(list(losses.values())).all()


@pytest.fixture
def captionless(dataset, tmp_path) -> pathlib.Path:
    """The clips of the dataset without their captions, in the tokens of its codec."""
    splits = {
        split: [dataclasses.replace(clip, captions=[]) for clip in helpers.synthetic_clips(split)]
        for split in helpers.NUM_CLIPS
    }
    helpers.write_clips(tmp_path / "audio", "captionless", splits)
    encode_latents.encode(tmp_path / "audio", tmp_path / "captionless", dataset)
    return tmp_path / "captionless"


def test_a_teacher_starts_from_pretraining_without_captions(dataset, captionless, tmp_path):
    for prepare in (
        lambda: embed_text.fit(captionless, 300),
        lambda: embed_text.bring(captionless, save(tmp_path / "e.npz", **random_embeddings(["a"]))),
    ):
        with pytest.raises(ValueError, match=r"has no captions; .*text\.encoder = 'none'"):
            prepare()
    words = helpers.tiny_model_config().text
    nothing = dataclasses.replace(words, encoder="none", token_dropout=0.0, drop_rate=0.0)
    config = short(
        helpers.tiny_teacher_config(
            captionless,
            model=small_model(nothing),
            decode=DecodeConfig(num_iterations=3, guidance_scale=1.0),
        )
    )
    pretrained = Trainer(config, tmp_path / "pretraining").run()
    assert int(pretrained.step) == 2

    embed_text.fit(dataset, 300)
    teacher = short(
        helpers.tiny_teacher_config(
            dataset, model=small_model(words), init_from=str(tmp_path / "pretraining")
        ),
        num_steps=1,
    )
    # A rate of next to nothing: what was taken can be recognised after the step.
    still = dataclasses.replace(teacher.optimizer, learning_rate=1e-12, weight_decay=0.0)
    trained = Trainer(dataclasses.replace(teacher, optimizer=still), tmp_path / "teacher").run()
    origin = json.loads((tmp_path / "teacher" / ORIGIN_FILE).read_text())
    assert origin["sha256"] == tree_hash(pretrained.ema)
    assert origin["parameters"]
    for part in ("head", "backbone"):
        taken = {jax.tree_util.keystr(path): leaf for path, leaf in _leaves(pretrained.ema[part])}
        equal = [
            np.allclose(leaf, taken[name], atol=1e-6)
            for path, leaf in _leaves(trained.params[part])
            if (name := jax.tree_util.keystr(path)) in taken and taken[name].shape == leaf.shape
        ]
        assert len(equal) >= len(taken) - 4, "all but what belongs to the text"
        assert np.mean(equal) > 0.9


def _leaves(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]
