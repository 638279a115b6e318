"""The same training, generation and evaluation on the codec and the text encoders of the paper.

Random weights, three narrow levels and two layers; every step is the user's, from audio to report.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import subprocess

import jax
import numpy as np
import pytest
import soundfile

from data import embed_text, encode_latents
from fasttta_jax.codecs import VaeCodec
from fasttta_jax.codecs.vae_codec import VaeCodecConfig
from fasttta_jax.config import DataConfig, DecodeConfig, EnergyConfig, TextConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.training.loop import Trainer
from fasttta_jax.workdir.metrics_log import read_metrics
from tests.support import (
    commands,
    conversions,
    helpers,
)

TEXT = TextConfig(
    encoder="frozen", streams=(("clap", 1, 6), ("t5", 24, 12)), token_dropout=0.0, drop_rate=0.1
)
TOKENS_PER_COLUMN, TOKEN_DIM = 4, 32


@pytest.fixture(scope="module")
def world(labelled_dataset, tmp_path_factory) -> pathlib.Path:
    """Audio, tokens with variances, embeddings; a teacher and a student of two steps each."""
    root = tmp_path_factory.mktemp("world")
    (root / "audio").symlink_to(labelled_dataset / "audio")
    vae = conversions.random_vae(root / "converted" / "vae")
    vocoder = conversions.random_vocoder(root / "converted" / "vocoder")
    layout = VaeCodecConfig(window_frames=128, overlap_frames=64, margin_frames=16)
    VaeCodec.create(root / "codec", vae=vae, vocoder=vocoder, config=layout)
    encode_latents.encode(
        root / "audio", root / "encoded", root / "codec", posterior="moments", batch_size=8
    )
    encoders = {
        "clap": conversions.random_clap(root / "converted" / "clap"),
        "t5": conversions.random_t5(root / "converted" / "t5"),
    }
    embed_text.embed(root / "encoded", encoders, positions={"t5": 24})
    for stage in ("teacher", "student"):
        Trainer(config(root, stage), root / stage, devices=jax.devices()[:1]).run()
    return root


def config(root: pathlib.Path, stage: str):
    model = helpers.tiny_model_config(
        num_tokens=4 * TOKENS_PER_COLUMN, token_dim=TOKEN_DIM, text=TEXT
    )
    made = {
        "teacher": lambda: helpers.tiny_teacher_config(root / "encoded"),
        "student": lambda: helpers.tiny_student_config(root / "encoded", root / "teacher"),
    }[stage]()
    return dataclasses.replace(
        made,
        num_steps=2,
        evaluate_every=2,
        sample_prompts=("a loud tone",),
        data=DataConfig(
            path=str(root / "encoded"), batch_size=8, num_threads=1, sample_posterior=True
        ),
        model=model,
        energy=EnergyConfig(noise_dim=TOKEN_DIM),
        optimizer=dataclasses.replace(made.optimizer, warmup_steps=0, decay_steps=0),
        decode=DecodeConfig(num_iterations=2, guidance_scale=2.0, max_segments=1),
    )


def run(*command: object) -> subprocess.CompletedProcess[str]:
    done = commands.run(*command, timeout=400)
    assert done.returncode == 0, done.stderr
    return done


def test_the_prefix_has_the_positions_of_both_streams(world):
    trainer = Trainer(config(world, "teacher"), world / "teacher")
    assert trainer.opened.model.backbone.num_text == TEXT.total_positions == 25
    assert set(trainer.opened.model.text.init(jax.random.key(0))) == set()


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_losses_are_finite_and_tokens_have_their_statistics(world, stage):
    rows = read_metrics(world / stage)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    statistics = json.loads((world / "encoded" / "statistics.json").read_text())
    dataset = EncodedDataset(world / "encoded").split("train")
    tokens = np.concatenate([np.ravel(dataset[i]["tokens"]) for i in range(len(dataset))])
    assert statistics["std"] == pytest.approx(np.std(np.float64(tokens)), rel=1e-3)
    assert "log_variance" in dataset[0]


def test_a_workdir_is_all_that_generation_needs(world, tmp_path):
    """Without the dataset there is no table: the networks in the workdir answer, the same."""
    before, after = tmp_path / "before", tmp_path / "after"
    arguments = (
        "generate.py",
        f"--workdir={world / 'student'}",
        "--prompt=a loud tone",
        "--prompt=a sound that nobody described",
        "--batch_size=2",
    )
    run(*arguments, f"--out={before}")
    shutil.move(world / "encoded", world / "away")
    try:
        run(*arguments, f"--out={after}")
    finally:
        shutil.move(world / "away", world / "encoded")
    files = sorted(path.name for path in before.glob("*.wav"))
    assert len(files) == 2
    for name in files:
        first, second = (
            soundfile.read(folder / name, dtype="int16")[0] for folder in (before, after)
        )
        assert first.shape == (4 * 2560,)
        # the table's batches were others than the prompts': a number of the text may have been
        # rounded to the next float16, which is a share of 2^-10; and a sample to the next integer
        step = 1 + 2**-10 * np.abs(first.astype(int)).max()
        np.testing.assert_allclose(first.astype(int), second.astype(int), rtol=0, atol=step)


@pytest.mark.long
@pytest.mark.slow
def test_both_runs_are_evaluated(world):
    out = world / "report"
    run(
        "eval.py",
        f"--run=teacher={world / 'teacher'}",
        f"--run=student={world / 'student'}",
        f"--audio_data={world / 'audio'}",
        f"--encoded_data={world / 'encoded'}",
        f"--out={out}",
        "--batch_size=8",
        "--num_energy_clips=8",
        "--tagger_steps=10",
    )
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert list(rows) == ["real", "codec", "teacher", "student"]
    assert (out / "report.html").is_file()
