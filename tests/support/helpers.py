"""A dataset and run configs small enough to train on in seconds, shared by the tests."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import embed_text, encode_latents, spectrogram_codec
from data.common.records import Clip, audio_dataset, to_records
from data.common.sources import open_audio_source
from fasttta_jax.audio.mel import MelConfig
from fasttta_jax.codecs.spectrogram import SpectrogramConfig
from fasttta_jax.config import (
    BackboneConfig,
    DataConfig,
    DecodeConfig,
    DiffusionConfig,
    DistillationConfig,
    EnergyConfig,
    HeadConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    to_config_dict,
)
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.workdir.metrics_log import read_metrics

SAMPLE_RATE = 16_000
CLIP_SAMPLES = 10_240
NUM_TOKENS = 8
TOKEN_DIM = 8
NUM_CLIPS = {"train": 24, "validation": 10, "test": 6}
KINDS = ("tone", "noise", "clicks")
LEVELS = {"quiet": 0.05, "loud": 0.5}
CODEC = SpectrogramConfig(mel=MelConfig(floor=1e-2), token_dim=TOKEN_DIM, griffin_lim_iterations=4)


def synthetic_audio(kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """A tone, noise or clicks of the given peak, float32 [CLIP_SAMPLES]."""
    time = np.arange(CLIP_SAMPLES) / SAMPLE_RATE
    if kind == "tone":
        audio = np.sin(2 * np.pi * rng.uniform(200, 2000) * time)
    elif kind == "noise":
        audio = rng.uniform(-1, 1, CLIP_SAMPLES)
    else:
        audio = np.where(np.arange(CLIP_SAMPLES) % int(rng.integers(400, 1600)) < 8, 1.0, 0.0)
    return (level * audio).astype(np.float32)


def synthetic_clips(split: str) -> Iterator[Clip]:
    """The clips of a split, each with two captions; the same on every call."""
    rng = np.random.default_rng([7, list(NUM_CLIPS).index(split)])
    for index in range(NUM_CLIPS[split]):
        kind = KINDS[index % len(KINDS)]
        name, level = list(LEVELS.items())[index % len(LEVELS)]
        yield Clip(
            id=f"{split}_{index:03d}",
            audio=synthetic_audio(kind, level, rng),
            captions=[f"a {name} {kind}", f"{kind} that is {name}"],
            labels={"events": [kind], "attributes": {kind: [name]}},
        )


def write_clips(
    out: pathlib.Path,
    name: str,
    splits: Mapping[str, Sequence[Clip]],
    *,
    sample_rate: int = SAMPLE_RATE,
    **metadata: Any,
) -> pathlib.Path:
    """Writes clips as an audio dataset of that name below `out`, returns its folder."""
    dataset = audio_dataset(
        out,
        name=name,
        description="For tests.",
        lengths={split: len(clips) for split, clips in splits.items()},
        settings={},
    )
    dataset.make(
        lambda items: ([splits[split][index]] for split, index in items),
        to_records,
        lambda _: {"sample_rate": sample_rate, **metadata},
    )
    return dataset.path


def fit_codec(data: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The codec of `CODEC` for the training split of a dataset."""
    return spectrogram_codec.write_codec(open_audio_source(data, SAMPLE_RATE), out, CODEC)


def write_encoded_dataset(folder: pathlib.Path) -> pathlib.Path:
    """Makes audio, tokens and tokenizer below `folder`; returns what `data.path` should be."""
    audio, encoded = folder / "audio", folder / "encoded"
    write_clips(audio, "tiny", {split: list(synthetic_clips(split)) for split in NUM_CLIPS})
    encode_latents.encode(audio, encoded, fit_codec(audio, folder / "codec"))
    embed_text.fit(encoded, 300)
    return encoded


def tiny_text_encoder() -> LearnedTextEncoder:
    """A text encoder for the captions of the training split, fitted without any file."""
    captions = [caption for clip in synthetic_clips("train") for caption in clip.captions]
    return LearnedTextEncoder.fit(captions, 300, tiny_model_config().text)


