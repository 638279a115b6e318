"""What is asked for: prompts of a command line or a table, as one request for each clip.

A table is .txt (a prompt a line), .csv, .tsv, .jsonl or .json. Columns:

    prompt      what to hear (or: caption)
    id          optional: a name of the row's own; no two rows have the same
    seed        optional: of the row's first clip
    negative    optional: what guidance leads away from
    guidance    optional: its scale (or: guidance_scale)
    seconds     optional: length of the row's clips

What a row leaves empty is as for all clips. Others are left aside, but for settings that all clips
of a job share: those are refused. The table is read several times: once whole, before anything is
computed, to count its rows and find ids that come twice, and again as clips are made. Of a row the
first reading keeps a hash of 8 bytes, so that a table may have millions of them.

A row that cannot be used is a `BadRow`; it keeps its place, so that the other clips are what they
would be without it.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fasttta_jax.config.checks import check, check_text
from fasttta_jax.generation.sampler import MAX_SEED
from fasttta_jax.generation.seconds import check_seconds
from fasttta_jax.storage.rows import TEXT_FORMATS, RowError, find_rows, lines_as

PROMPT, ID, SEED = "prompt", "id", "seed"
PROMPT_COLUMNS = (PROMPT, "caption")
GUIDANCE_COLUMNS = ("guidance", "guidance_scale")
SETTINGS = ("negative", "guidance_scale", "seconds")
"""What a row may have of its own, as `Wanted` and `Pipeline.generate` call it."""
SHARED = ("checkpoint", "iterations", "num_iterations", "temperature")
"""Columns that cannot be: one program makes all clips of a job."""
MAX_CHARACTERS = 2000
"""Of a prompt; what a text encoder cannot hold of fewer is cut, and a warning says so."""
MAX_ID = 200
FORMATS = {".txt": lines_as(PROMPT), **TEXT_FORMATS}


class PromptError(ValueError):
    """A file of prompts that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One clip that is wanted.

    Attributes:
      index: its number among all clips of the job, from 0.
      id: of its row; the row's number where the table has none.
      prompt: what to hear; "" for an unconditional clip.
      seed: of the first candidate; the others have the numbers that follow.
      place: file and line of its row.
      negative: what guidance leads away from; None is what all clips have, also below.
      guidance_scale: strength of guidance.
      seconds: length.
    """

    index: int
    id: str
    prompt: str
    seed: int
    place: str = ""
    negative: str | None = None
    guidance_scale: float | None = None
    seconds: float | None = None

    @functools.cached_property
    def key(self) -> str:
        """Equal for two requests that want the same."""
        values = json.dumps({**dataclasses.asdict(self), "place": None}, sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A clip that cannot be made.

    Attributes:
      index: its number among all clips of the job, from 0.
      place: file and line of its row.
      reason: what is wrong with it.
    """

    index: int
    place: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The clips of a job, in order.

    Clip i has seed `seed` + i `candidates`, or where its row has a seed of its own, that one plus
    the candidates of the row's clips before it.

    Attributes:
      prompts: of the command line; they come first.
      table: path of a file of prompts.
      clips_per_prompt: clips of each row, one after the other.
      candidates: clips of which one is kept.
      seed: of the first clip.

    Raises:
      PromptError: there is no prompt, or not one that can be used; the table has another format, or
        a header without a prompt.
      OSError: the table cannot be read.
      ValueError: a number is out of range.
    """

    prompts: tuple[str, ...] = ()
    table: str | None = None
    clips_per_prompt: int = 1
    candidates: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")
        check(self.clips_per_prompt >= 1, "clips_per_prompt", self.clips_per_prompt, "1 or more")
        check(self.candidates >= 1, "candidates", self.candidates, "1 or more")
        if not self.prompts and self.table is None:
            raise PromptError("there is nothing to generate: give --prompt or --prompts")
        if not self._scan[0]:
            raise PromptError(f"{self.table} holds no prompts")

    @property
    def columns(self) -> frozenset[str]:
        """Which settings some row has of its own: of negative, guidance_scale and seconds."""
        return self._scan[2]

    def __len__(self) -> int:
        return self._scan[0] * self.clips_per_prompt

    def __iter__(self) -> Iterator[Wanted | BadRow]:
        repeated = self._scan[1]
        for number, (place, row) in enumerate(self._rows()):
            if number in repeated:
                row = f"id {_id(row)!r} is that of {repeated[number]}, too; allowed: each id once"
            for take in range(self.clips_per_prompt):
                index = number * self.clips_per_prompt + take
                yield self._request(index, number, take, place, row)

    def _request(
        self, index: int, number: int, take: int, place: str, row: Mapping[str, Any] | str
    ) -> Wanted | BadRow:
        if isinstance(row, str):
            return BadRow(index, place, row)
        try:
            own = row.get(SEED)
            if own in (None, ""):
                seed = self.seed + index * self.candidates
            else:
                seed = _seed(own) + take * self.candidates
            if seed + self.candidates - 1 > MAX_SEED:
                raise ValueError(f"seed is {seed}; allowed: 0 to {MAX_SEED} for all clips")
            found, prompt = _id(row), _prompt(row)
            if not prompt and number >= len(self.prompts):
                raise ValueError("the prompt is empty")
            return Wanted(
                index,
                str(number) if found is None else found,
                prompt,
                seed,
                place,
                _text(row, "negative"),
                _number(row, GUIDANCE_COLUMNS),
                _seconds(row),
            )
        except ValueError as error:
            return BadRow(index, place, str(error))

    def _rows(self) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
        """Place and columns of every row, or what is wrong with it."""
        for number, prompt in enumerate(self.prompts, start=1):
            yield f"--prompt {number}", {PROMPT: prompt}
        if self.table is None:
            return
        for line, row in find_rows(pathlib.Path(self.table), _check_header, readers=FORMATS):
            place = f"{self.table}:{line}"
            yield place, str(row).removeprefix(f"{place}: ") if isinstance(row, RowError) else row

    @functools.cached_property
    def _scan(self) -> tuple[int, dict[int, str], frozenset[str]]:
        """How many rows there are; of those whose id came before, where that was; `columns`."""
        hashes = array.array("Q")
        first_fault, usable = None, False
        columns: set[str] = set()
        for place, row in self._rows():
            found = None if isinstance(row, str) else _id(row)
            # A row without an id has a number of its own, which no hash of an id is mistaken for.
            hashes.append(len(hashes) if found is None else hash64(found) | 1 << 63)
            one = self._request(0, len(hashes) - 1, 0, place, row)
            usable = usable or isinstance(one, Wanted)
            columns |= {name for name in SETTINGS if getattr(one, name, None) is not None}
            first_fault = first_fault or (one if isinstance(one, BadRow) else None)
        if hashes and not usable and first_fault is not None:
            raise PromptError(
                f"none of the {len(hashes)} rows can be used; the first: {first_fault.place}: "
                f"{first_fault.reason}"
            )
        repeated = self._repeated(np.frombuffer(hashes, np.uint64))
        return len(hashes), repeated, frozenset(columns)

    def _repeated(self, hashes: np.ndarray) -> dict[int, str]:
        values, counts = np.unique(hashes, return_counts=True)
        if not (counts > 1).any():
            return {}
        candidates = np.isin(hashes, values[counts > 1])
        first: dict[str, str] = {}
        repeated: dict[int, str] = {}
        for number, (place, row) in enumerate(self._rows()):
            found = _id(row) if candidates[number] and not isinstance(row, str) else None
            if found is not None and first.setdefault(found, place) != place:
                repeated[number] = first[found]
        return repeated


def hash64(text: str) -> int:
    """A hash of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _check_header(where: str, columns: Sequence[str]) -> None:
    if not set(PROMPT_COLUMNS) & set(columns):
        raise PromptError(
            f"{where}: the columns are {list(columns)}; one must be {' or '.join(PROMPT_COLUMNS)}"
        )
    _check_shared(f"{where}: ", columns)


