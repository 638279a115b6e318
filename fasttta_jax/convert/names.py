"""The table of a conversion: which key of a checkpoint becomes which parameter, and its check.

Every key of the file must be in the table or be dropped for a stated reason, every key of the table
must be in the file, and every shape must be the expected one. All that is wrong is reported at
once, in a message that a screen can hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fasttta_jax.convert.stored import ConversionError, StoredTensor

MOST_LINES = 20
"""Wrong keys that are all named; a screen has 24 lines."""
MOST_SHOWN = 5
"""Of each kind, where there are more."""
MOST_CHARACTERS = 200
FLOATS = ("float64", "float32", "float16", "bfloat16")

Size = int | None
"""An axis; None where the key that tells it is missing, so that it cannot be compared."""


def as_it_is(values: np.ndarray) -> np.ndarray:
    return values


def transposed(values: np.ndarray) -> np.ndarray:
    """A torch linear weight [out, in] as a kernel [in, out]."""
    return values.T


def first(values: np.ndarray) -> np.ndarray:
    """Without a leading axis of 1."""
    return values[0]


def channels_last(values: np.ndarray) -> np.ndarray:
    """A torch convolution's weight [out, in, *taps] as a kernel [*taps, in, out]."""
    return np.moveaxis(values, (0, 1), (-1, -2))


def without_taps(values: np.ndarray) -> np.ndarray:
    """A weight [out, in, 1...] as a kernel [in, out]."""
    return values.reshape(values.shape[:2]).T


class Entry(NamedTuple):
    """One key of a checkpoint.

    Attributes:
      path: the parameter, its names joined by "/".
      shape: the expected axes in the file.
      layout: values of the file to values of the parameter.
    """

    path: str
    shape: tuple[Size, ...]
    layout: Callable[[np.ndarray], np.ndarray] = as_it_is


Table = dict[str, Entry]


def linear(key: str, path: str, features_in: Size, features_out: Size) -> Table:
    """A torch Linear: weight [out, in] and bias [out]."""
    return {
        f"{key}.weight": Entry(f"{path}/kernel", (features_out, features_in), transposed),
        f"{key}.bias": Entry(f"{path}/bias", (features_out,)),
    }


def projection(key: str, path: str, features_in: Size, features_out: Size) -> Table:
    """A torch Linear without bias: weight [out, in]."""
    return {f"{key}.weight": Entry(f"{path}/kernel", (features_out, features_in), transposed)}


def convolution(
    key: str, path: str, features_in: Size, features_out: Size, taps: tuple[int, ...]
) -> Table:
    """A torch convolution: weight [out, in, *taps] and bias [out]."""
    return {
        f"{key}.weight": Entry(f"{path}/kernel", (features_out, features_in, *taps), channels_last),
        f"{key}.bias": Entry(f"{path}/bias", (features_out,)),
    }


def pointwise(
    key: str, path: str, features_in: Size, features_out: Size, num_axes: int = 4
) -> Table:
    """A torch convolution of kernel size 1, as a linear layer: weight [out, in, 1...]."""
    shape = (features_out, features_in, *(1,) * (num_axes - 2))
    return {
        f"{key}.weight": Entry(f"{path}/kernel", shape, without_taps),
        f"{key}.bias": Entry(f"{path}/bias", (features_out,)),
    }


def layer_norm(key: str, path: str, width: Size) -> Table:
    """A torch LayerNorm with weight and bias."""
    return {
        f"{key}.weight": Entry(f"{path}/scale", (width,)),
        f"{key}.bias": Entry(f"{path}/bias", (width,)),
    }


def batch_norm(key: str, path: str, width: Size) -> Table:
    """A torch BatchNorm with weight, bias and running statistics."""
    return {
        f"{key}.weight": Entry(f"{path}/scale", (width,)),
        f"{key}.bias": Entry(f"{path}/bias", (width,)),
        f"{key}.running_mean": Entry(f"{path}/mean", (width,)),
        f"{key}.running_var": Entry(f"{path}/variance", (width,)),
    }


def times(size: Size, factor: int) -> Size:
    """`factor` times an axis."""
    return None if size is None else factor * size


def axis(state: Mapping[str, Any], key: str, index: int) -> Size:
    """The size of one axis of a key; None where there is no such key or axis."""
    tensor = state.get(key)
    if isinstance(tensor, StoredTensor) and index < len(tensor.shape):
        return tensor.shape[index]
    return None


def count(state: Mapping[str, Any], prefix: str) -> int:
    """How many parts are numbered behind a prefix, as in "blocks.3.": the highest number plus 1."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    matches = (pattern.match(str(key)) for key in state)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def shown(shape: tuple[Size, ...]) -> str:
    """A shape as text, with a question mark for what is not known."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _fits(found: tuple[int, ...], expected: tuple[Size, ...]) -> bool:
    return len(found) == len(expected) and all(
        want in (None, size) for size, want in zip(found, expected, strict=True)
    )


def check(
    state: Mapping[str, Any], table: Table, dropped: Mapping[str, str], *, source: str
) -> None:
    """Compares a checkpoint's names and shapes with the table; reads no tensor.

    Args:
      state: keys to StoredTensor.
      table: what is expected.
      dropped: keys that are allowed and not used, with the reason.
      source: what to call the checkpoint in the error.

    Raises:
      ConversionError: names the keys that are missing, not expected, of a wrong shape or no
        floating-point tensor: all of a few, of many the first of each kind, with their number.
    """
    missing, unfit, unexpected = [], [], []
    for key, entry in table.items():
        if key not in state:
            missing.append(f"{key}: missing, expected shape {shown(entry.shape)}")
            continue
        tensor = state[key]
        if not isinstance(tensor, StoredTensor):
            unfit.append(f"{key}: found a {type(tensor).__name__}, expected a tensor")
        elif not _fits(tensor.shape, entry.shape):
            unfit.append(f"{key}: found shape {shown(tensor.shape)}, expected {shown(entry.shape)}")
        elif tensor.dtype not in FLOATS:
            unfit.append(f"{key}: found type {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    for key, tensor in state.items():
        if key not in table and key not in dropped:
            if isinstance(tensor, StoredTensor):
                found = f"of shape {shown(tensor.shape)}"
            elif isinstance(tensor, int | float | str):
                found = repr(tensor)[:60]
            else:
                found = f"a {type(tensor).__name__}"
            unexpected.append(f"{str(key)[:MOST_CHARACTERS]}: not expected, found {found}")
    if count := len(missing) + len(unfit) + len(unexpected):
        most = MOST_SHOWN if count > MOST_LINES else count
        lines = [
            line
            for name, group in (
                ("missing", missing),
                ("not as expected", unfit),
                ("not expected", unexpected),
            )
            for line in _first(group, most, name)
        ]
        raise ConversionError(
            f"{source}: {count} keys are wrong, {len(state)} are there\n  " + "\n  ".join(lines)
        )


def _first(lines: list[str], most: int, name: str) -> list[str]:
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"and {more} more that are {name}"]


def take(state: Mapping[str, StoredTensor], table: Table) -> dict[str, np.ndarray]:
    """Reads the tensors of a checked table, one after the other.

    Returns:
      Parameters by path, float32 and contiguous.
    """
    return {
        entry.path: np.ascontiguousarray(entry.layout(state[key].read()), np.float32)
        for key, entry in tqdm(table.items(), desc="reading", unit="tensor", disable=None)
    }