def training_batch(num_clips: int) -> dict[str, Any]:
    """Random tokens with captions."""
    captions = [f"a loud tone and {row} clicks" for row in range(num_clips)]
    return {
        "tokens": jax.random.normal(jax.random.key(2), (num_clips, NUM_TOKENS, TOKEN_DIM)),
        "weight": jnp.ones(num_clips),
        "text": dict(tiny_text_encoder().tokenize(captions)),
    }


def random_params(shapes: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Normal values in place of every leaf: biases, norms and zero-initialised layers count too."""
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure,
        [jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves],
    )


def tiny_model_config(**changes: Any) -> ModelConfig:
    """A model of 8 tokens and width 32 without dropout, that `encoded_dataset` fits."""
    config = ModelConfig(
        num_tokens=NUM_TOKENS,
        token_dim=TOKEN_DIM,
        backbone=BackboneConfig(
            width=32,
            encoder_depth=1,
            decoder_depth=1,
            num_heads=2,
            attention_dropout=0.0,
            projection_dropout=0.0,
        ),
        head=HeadConfig(width=32, depth=1),
        text=TextConfig(num_positions=8, width=16),
    )
    return dataclasses.replace(config, **changes)


def tiny_teacher_config(path: str | pathlib.Path, **changes: Any) -> RunConfig:
    """A teacher's run of six steps on the dataset at `path`; `changes` replace whole fields.

    Its learning rate does not depend on the number of steps, so that runs of any length are the
    same program, which is compiled once.
    """
    config = RunConfig(
        objective="diffusion",
        num_steps=6,
        log_every=1,
        evaluate_every=3,
        data=DataConfig(path=str(path), batch_size=8, num_threads=1),
        model=tiny_model_config(),
        diffusion=DiffusionConfig(
            num_steps=1000, prediction="v", batch_multiplier=2, sampling_steps=4
        ),
        energy=EnergyConfig(noise_dim=TOKEN_DIM),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=2, ema_decay=0.9, ema_warmup=True
        ),
        decode=DecodeConfig(num_iterations=3, guidance_scale=2.0, max_segments=2),
    )
    return dataclasses.replace(config, **changes)


def tiny_student_config(
    path: str | pathlib.Path, teacher_workdir: str | pathlib.Path, **changes: Any
) -> RunConfig:
    """A student's run of six steps that starts from, and follows, the teacher in the workdir."""
    config = dataclasses.replace(
        tiny_teacher_config(path),
        objective="energy",
        init_from=str(teacher_workdir),
        distillation=DistillationConfig(
            weight=10.0, backbone_from_teacher=True, head_from_teacher=True
        ),
    )
    return dataclasses.replace(config, **changes)


def tiny_guided_config(
    path: str | pathlib.Path, student_workdir: str | pathlib.Path, **changes: Any
) -> RunConfig:
    """A run of six steps that learns the guidance of the student in the workdir."""
    config = dataclasses.replace(
        tiny_teacher_config(path),
        objective="guided",
        init_from=str(student_workdir),
        distillation=DistillationConfig(backbone_from_teacher=True, head_from_teacher=True),
    )
    return dataclasses.replace(config, **changes)


def rows_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that do not depend on the machine: without throughput."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith("throughput/")}
        for row in read_metrics(workdir / "metrics.jsonl")
    ]
    return [row for row in rows if set(row) != {"step"}]


def run_config_file(config: RunConfig, path: pathlib.Path) -> pathlib.Path:
    """Writes a file that --config of train.py takes; returns its path."""
    values = to_config_dict(config).to_dict()
    path.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({values!r})\n"
    )
    return path


def train_command(config: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[str]:
    """What follows `python` to train a run."""
    return ["train.py", f"--config={config}", f"--workdir={workdir}", *more]
