"""Counts what XLA compiles, how long it takes, and what the compilation cache saves."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"
MISS = "/jax/compilation_cache/cache_misses"


class Compilations(NamedTuple):
    """Totals of this process since `count` was first called.

    Attributes:
      programs: compiled, or read from the cache.
      seconds: that this took, without tracing and lowering.
      hits: programs that the cache had.
      misses: programs that it had not, and now has where they took long enough.
    """

    programs: int = 0
    seconds: float = 0.0
    hits: int = 0
    misses: int = 0

    def since(self, before: Compilations) -> Compilations:
        """What came after `before`."""
        return Compilations(
            self.programs - before.programs,
            self.seconds - before.seconds,
            self.hits - before.hits,
            self.misses - before.misses,
        )

    def describe_cache(self) -> str:
        """What the cache did, in words."""
        values = jax.config.values
        if not (values["jax_enable_compilation_cache"] and values["jax_compilation_cache_dir"]):
            return "no compilation cache"
        return f"compilation cache: {self.hits} hits, {self.misses} misses"


class _Counter:
    def __init__(self) -> None:
        self.total = Compilations()
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            total = self.total
            self.total = total._replace(
                programs=total.programs + 1, seconds=total.seconds + duration_secs
            )

    def _on_event(self, event: str, **_: Any) -> None:
        if event == HIT:
            self.total = self.total._replace(hits=self.total.hits + 1)
        elif event == MISS:
            self.total = self.total._replace(misses=self.total.misses + 1)


@functools.cache
def _counter() -> _Counter:
    return _Counter()  # listeners cannot be taken away again: one for the whole process


def count() -> Compilations:
    """The totals so far; counting begins with the first call."""
    return _counter().total
