"""The folder of one run: its config, codec and tokenizer beside checkpoints and metrics.

A workdir is all that generation needs. Files are written once and compared on a restart, so a run
cannot quietly go on with another model or other data. `config.json` has the SHA-256 of its own
contents and of the files of codec and text, which are compared when they are read. A workdir may
lie in an object store, which the hosts of a pod share where they share no file system: one host
prepares it, and all of them read it afterwards.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from fasttta_jax.codecs import Codec, load_codec
from fasttta_jax.config import ConfigError, RunConfig, flatten, from_config_dict, to_config_dict
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, TEXT_FOLDER, EncodedDataset
from fasttta_jax.storage.content import content_hashes, file_sha256
from fasttta_jax.storage.files import (
    AnyPath,
    StorageError,
    as_path,
    differences,
    is_remote,
    list_files,
    storage_errors,
    write_json,
)
from fasttta_jax.storage.sealed import read_sealed, sealed
from fasttta_jax.storage.staging import DEFAULT_CACHE, stage
from fasttta_jax.storage.weights import copy_folder
from fasttta_jax.storage.whole import remove_leftovers
from fasttta_jax.text import TextEncoder, load_text_encoder, save_text_encoder
from fasttta_jax.text.networks import SUMMARY_FILE as NETWORKS_FILE
from fasttta_jax.workdir.checkpoint_folder import shorten, unusable_path

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
ORIGIN_FILE = "origin.json"
FILES = "files"
"""Under which config.json has the SHA-256 of the files of codec and text."""
FREE_TO_CHANGE = (
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "checkpoints_to_keep",
    "keep_every",
    "best_metric",
    "hang_timeout",
    "sample_prompts",
    "validation_clips",
    "mesh.",
    "optimizer.max_skipped_steps",
    "model.backbone.remat",
)
FREE_PATHS = (
    "data.path",
    "data.mixture",
    "data.validation_paths",
    "data.num_threads",
    "data.num_workers",
    "data.prefetch",
    "data.cache",
    "init_from",
    "decode.",
)
CONTINUABLE = (
    "num_steps",
    "optimizer.learning_rate",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
)
"""Fields that a run may go on with after it began with others; config.json says what changed."""


class WorkdirError(StorageError):
    """A workdir cannot be read, written or used for this config."""


def same_files(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Whether two folders hold files of the same names and contents; subfolders do not count."""
    contents = [
        {path.name: path.read_bytes() for path in as_path(folder).glob("*") if path.is_file()}
        for folder in (first, second)
    ]
    return contents[0] == contents[1]


def _as_json(config: RunConfig) -> dict[str, Any]:
    """The config as JSON gives it back; a field that an older run did not have has its default."""
    return json.loads(json.dumps(to_config_dict(config).to_dict()))


def _by_freedom(config: dict[str, Any]) -> dict[bool, dict[str, Any]]:
    """The fields of a config: those that a resumed run may change, and those that it may not."""
    parts: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for name, value in flatten(config).items():
        parts[name.startswith(FREE_TO_CHANGE + FREE_PATHS)][name] = value
    return parts


