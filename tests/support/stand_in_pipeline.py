"""A pipeline without a network: tones that prompt and seed decide, for tests of jobs."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from fasttta_jax.config import DecodeConfig
from fasttta_jax.generation.job import Job
from fasttta_jax.generation.job_folder import Share
from fasttta_jax.generation.outputs import OutputConfig
from fasttta_jax.generation.pipeline import Clip, GenerateConfig
from fasttta_jax.generation.prompts import Prompts

RATE, SAMPLES = 16_000, 8_000
BROKEN = "broken"
"""A prompt whose sound is not finite."""


def sound(prompt: str, seed: int) -> np.ndarray:
    """A tone of a pitch and level that prompt and seed decide."""
    digest = hashlib.sha256(f"{prompt}\0{seed}".encode()).digest()
    level, pitch = 0.1 + digest[0] / 512, 100 + 10 * digest[1]
    tone = level * np.sin(2 * np.pi * pitch * np.arange(SAMPLES) / RATE)
    return np.full(SAMPLES, np.nan, np.float32) if prompt == BROKEN else tone.astype(np.float32)


class StandInPipeline:
    """Has of `Pipeline` what a job asks for; counts batches and clips.

    Args:
      delay: seconds that a clip takes.
      sha256: of its parameters.
    """

    def __init__(self, delay: float = 0.0, sha256: str = "a" * 64) -> None:
        codec = SimpleNamespace(sample_rate=RATE, tokens_per_column=2, samples_per_column=1_000)
        config = SimpleNamespace(
            decode=DecodeConfig(), model=SimpleNamespace(num_tokens=16), objective="energy"
        )
        origin = {"workdir": "run", "step": 3, "sha256": sha256}
        model = SimpleNamespace(check_strength=lambda name, strength: None)
        self.trained: Any = SimpleNamespace(
            config=config, codec=codec, model=model, origin=lambda: origin
        )
        self.delay = delay
        self.batches: list[int] = []
        self.columns: dict[str, list[Any]] = {}

    def generate(
        self, prompts: Iterable[str], *, seeds: Iterable[int], batch_size: int, **others: Any
    ) -> Iterator[Clip]:
        self.columns = {
            name: list(values) for name, values in others.items() if isinstance(values, Iterator)
        }
        pairs = zip(prompts, seeds, strict=True)
        while batch := list(itertools.islice(pairs, batch_size)):
            self.batches.append(len(batch))
            time.sleep(self.delay * len(batch))
            for prompt, seed in batch:
                tokens, known = np.zeros((16, 1), np.float32), np.zeros(16, bool)
                yield Clip(sound(prompt, seed), RATE, prompt, seed, tokens, known, None)


def job(
    out: str | pathlib.Path,
    prompts: Prompts,
    *,
    pipeline: StandInPipeline | None = None,
    share: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    ranker: Any = None,
    batch_size: int = 4,
    **output: Any,
) -> Job:
    """A job of small shards on a stand-in."""
    values = {"clips_per_shard": 6, **output}
    return Job(
        pipeline or StandInPipeline(),  # type: ignore[arg-type]
        prompts,
        OutputConfig(str(out), **values),
        GenerateConfig(batch_size=batch_size),
        ranker=ranker,
        share=Share(*share),
        overwrite=overwrite,
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder, but for what a job keeps for itself."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "job" not in path.relative_to(folder).parts
    }
