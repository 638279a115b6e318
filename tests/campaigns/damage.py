"""What happens to files: bytes flipped, cut, emptied or replaced, and values of JSON changed."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from tests.campaigns.draws import Draw

STRANGE: tuple[Any, ...] = (
    0, -1, 1, None, "", [], {}, True, False, 1.5, -0.0, float("nan"), float("inf"), -float("inf"),
    2**31, 2**63, 10**30, 1e308, "nan", "x" * 300, "../../outside", "/etc/passwd", "\x00", "\ud800",
    [[]], [0], {"": 0}, "0", "true",
)  # fmt: skip
"""Values that stand where others should."""


def link_tree(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A copy of a folder whose files are hard links; to be replaced, not written to."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def put(path: pathlib.Path, content: bytes) -> None:
    """New content in place of a link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def files_of(folder: pathlib.Path) -> list[str]:
    """The names of all files below a folder, in order."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def damaged(draw: Draw, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes as an accident leaves them.

    Args:
      draw: of the accident.
      content: as it was.
      others: contents of other files that may stand in its place.
    """
    size = len(content)
    match draw.below(9):
        case 0:  # a flipped bit
            return _flipped(draw, content)
        case 1:  # cut
            return content[: draw.below(size + 1)]
        case 2:
            return b""
        case 3:  # a block of zeros, as after a power cut
            start = draw.below(size + 1)
            length = draw.between(1, 4096)
            return (
                content[:start]
                + b"\0" * len(content[start : start + length])
                + content[start + length :]
            )
        case 4:  # bytes too many
            start = draw.below(size + 1)
            return content[:start] + draw.bytes(12) + content[start:]
        case 5:  # a part that is missing
            start = draw.below(size + 1)
            return content[:start] + content[start + draw.between(1, 64) :]
        case 6 if others:  # another file
            return draw.pick(others)
        case 7:  # some other bytes
            return draw.bytes(40)
    for _ in range(draw.between(2, 8)):
        content = _flipped(draw, content)
    return content


def _flipped(draw: Draw, content: bytes) -> bytes:
    if not content:
        return content
    position = draw.below(len(content))
    changed = bytearray(content)
    changed[position] ^= 1 << draw.below(8)
    return bytes(changed)


def damaged_json(draw: Draw, content: bytes) -> bytes:
    """JSON in which a value is another, is missing, or has a neighbour that should not be."""
    tree = json.loads(content)
    nodes: list[tuple[Any, Any]] = []
    _collect(tree, nodes)
    if not nodes or draw.chance(8):
        return json.dumps(draw.pick(STRANGE)).encode()
    parent, key = draw.pick(nodes)
    match draw.below(4):
        case 0:
            parent[key] = draw.pick(STRANGE)
        case 1:
            del parent[key]
        case 2:  # a number or a name that differs little
            parent[key] = near(draw, parent[key])
        case _:
            if isinstance(parent, dict):
                parent[draw.pick(("unknown", "", "path", key + "x"))] = draw.pick(STRANGE)
            else:
                parent.append(draw.pick(STRANGE))
    return json.dumps(tree).encode()


def near(draw: Draw, value: Any) -> Any:
    """A value that differs little."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw.pick(
            (value + 1, value - 1, -value, value * 10, value * 1000, float(value), str(value))
        )
    if isinstance(value, str):
        return draw.pick((value + "x", value[:-1], value.upper(), value * 2))
    if isinstance(value, list):
        return draw.pick((value[:-1], value + value[:1], value[::-1]))
    return [value]


def _collect(node: Any, nodes: list[tuple[Any, Any]]) -> None:
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        nodes.append((node, key))
        _collect(value, nodes)
