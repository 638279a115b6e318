"""The areas of memory that a process has mapped: Linux lets it have some tens of thousands.

A program that XLA compiles for CPUs maps hundreds of them, up to two thousand for a training step;
where none is left, XLA ends the process.
"""

from __future__ import annotations

import pathlib

MAPPED = pathlib.Path("/proc/self/maps")
ALLOWED = pathlib.Path("/proc/sys/vm/max_map_count")


def share_of_areas() -> float:
    """Mapped areas over those that are allowed; 0 where the system does not say."""
    try:
        allowed = int(ALLOWED.read_text())
        return MAPPED.read_bytes().count(b"\n") / max(1, allowed)
    except (OSError, ValueError):
        return 0.0
