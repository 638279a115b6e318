"""SHA-256 of parameters, by which a model is known again."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from fasttta_jax.multihost import distributed


def tree_hash(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a tree of arrays, on any number of hosts.

    Every host calls it; one array at a time is in its memory as a whole.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(distributed.to_host(leaf))
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        digest.update(content.data)  # not tobytes(), a second copy
    return digest.hexdigest()
