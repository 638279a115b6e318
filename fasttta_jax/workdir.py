"""The folder of one run: its config, codec and tokenizer beside checkpoints and metrics.

A workdir is all that generation needs. Files are written once and compared on a restart, so a run
cannot quietly go on with another model or other data.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
from typing import Any

from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import ConfigError, RunConfig, from_config_dict, to_config_dict
from fasttta_jax.converted import copy_folder
from fasttta_jax.files import write_json
from fasttta_jax.input_pipeline import CODEC_FOLDER, TEXT_FOLDER, EncodedDataset
from fasttta_jax.text import TextEncoder, load_text_encoder, save_text_encoder

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
ORIGIN_FILE = "origin.json"
FREE_TO_CHANGE = (
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "checkpoints_to_keep",
    "keep_every",
    "best_metric",
    "hang_timeout",
    "sample_prompts",
    "mesh.",
    "optimizer.max_skipped_steps",
    "model.backbone.remat",
)
FREE_PATHS = (
    "data.path",
    "data.audio",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch",
    "data.cache",
    "init_from",
    "decode.",
)


class WorkdirError(ValueError):
    """A workdir that cannot be used for what is asked."""


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {"a.b.c": value}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def same_files(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Whether two folders hold files of the same names and contents; subfolders do not count."""
    contents = [
        {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
        for folder in (first, second)
    ]
    return contents[0] == contents[1]


def _as_json(config: RunConfig) -> dict[str, Any]:
    """The config as JSON gives it back; a field that an older run did not have has its default."""
    return json.loads(json.dumps(to_config_dict(config).to_dict()))


class Workdir:
    """One run's folder.

    Args:
      path: the folder; made by `prepare`.

    Raises:
      WorkdirError: the path is a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise WorkdirError(f"workdir {self.path} is a file; allowed: a folder, new or old")

    def prepare(self, config: RunConfig, dataset: EncodedDataset) -> None:
        """Makes the folder, or checks that it belongs to the same run.

        Raises:
          WorkdirError: it holds a run with another model, other settings or other data.
        """
        data_hash = dataset.fingerprint()
        wanted = {"config": _as_json(config), "data_hash": data_hash}
        config_path = self.path / CONFIG_FILE
        if config_path.exists():
            found = json.loads(config_path.read_text())
            self._compare(_as_json(from_config_dict(found["config"])), wanted["config"])
            if found["data_hash"] != data_hash:
                raise WorkdirError(
                    f"{self.path} was trained on other data than {dataset.path}: the dataset's "
                    f"hash was {found['data_hash'][:12]} and is {data_hash[:12]}. Choose a new "
                    "workdir, or point data.path to the old data"
                )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            copy_folder(dataset.path / CODEC_FOLDER, self.path / CODEC_FOLDER)
            save_text_encoder(dataset.text_folder, self.path / TEXT_FOLDER, config.model.text)
        write_json(config_path, wanted)

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        before, now = flatten(found), flatten(wanted)
        changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        free = FREE_TO_CHANGE + FREE_PATHS
        for name in changed:
            if name.startswith(free):
                logger.info("%s changes from %r to %r", name, before.get(name), now.get(name))
        fixed = [name for name in changed if not name.startswith(free)]
        if fixed:
            shown = "; ".join(
                f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in fixed
            )
            raise WorkdirError(
                f"{self.path} holds a run with other settings: {shown}. Choose a new workdir, or "
                "go back to the old values to resume"
            )

    def config(self) -> RunConfig:
        """The config of the run.

        Raises:
          WorkdirError: there is no run here.
        """
        path = self.path / CONFIG_FILE
        if not path.is_file():
            raise WorkdirError(f"{self.path} holds no run: {CONFIG_FILE} is missing")
        try:
            return from_config_dict(json.loads(path.read_text())["config"])
        except (json.JSONDecodeError, KeyError, ConfigError) as error:
            raise WorkdirError(f"{path} cannot be read: {error}") from error

    def codec(self) -> Codec:
        """The codec that the run's tokens belong to."""
        return load_codec(self.path / CODEC_FOLDER)

    def text(self) -> TextEncoder:
        """The run's text encoder, without trained embeddings; a table stays with the dataset."""
        config = self.config()
        return load_text_encoder(
            self.path / TEXT_FOLDER,
            config.model.text,
            table_folder=pathlib.Path(config.data.path) / TEXT_FOLDER,
        )
