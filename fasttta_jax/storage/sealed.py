"""JSON files that have the SHA-256 of their own values, so that a changed digit is noticed.

The hash is one more field. It does not depend on the order of fields or on the layout of the text;
a file without it, which an earlier version wrote, is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from fasttta_jax.storage.files import StorageError, read_json

FIELD = "self_sha256"


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with their hash."""
    rest = json.loads(json.dumps({name: values[name] for name in values if name != FIELD}))
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    return {**rest, FIELD: digest.hexdigest()}


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a file, here or in an object store, without their hash.

    Raises:
      StorageError: the file cannot be read, is damaged, or holds other values than were written.
    """
    found = read_json(path)
    if FIELD in found and found[FIELD] != sealed(found)[FIELD]:  # NaN is not itself
        raise StorageError(
            f"{os.fspath(path)} is not what was written: it has another SHA-256 than it says. Copy "
            f"it again, or make it anew; if you have edited it, take its field {FIELD} away"
        )
    return {name: value for name, value in found.items() if name != FIELD}
