"""Random inputs as sequences of whole numbers, so that any of them can be repeated and made small.

A generator asks a `Draw` for numbers below a bound, and for nothing else; 0 is the plainest answer.
The numbers that it was given are the input: the same ones make it again, and fewer or smaller ones
make a smaller one, as in Hypothesis (MacIver and Donaldson, Test-case reduction via test-case
generation, ECOOP 2020). Hypothesis itself ends at the first failure and does not repeat what it has
seen, where a campaign goes on and counts every input.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

MOST_TRIES = 120


class Draw:
    """Answers of one input.

    Args:
      seed: of the answers, where none are given.
      given: answers of an earlier input; behind their end every answer is 0.
    """

    def __init__(self, seed: str = "", given: Sequence[int] | None = None) -> None:
        self.answers: list[int] = []
        self._random = random.Random(seed)
        self._given = given

    def below(self, bound: int) -> int:
        """A whole number from 0 up to, not including, a bound."""
        if self._given is None:
            answer = self._random.randrange(bound)
        else:
            index = len(self.answers)
            answer = min(self._given[index], bound - 1) if index < len(self._given) else 0
        self.answers.append(answer)
        return answer

    def between(self, lowest: int, highest: int) -> int:
        """A whole number of a range that holds both ends."""
        return lowest + self.below(highest - lowest + 1)

    def pick(self, values: Sequence[T]) -> T:
        """One of some values; the first is the plainest."""
        return values[self.below(len(values))]

    def chance(self, parts: int = 2) -> bool:
        """True once in so many times."""
        return self.below(parts) == parts - 1

    def bytes(self, most: int) -> bytes:
        """Up to so many bytes."""
        return bytes(self.below(256) for _ in range(self.below(most + 1)))

    def text(self, pieces: Sequence[str], most: int = 6) -> str:
        """Up to so many of some pieces, one after the other."""
        return "".join(self.pick(pieces) for _ in range(self.below(most + 1)))


def shrink(answers: Sequence[int], still_fails: Callable[[list[int]], bool]) -> list[int]:
    """A shorter or smaller sequence of answers that fails as well.

    Args:
      answers: that fail.
      still_fails: says whether others do, in the same way.
    """
    best, tries = list(answers), 0

    def better(candidate: list[int]) -> bool:
        nonlocal best, tries
        if candidate == best or tries >= MOST_TRIES:
            return False
        tries += 1
        if not still_fails(candidate):
            return False
        best = candidate
        return True

    size = len(best)
    while size:
        start = 0
        while start < len(best):
            if not better(best[:start] + best[start + size :]):
                start += size
        size //= 2
    for index in range(len(best)):
        if index < len(best) and best[index]:
            for smaller in (0, 1, best[index] // 2):
                if smaller < best[index] and better([*best[:index], smaller, *best[index + 1 :]]):
                    break
    return best