def _check_shared(where: str, columns: Sequence[str]) -> None:
    for name in SHARED:
        if name in columns:
            raise PromptError(
                f"{where}{name} cannot be a column, since one program makes all clips; give it "
                "as a flag, and rows that differ in it as files of their own"
            )


def _prompt(row: Mapping[str, Any]) -> str:
    found = next((row[name] for name in PROMPT_COLUMNS if name in row), None)
    if not isinstance(found, str):
        raise ValueError(f"a text named {' or '.join(PROMPT_COLUMNS)} is missing")
    _check_shared("", list(row))
    return _checked_text("the prompt", found)


def _checked_text(name: str, text: str) -> str:
    if len(text := text.strip()) > MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(text):,} characters; allowed: {MAX_CHARACTERS:,}")
    check_text(name, text)
    if any(ord(character) < 32 and not character.isspace() for character in text):
        raise ValueError(f"{name} has control characters")
    return text


def _text(row: Mapping[str, Any], name: str) -> str | None:
    found = row.get(name)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{name} is {found!r}; allowed: a text")
    return _checked_text(name, found) or None if found else None


def _number(row: Mapping[str, Any], names: Sequence[str]) -> float | None:
    name = next((each for each in names if row.get(each) not in (None, "")), None)
    if name is None:
        return None
    try:
        found = math.nan if isinstance(row[name], bool) else float(row[name])
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} is {row[name]!r}; allowed: a number, 0 or more")
    return found


def _seconds(row: Mapping[str, Any]) -> float | None:
    found = _number(row, ["seconds"])
    if found is not None:
        check_seconds("seconds", found)
    return found


def _id(row: Mapping[str, Any] | str) -> str | None:
    found = row.get(ID) if isinstance(row, Mapping) else None
    return None if found in (None, "") else str(found).strip()[:MAX_ID] or None


def _seed(value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    text = str(value).strip()
    if not (whole or (isinstance(value, str) and text.isdecimal() and text.isascii())):
        raise ValueError(f"seed is {value!r}; allowed: a whole number from 0 to {MAX_SEED}")
    if not 0 <= int(text) <= MAX_SEED:
        raise ValueError(f"seed is {text}; allowed: 0 to {MAX_SEED}")
    return int(text)
