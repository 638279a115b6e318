"""The frozen networks that turn captions into streams: Flan-T5's states, CLAP's single vector.

A `text/` folder holds them as `networks/NAME/`, a folder that `python -m fasttta_jax.convert t5` or
`clap` made, and `networks.json` beside it: names, sizes and hashes. T5 gives a state for each
token, its closing one included; CLAP one normalised vector.
Dimensions: n captions, B captions of a batch, L positions, E width of a stream.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Float16, Int32

from fasttta_jax.config import ComputeDtype
from fasttta_jax.parallel.local import local_copies, local_rows, on_local_devices
from fasttta_jax.pretrained import clap_text as clap
from fasttta_jax.pretrained import t5
from fasttta_jax.storage.files import read_json, write_json
from fasttta_jax.storage.weights import copy_folder, read_metadata
from fasttta_jax.storage.whole import remove_leftovers
from fasttta_jax.text.table import EmbeddingError, Stream
from fasttta_jax.text.tokenize import encode, load_tokenizer

FOLDER = "networks"
SUMMARY_FILE = "networks.json"
BATCH_SIZE = 32
LENGTH_UNIT = 16
"""Token batches are padded to multiples of this, so that few programs are compiled."""
CLAP_TOKENS = 77
"""Tokens that LAION's CLAP reads of a caption."""
DTYPES = get_args(ComputeDtype)


class Network(NamedTuple):
    """One frozen encoder.

    Attributes:
      tokenizer: its own.
      max_tokens: longest caption, in tokens.
      positions: L of its stream.
      width: E.
      sha256: of the file that the weights came from.
      params: its parameters, on every device of this host.
      apply: (params, ids [B, tokens], mask [B, tokens]) to [B, tokens, E], or [B, 1, E] where L is
        1.
    """

    tokenizer: tokenizers.Tokenizer
    max_tokens: int
    positions: int
    width: int
    sha256: str
    params: Any
    apply: Callable[..., jax.Array]


def _open_t5(folder: pathlib.Path, positions: int, dtype: str) -> Network:
    config, params = t5.load(folder)
    module = t5.T5Encoder(config, dtype=jnp.dtype(dtype))

    def apply(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.asarray(module.apply({"params": params}, ids, mask))

    return Network(
        tokenizer=load_tokenizer(folder),
        max_tokens=positions,
        positions=positions,
        width=config.d_model,
        sha256=read_metadata(folder)["sha256"],
        params=local_copies(params),
        apply=jax.jit(apply),
    )


def _open_clap(folder: pathlib.Path, positions: int, dtype: str) -> Network:
    if positions != 1:
        raise EmbeddingError(f"{folder} is CLAP with {positions} positions; allowed: 1")
    config, params = clap.load(folder)
    module = clap.ClapText(config, dtype=jnp.dtype(dtype))

    def apply(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.asarray(module.apply({"params": params}, ids, mask))[:, None]

    return Network(
        tokenizer=load_tokenizer(folder),
        max_tokens=min(CLAP_TOKENS, config.max_length),
        positions=1,
        width=config.projection_dim,
        sha256=read_metadata(folder)["sha256"],
        params=local_copies(params),
        apply=jax.jit(apply),
    )


OPENERS = {"t5": _open_t5, "clap": _open_clap}
POSITIONS = {"t5": 77, "clap": 1}
"""Default number of positions of a stream, as in the published models."""


def open_network(folder: str | pathlib.Path, positions: int | None, dtype: str) -> Network:
    """The network in a folder of converted weights.

    Args:
      folder: of kind "t5" or "clap".
      positions: L of its stream; None for the published one.
      dtype: of its matrix products, "float32" or "bfloat16".

    Raises:
      EmbeddingError: the folder holds another kind, or the number of positions or the type is not
        possible.
    """
    folder = pathlib.Path(folder)
    kind = read_metadata(folder)["kind"]
    if kind not in OPENERS:
        raise EmbeddingError(f"{folder} holds {kind!r}; allowed: {', '.join(OPENERS)}")
    if dtype not in DTYPES:
        raise EmbeddingError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    return OPENERS[kind](folder, POSITIONS[kind] if positions is None else positions, dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """All networks of a `text/` folder.

    Attributes:
      networks: by the names of their streams, in the order of the prefix.
      dtype: of their matrix products.
    """

    networks: Mapping[str, Network]
    dtype: str

    @functools.cached_property
    def streams(self) -> tuple[Stream, ...]:
        """Names and sizes."""
        return tuple(
            (name, network.positions, network.width) for name, network in self.networks.items()
        )

    def summary(self) -> dict[str, Any]:
        """Names, sizes, type and the hash of each one's weights, as JSON."""
        return {
            "streams": [list(stream) for stream in self.streams],
            "dtype": self.dtype,
            "sha256": {name: network.sha256 for name, network in self.networks.items()},
        }

    def encode(self, captions: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Embeddings float16 [n, L, E] and lengths [n] of each stream, batch by batch."""
        return {name: _encode(network, captions) for name, network in self.networks.items()}


def _encode(
    network: Network, captions: Sequence[str]
) -> tuple[Float16[np.ndarray, "n L E"], Int32[np.ndarray, " n"]]:
    ids, mask = encode(network.tokenizer, captions, network.max_tokens)
    values = np.zeros((len(captions), network.positions, network.width), np.float16)
    rows = BATCH_SIZE * jax.local_device_count()
    for start in range(0, len(captions), rows):
        found = mask[start : start + rows]
        longest = int(found.sum(axis=1).max(initial=1))
        length = min(network.max_tokens, -(-longest // LENGTH_UNIT) * LENGTH_UNIT)
        padding = ((0, rows - len(found)), (0, 0))
        batch = [np.pad(part[start : start + rows, :length], padding) for part in (ids, mask)]
        with on_local_devices():
            states = np.asarray(network.apply(network.params, *map(local_rows, batch)))
        kept = min(states.shape[1], network.positions)
        values[start : start + rows, :kept] = states[: len(found), :kept].astype(np.float16)
    lengths = np.minimum(mask.sum(axis=1), network.positions).astype(np.int32)
    values[np.arange(network.positions)[None] >= lengths[:, None]] = 0  # means nothing there
    return values, lengths


def save_networks(
    folder: str | pathlib.Path, sources: Mapping[str, str | pathlib.Path], networks: Networks
) -> None:
    """Puts converted weights below a `text/` folder, as links where the file system can.

    Args:
      folder: the `text/` folder.
      sources: by stream, the folder of converted weights.
      networks: as opened from there.
    """
    folder = pathlib.Path(folder)
    for name, source in sources.items():
        copy_folder(source, folder / FOLDER / name)
    remove_leftovers(folder, deep=False)
    write_json(folder / SUMMARY_FILE, networks.summary())


def copy_networks(source: str | pathlib.Path, folder: str | pathlib.Path) -> None:
    """Copies the networks of one `text/` folder to another, if there are any."""
    source, folder = pathlib.Path(source), pathlib.Path(folder)
    if (source / SUMMARY_FILE).is_file():
        copy_folder(source / FOLDER, folder / FOLDER)
        shutil.copy2(source / SUMMARY_FILE, folder / SUMMARY_FILE)


def load_networks(folder: str | pathlib.Path) -> Networks | None:
    """The networks below a `text/` folder; None where there are none."""
    path = pathlib.Path(folder) / SUMMARY_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    return Networks(
        {
            name: open_network(path.parent / FOLDER / name, positions, values["dtype"])
            for name, positions, _ in values["streams"]
        },
        values["dtype"],
    )
