"""Small files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
from typing import Any


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes JSON atomically; several processes may write the same file at once."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
