"""The codec of an encoded dataset: found, told from another, and copied beside the tokens."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np

from fasttta_jax.codecs import Codec
from fasttta_jax.codecs.base import CONFIG_FILE
from fasttta_jax.codecs.columns import padded_length
from fasttta_jax.input_pipeline.records import CODEC_FOLDER
from fasttta_jax.parallel.local import local_rows
from fasttta_jax.storage.files import files_below
from fasttta_jax.storage.weights import copy_folder
from fasttta_jax.storage.whole import whole_folder


def find_codec(folder: str | pathlib.Path) -> pathlib.Path:
    """The codec's folder: `folder` itself, or codec/ in it.

    Raises:
      FileNotFoundError: neither holds a codec.
    """
    candidates = (pathlib.Path(folder), pathlib.Path(folder) / CODEC_FOLDER)
    for candidate in candidates:
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise FileNotFoundError(
        f"--codec is {str(folder)!r}, but neither it nor {CODEC_FOLDER}/ in it holds "
        f"{CONFIG_FILE}; allowed: a codec, or a dataset or workdir with one"
    )


def hash_part(folder: pathlib.Path) -> str:
    """SHA-256 over names and contents of the files of a codec or of text."""
    digest = hashlib.sha256()
    for path in files_below(folder):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def check_variance(codec: Codec, batch_size: int) -> None:
    """Raises ValueError where a codec gives tokens without a variance."""
    shape = (batch_size, padded_length(1, codec.samples_per_column))
    silence: Any = local_rows(np.zeros(shape, np.float32))
    if codec.encode_posterior(silence).log_variance is None:
        raise ValueError(
            f"posterior is 'moments', but a {type(codec).__name__} gives no variance; allowed: "
            "'mean'"
        )


def copy_part(part: pathlib.Path, target: pathlib.Path) -> None:
    """Makes `target` a copy of the folder of a codec or of text, whole or not at all."""
    if target.is_dir() and hash_part(target) == hash_part(part):
        return
    with whole_folder(target) as folder:
        copy_folder(part, folder)
