"""Memory mappings of this process, of which Linux allows no more than vm.max_map_count.

A program that XLA compiles for CPUs takes many; where none is left, XLA ends the process.
"""

from __future__ import annotations

import pathlib

MAPPED = pathlib.Path("/proc/self/maps")
ALLOWED = pathlib.Path("/proc/sys/vm/max_map_count")


def share_of_mappings() -> float:
    """Mappings over those that are allowed; 0 where the system does not say."""
    try:
        allowed = int(ALLOWED.read_text())
        return MAPPED.read_bytes().count(b"\n") / max(1, allowed)
    except (OSError, ValueError):
        return 0.0
