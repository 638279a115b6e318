"""Opens a checkpoint, whatever its format, as a tree of names with tensors that are still on disk.

Formats: torch's files (.pth .pt .bin .ckpt), of before version 1.6 and since, and safetensors.
Torch itself is not needed, and nothing in a file is executed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.torch_files import OldTorchFile, TorchFile

HASH_BLOCK = 1 << 22
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def file_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, hexadecimal; shows progress on a terminal."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size, desc="sha256", unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        while block := file.read(HASH_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


@contextlib.contextmanager
def open_checkpoint(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """The content of a checkpoint, for the time of a `with` block.

    Args:
      path: a file of torch, or *.safetensors.

    Yields:
      Names to StoredTensor, nested as the file has them; other values as they are.

    Raises:
      ConversionError: the file is absent, cut short, damaged or of another format, or its pickle
        asks for something that is not allowed.
    """
    if not path.is_file():
        raise ConversionError(f"checkpoint {path} is not a file")
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as flat:
            yield flat
        return
    with path.open("rb") as file:
        start = file.read(2)
    formats = {b"PK": TorchFile, b"\x80\x02": OldTorchFile}
    if start not in formats:
        raise ConversionError(
            f"{path} is no checkpoint that can be read; allowed: torch's formats (.pth, .pt, "
            ".bin, .ckpt) and .safetensors"
        )
    with formats[start](path) as file:
        tree = file.tree()
        if not isinstance(tree, Mapping):
            raise ConversionError(f"{path} holds a {type(tree).__name__}; expected a dict")
        yield tree


@contextlib.contextmanager
def _open_safetensors(path: pathlib.Path) -> Iterator[dict[str, StoredTensor]]:
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ConversionError(
            f"{path} is no readable safetensors file ({error}); copy or download it again"
        ) from error
    with file:
        yield {name: _safetensor(file, path, name) for name in file.keys()}  # noqa: SIM118


def _safetensor(file: Any, path: pathlib.Path, name: str) -> StoredTensor:
    view = file.get_slice(name)
    dtype = _SAFETENSORS_DTYPES.get(view.get_dtype(), str(view.get_dtype()))
    return StoredTensor(
        tuple(view.get_shape()), dtype, functools.partial(_read_safetensor, file, path, name)
    )


def _read_safetensor(file: Any, path: pathlib.Path, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (SafetensorError, TypeError) as error:
        raise ConversionError(f"{name} in {path} cannot be read: {error}") from error
