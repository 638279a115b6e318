"""Words of prompts that a model never saw, named once: it reads them as blanks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

logger = logging.getLogger(__name__)

MOST_NAMED = 50
"""Unknown words that are named in one process."""
MOST_LISTED = 200
"""Known words up to which they are listed."""


def tells(word: str) -> bool:
    """Whether a word may say what is heard: "a", "of" and "is" do not."""
    return len(word) > 2 or not word.isascii()


def note(unknown: Sequence[str], known: Sequence[str]) -> str:
    """A sentence about words that a model does not know, and those that it does."""
    missing = ", ".join(map(repr, unknown))
    listed = f" {len(known):,} other words"
    if len(known) <= MOST_LISTED:
        listed = ": " + ", ".join(word for word in known if tells(word))
    return f"the model knows no {missing}, and reads a blank there; it knows{listed}"


class UnknownWordsLog:
    """Warns of every unknown word once, the first time together with what is known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[str, None] = {}

    def add(self, unknown: Sequence[str], known: Sequence[str]) -> None:
        """More unknown words; those that were named before, and those beyond `MOST_NAMED`, pass."""
        with self._lock:
            before = len(self._named)
            fresh = [word for word in unknown if tells(word) and word not in self._named]
            del fresh[MOST_NAMED - before :]
            self._named |= dict.fromkeys(fresh)
        if not fresh:
            return
        if not before:
            logger.warning("%s", note(fresh, known))
        else:
            logger.warning("the model knows no %s, either", ", ".join(map(repr, fresh)))
        if before + len(fresh) == MOST_NAMED:
            logger.warning("further words that it does not know are not named")


unknown_words_log = UnknownWordsLog()
"""Of this process."""