class Workdir:
    """One run's folder.

    Args:
      path: the folder, made by `prepare`, or its URL in an object store.
      cache: folder of this host where codec and text of a URL are copied to.

    Raises:
      WorkdirError: the path is a file, a URL that cannot be reached, or one that cannot hold
        checkpoints.
    """

    def __init__(self, path: str | os.PathLike[str], cache: str = DEFAULT_CACHE) -> None:
        self._cache = cache
        if (reason := unusable_path(path)) is not None:
            raise WorkdirError(f"workdir {os.fspath(path)!r} {reason}; allowed: other characters")
        with _workdir_errors(path, "opened"):
            self.path: AnyPath = as_path(path)
            if self.path.exists() and not self.path.is_dir():
                raise WorkdirError(f"workdir {self.path} is a file; allowed: a folder, new or old")

    def prepare(self, config: RunConfig, dataset: EncodedDataset) -> bool:
        """Makes the folder, or checks that it belongs to the same run; for one host of several.

        Returns:
          Whether the run is new here.

        Raises:
          WorkdirError: it holds a run with another model, other settings or other data, or it
            cannot be written.
        """
        data_hash = dataset.fingerprint()
        wanted: dict[str, Any] = {"config": _as_json(config), "data_hash": data_hash}
        if len(dataset.parts) > 1:
            wanted["part_hashes"] = [part.fingerprint() for part in dataset.parts]
        config_path = self.path / CONFIG_FILE
        with _workdir_errors(config_path, "read"):
            begun = config_path.exists()
        if isinstance(self.path, pathlib.Path):
            remove_leftovers(self.path, deep=False)
        found = self._read() if begun else None
        if found is not None:
            wanted |= {FILES: found[FILES]} if FILES in found else {}
            changed = self._compare(_as_json(self.config()), wanted["config"])
            if changes := [*found.get("changes", []), *changed]:
                wanted["changes"] = changes
            if found.get("data_hash") != data_hash:
                raise WorkdirError(
                    f"{self.path} was trained on other data than {dataset.path}: the dataset's "
                    f"hash was {str(found.get('data_hash'))[:12]} and is {data_hash[:12]}. Choose "
                    "a new workdir, or point data.path to the old data"
                )
        else:
            with self.folder() as folder:
                copy_folder(dataset.path / CODEC_FOLDER, folder / CODEC_FOLDER)
                save_text_encoder(dataset.text_folder, folder / TEXT_FOLDER, config.model.text)
                wanted[FILES] = {
                    f"{part}/{name}": file_sha256(folder / part / name)
                    for part in (CODEC_FOLDER, TEXT_FOLDER)
                    for name in list_files(folder / part)
                }
        with _workdir_errors(config_path, "written"):
            write_json(config_path, sealed(wanted))
        return found is None

    def abandon(self) -> None:
        """Takes the config of a run that cannot begin away again, so that another may begin here.

        Raises:
          WorkdirError: the folder cannot be written.
        """
        for name in (CONFIG_FILE, ORIGIN_FILE):
            with _workdir_errors(self.path / name, "removed"):
                (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def folder(self, name: str = "") -> Iterator[pathlib.Path]:
        """A local folder to write into; what it holds is in the workdir when the context ends.

        Args:
          name: of the folder in the workdir, such as "samples/00000500"; "" is the workdir itself.

        Raises:
          WorkdirError: it cannot be written.
        """
        target = self.path / name
        if not is_remote(target):
            folder = pathlib.Path(target)
            with _workdir_errors(folder, "written"):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="fasttta_jax_workdir_") as temporary:
            yield pathlib.Path(temporary)
            with _workdir_errors(target, "written"):
                copy_folder(temporary, target)

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Refuses what may not differ; returns what the run goes on with, as config.json has it."""
        before, now = _by_freedom(found), _by_freedom(wanted)
        for difference in differences(before[True], now[True]):
            logger.info("a setting that may change: %s", difference)
        changed = {
            name: [before[False].pop(name, None), now[False].pop(name, None)]
            for name in CONTINUABLE
            if before[False].get(name) != now[False].get(name)
        }
        if different := differences(before[False], now[False]):
            raise WorkdirError(
                f"{self.path} holds a run with other settings: {'; '.join(different)}. Choose a "
                "new workdir, or go back to the old values to resume"
            )
        for name, (old, new) in changed.items():
            logger.warning("the run goes on with %s %r, where it had %r", name, new, old)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return [{"on": today, **changed}] if changed else []

    def config(self) -> RunConfig:
        """The config of the run.

        Raises:
          WorkdirError: there is no run here, or it cannot be read.
        """
        path = self.path / CONFIG_FILE
        found = self._read()
        if not isinstance(found.get("config"), dict):
            raise WorkdirError(f"{path} is no config of a run: it lacks config, an object")
        try:
            return from_config_dict(found["config"])
        except (TypeError, AttributeError, ConfigError) as error:
            raise WorkdirError(f"{path} cannot be read: {error}") from error

    def _read(self) -> dict[str, Any]:
        """The values of config.json."""
        path = self.path / CONFIG_FILE
        with _workdir_errors(path, "read"):
            if not path.is_file():
                raise WorkdirError(f"{self.path} holds no run: {CONFIG_FILE} is missing")
            return read_sealed(path)

    def _part(self, name: str) -> pathlib.Path:
        """The local folder of codec or text, whose files are what was written.

        Raises:
          WorkdirError: one is not; names it.
        """
        folder = stage(self.path / name, self._cache)
        wanted = {
            inner: sha256
            for file, sha256 in dict(self._read().get(FILES, {})).items()
            for part, _, inner in [file.partition("/")]
            if part == name
        }
        found = content_hashes(folder, wanted)
        if problems := [inner for inner in wanted if found[inner] != wanted[inner]]:
            raise WorkdirError(
                f"{folder} is not what was written: {shorten(problems)} is missing, or has another "
                f"SHA-256 than {CONFIG_FILE} says. Copy it again"
            )
        return folder

    def codec(self) -> Codec:
        """The codec that the run's tokens belong to.

        Raises:
          WorkdirError: a file of it is not what was written.
        """
        return load_codec(self._part(CODEC_FOLDER))

    def text(self, dataset: EncodedDataset | None = None) -> TextEncoder:
        """The run's text encoder, without trained embeddings; a table stays with the dataset.

        Args:
          dataset: the run's, where it is open already: its tables are used. Otherwise they are
            those that the config's data.path and data.mixture hold, which are not copied from an
            object store where the workdir has the networks that made them.

        Raises:
          WorkdirError: a file of it is not what was written.
        """
        config = self.config()
        if config.model.text.encoder == "none":
            return load_text_encoder("", config.model.text)
        folder = self._part(TEXT_FOLDER)
        return load_text_encoder(
            folder, config.model.text, table_folders=self._table_folders(config, folder, dataset)
        )

    def _table_folders(
        self, config: RunConfig, folder: pathlib.Path, dataset: EncodedDataset | None
    ) -> list[pathlib.Path]:
        if dataset is not None:
            return [part.text_folder for part in dataset.parts]
        has_networks = (folder / NETWORKS_FILE).is_file()
        needs_tables = config.model.text.encoder == "frozen" and not has_networks
        found = []
        for data in filter(None, (config.data.path, *config.data.mixture)):
            if not is_remote(data):
                found.append(pathlib.Path(data) / TEXT_FOLDER)
            elif needs_tables:
                found.append(stage(data, self._cache, only=(TEXT_FOLDER,)) / TEXT_FOLDER)
        return found or [folder]


@contextlib.contextmanager
def _workdir_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Errors of the file system or the object store as WorkdirErrors that name the path."""
    try:
        with storage_errors(path, doing):
            yield
    except WorkdirError:
        raise
    except StorageError as error:
        raise WorkdirError(f"workdir: {error}") from error
