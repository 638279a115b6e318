"""The tagger of an evaluation: trained once for a dataset and kept beside the report.

Next to `tagger.safetensors` lies `tagger.json`, which says what the tagger was trained on. It is
used again for the same training clips, clip length, seed and number of steps, and for nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fasttta_jax.evaluation.clips import read_training_clips
from fasttta_jax.evaluation.labels import labels_for, labels_to_arrays, vocabulary_of
from fasttta_jax.evaluation.tagger import TAGGER_MEL, Tagger, TaggerSpec
from fasttta_jax.evaluation.tagger_training import TaggerData, train_tagger
from fasttta_jax.input_pipeline.records import Records, find_records
from fasttta_jax.storage.files import read_json, write_json

logger = logging.getLogger(__name__)

TAGGER_FILE = "tagger.safetensors"
DESCRIPTION_FILE = "tagger.json"
BATCH_SIZE = 32


def load_or_train_tagger(
    folder: pathlib.Path,
    audio_data: str | pathlib.Path,
    *,
    num_samples: int,
    sample_rate: int,
    seed: int,
    num_steps: int,
) -> Tagger:
    """The tagger in `folder` if it fits, or a new one, which is then kept there.

    Args:
      folder: where the tagger is kept.
      audio_data: dataset whose training split it learns from.
      num_samples: length of a clip.
      sample_rate: of the dataset.
      seed: of the training.
      num_steps: updates of the training.

    Raises:
      DatasetError: there is no training split, or its labels name no events.
    """
    description = {
        "training_clips_sha256": _hash_split(audio_data, "train"),
        "num_samples": num_samples,
        "seed": seed,
        "num_steps": num_steps,
    }
    path, description_path = folder / TAGGER_FILE, folder / DESCRIPTION_FILE
    if path.is_file() and description_path.is_file():
        if read_json(description_path) == description:
            logger.info("using the tagger in %s", path)
            return Tagger.load(path)
        logger.info("%s was trained on other data or settings; training a new one", path)
    records = Records(audio_data, "train")
    clips = read_training_clips(records, num_samples)
    spec = spec_for(clips.labels, num_samples, sample_rate)
    arrays = labels_to_arrays(labels_for(clips.labels, spec.axes), spec.vocabulary)
    tagger = train_tagger(
        TaggerData(clips.audio, arrays.events, arrays.attributes),
        spec,
        seed=seed,
        num_steps=num_steps,
        batch_size=min(BATCH_SIZE, len(clips)),
    )
    description_path.unlink(missing_ok=True)
    tagger.save(path)
    write_json(description_path, description)
    return tagger


def spec_for(labels: Sequence[Mapping[str, Any]], num_samples: int, sample_rate: int) -> TaggerSpec:
    """The spec of a tagger for these labels: all their events and axes.

    Args:
      labels: of the training clips.
      num_samples: length of a clip.
      sample_rate: of the clips.
    """
    events, axes = vocabulary_of(labels)
    f_max = min(TAGGER_MEL.f_max, sample_rate / 2)
    mel = dataclasses.replace(TAGGER_MEL, sample_rate=sample_rate, f_max=f_max)
    return TaggerSpec(events, axes, num_samples, mel)


def _hash_split(folder: str | pathlib.Path, split: str) -> str:
    """SHA-256 over the shards of a split, in order."""
    digest = hashlib.sha256()
    for shard in sorted(find_records(folder).glob(f"*-{split}.array_record*")):
        with open(shard, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
