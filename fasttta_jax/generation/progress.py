"""How far a long job is, in the log: clips and seconds of audio a second, and the time left."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30.0


class Progress:
    """Counts the clips of a process.

    Args:
      total: clips to make.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.clips = 0
        self.audio_seconds = 0.0
        self.started = self._reported = time.monotonic()

    def add(self, clips: int, audio_seconds: float) -> None:
        """More clips are done; says so now and then. The time to compile counts as well."""
        self.clips += clips
        self.audio_seconds += audio_seconds
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            logger.info("%s", self)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        left = (self.total - self.clips) * seconds / max(self.clips, 1)
        return (
            f"{self.clips:,} of {self.total:,} clips, {self.clips / seconds:.3g} clips/s, "
            f"{self.audio_seconds / seconds:.3g} s of audio/s, {duration(left)} left"
        )


def duration(seconds: float) -> str:
    """Such as "2 d 3 h", "4 h 5 min", "6 min", "7 s"."""
    whole = round(seconds)
    for unit, smaller, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"
