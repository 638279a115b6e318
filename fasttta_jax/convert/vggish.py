"""Published VGGish to the parameters of `pretrained.vggish`.

The network is torchvggish's file. Its principal components come in a second one: torchvggish's, the
.npz of TensorFlow's models, or none, and then only the network can be used.
Source: the key names of github.com/harritaylor/torchvggish.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fasttta_jax.convert import layouts, names
from fasttta_jax.convert.names import Entry, Table, axis
from fasttta_jax.convert.read import file_sha256, open_checkpoint
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import ConversionError, StoredTensor
from fasttta_jax.convert.write import Conversion
from fasttta_jax.pretrained.vggish import KIND, VggishConfig
from fasttta_jax.storage.arrays import open_arrays
from fasttta_jax.storage.files import StorageError

CONVOLUTIONS = (0, 3, 6, 8, 11, 13)
LAYERS = {0: "hidden_0", 2: "hidden_1", 4: "embedding"}
"""The numbers of torch's Sequential, which counts ReLUs and poolings, too."""
INSIDE = "pproc."
"""Prefix of the principal components in the state of torchvggish's whole module."""
VECTORS, MEANS = "pca_eigen_vectors", "pca_means"
PCA_FILES = ("vggish_pca_params*.pth", "vggish_pca_params*.npz")
"""Names of the published files of principal components."""


def convert(source: Source, *, pca: pathlib.Path | None = None) -> Conversion:
    """Reads VGGish.

    Args:
      source: an opened checkpoint of the network.
      pca: the file of the principal components. None: those in the checkpoint itself, or in a file
        with a published name beside it, or none.

    Returns:
      Parameters of `Vggish`, and their description.

    Raises:
      ConversionError: the keys are not those of VGGish, a shape is wrong, or there are several
        files of principal components.
    """
    found = layouts.choose(source.state, _fits, source.name)
    state = dict(found.state)
    if not _fits(state):
        raise ConversionError(
            f"{source.name} holds no VGGish: there is none of features.*; "
            f"{layouts.beginning(state)}"
        )
    inside = any(str(key).startswith(INSIDE) for key in state)
    if inside and pca is not None:
        raise ConversionError(
            f"{source.name} has principal components itself ({INSIDE}*); leave --pca out"
        )
    if not inside and pca is None:
        pca = _beside(source)
    config = _config(state, source.name, pca=inside or pca is not None)
    table = _table(config)
    if inside:
        table |= _pca_table(state, config, INSIDE)
    name = f"{source.name} (as {KIND})"
    names.check(state, table, {}, source=name)
    components_of = {"file": source.name, "sha256": source.sha256} if inside else None
    params = {}
    if pca is not None:
        with _open_pca(pca) as components:
            pca_table = _pca_table(components, config, "")
            names.check(components, pca_table, {}, source=f"{pca.name} (as {KIND})")
            params = names.take(components, pca_table)
        components_of = {"file": pca.name, "sha256": file_sha256(pca)}
    metadata = source.describe(
        KIND, "torchvggish", {}, config=config, pca=components_of, **found.said
    )
    return Conversion(names.take(state, table) | params, metadata)


def _fits(state: Mapping[str, Any]) -> bool:
    return any(str(key).startswith("features.") for key in state)


def _beside(source: Source) -> pathlib.Path | None:
    """The one file with a published name in the checkpoint's folder."""
    if source.folder is None:
        return None
    found = sorted(path for pattern in PCA_FILES for path in source.folder.glob(pattern))
    if len(found) > 1:
        raise ConversionError(
            f"beside {source.name} there are {len(found)} files of principal components: "
            f"{', '.join(path.name for path in found)}; choose one with --pca"
        )
    return found[0] if found else None


@contextlib.contextmanager
def _open_pca(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """What a file of principal components holds, for the time of a `with` block."""
    if path.suffix != ".npz":
        with open_checkpoint(path) as tree:
            yield tree
        return
    try:
        with open_arrays(path) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
    except StorageError as error:
        raise ConversionError(str(error)) from error
    yield {
        name: StoredTensor(values.shape, values.dtype.name, functools.partial(np.array, values))
        for name, values in loaded.items()
    }


def _config(state: Mapping[str, Any], source: str, *, pca: bool) -> VggishConfig:
    """The sizes that the shapes tell."""

    def size(key: str) -> int:
        found = axis(state, f"{key}.weight", 0)
        if found is None:
            raise ConversionError(
                f"{source}: {key}.weight is missing or no tensor, so the sizes of the network are "
                "unknown"
            )
        return found

    sizes: dict[str, Any] = {
        "widths": tuple(size(f"features.{index}") for index in CONVOLUTIONS),
        "hidden_size": size("embeddings.0"),
        "embedding_size": size("embeddings.4"),
    }
    try:
        return VggishConfig(**sizes, pca=pca)
    except ValueError as error:
        raise ConversionError(f"{source}: {error}") from error


def _table(config: VggishConfig) -> Table:
    table: Table = {}
    width_in = 1
    for index, (number, width) in enumerate(zip(CONVOLUTIONS, config.widths, strict=True)):
        key, path = f"features.{number}", f"conv_{index}"
        table |= names.convolution(key, path, width_in, width, (3, 3))
        width_in = width
    sizes = (config.flattened_size, *[config.hidden_size] * 2, config.embedding_size)
    for index, (number, path) in enumerate(LAYERS.items()):
        table |= names.linear(f"embeddings.{number}", path, sizes[index], sizes[index + 1])
    return table


def _pca_table(state: Mapping[str, Any], config: VggishConfig, prefix: str) -> Table:
    """Vectors in rows; the means are a column in the state of the module, and may be a row."""
    size = config.embedding_size
    column = axis(state, f"{prefix}{MEANS}", 1) is not None
    return {
        f"{prefix}{VECTORS}": Entry("pca/kernel", (size, size), names.transposed),
        f"{prefix}{MEANS}": Entry("pca/mean", (size, 1) if column else (size,), np.ravel),
    }
