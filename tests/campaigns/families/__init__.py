"""Families of inputs. Each makes an input of random answers, and tries it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from tests.campaigns.draws import Draw
from tests.campaigns.families import (
    audio,
    codecs,
    configs,
    converted,
    datasets,
    exported,
    flags,
    jobs,
    requests,
    state_dicts,
    tables,
    tokenizers,
    workdirs,
)
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import Kind


class Family(NamedTuple):
    """A kind of input.

    Attributes:
      name: for counts.
      weight: its share of all inputs, in parts of the sum.
      attempt: makes one in a folder of its own and says what came of it; see `trying`.
    """

    name: str
    weight: int
    attempt: Callable[[World, Draw, pathlib.Path], Kind]


FAMILIES = (
    Family("exported models", 7, exported.attempt),
    Family("workdirs", 9, workdirs.attempt),
    Family("state dicts", 11, state_dicts.attempt),
    Family("tables", 11, tables.attempt),
    Family("codecs", 5, codecs.attempt),
    Family("datasets", 6, datasets.attempt),
    Family("audio", 8, audio.attempt),
    Family("tokenizers", 4, tokenizers.attempt),
    Family("converted weights", 3, converted.attempt),
    Family("configs", 8, configs.attempt),
    Family("command lines", 16, flags.attempt),
    Family("requests", 7, requests.attempt),
    Family("jobs", 5, jobs.attempt),
)
"""Of a hundred inputs."""
