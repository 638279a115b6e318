"""A tensor inside a checkpoint that is still on disk, and the error that every step raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class ConversionError(ValueError):
    """A checkpoint that cannot be converted: names the file, and each key that is wrong."""


class StoredTensor(NamedTuple):
    """A tensor on disk, its values not read yet.

    Attributes:
      shape: its axes.
      dtype: name of its type, such as "float32" or "bfloat16".
      read: reads the values, of that shape and type; raises ConversionError where they are damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
