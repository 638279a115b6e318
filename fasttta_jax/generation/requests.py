"""Clips to make: a prompt each, and what may differ from clip to clip beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

from fasttta_jax.config.checks import check, check_text
from fasttta_jax.generation.sampler import MAX_SEED
from fasttta_jax.generation.seconds import check_seconds


class Request(NamedTuple):
    """What one clip is made from.

    Attributes:
      prompt: what is to be heard; "" is an unconditional clip.
      seed: 0 to 2**32 - 1.
      negative: what guidance leads away from; "" is no text.
      guidance_scale: strength of guidance; 1 is none.
      seconds: length of the sound; None is the model's, or what an edit says.
    """

    prompt: str
    seed: int
    negative: str
    guidance_scale: float
    seconds: float | None


def read_requests(
    prompts: Iterable[str],
    *,
    seed: int,
    seeds: Iterable[int] | None,
    negative: str | Iterable[str],
    guidance_scale: float | Iterable[float | None] | None,
    seconds: float | Iterable[float | None] | None,
    run_scale: float,
    check_strength: Callable[[str, float], None],
) -> Iterator[Request]:
    """A request for every prompt, in order.

    Where all arguments have a length, or are the same for all clips, everything is checked at once;
    otherwise they are read, and checked, as they are needed.

    Args:
      prompts: any number.
      seed: of the first; number i has seed + i.
      seeds: one a prompt, in place of `seed`.
      negative: for all, or one a prompt.
      guidance_scale: for all, or one a prompt; None is the run's.
      seconds: for all, or one a prompt.
      run_scale: the run's.
      check_strength: refuses a scale, given with its name, that the model cannot guide itself by.

    Raises:
      ValueError: a value is not allowed, or one of the arguments ends before the others.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the string {prompts!r}; allowed: a list of strings")
    columns: dict[str, Iterable[Any]] = {"prompts": prompts}
    if seeds is not None:
        columns["seeds"] = seeds
    same = {"negative": negative, "guidance_scale": guidance_scale, "seconds": seconds}
    for name, given in same.items():
        if isinstance(given, Iterable) and not isinstance(given, str):
            columns[name] = given

    def label(name: str, index: int) -> str:
        return f"{name}[{index}]" if name in columns else name

    def read() -> Iterator[Request]:
        for index, values in enumerate(_rows(columns)):
            values = same | values
            for column in ("prompts", "negative"):
                check_text(label(column, index), values[column])
            name = f"seed + {index}" if seeds is None else f"seeds[{index}]"
            found = values.get("seeds", seed + index)
            check(0 <= found <= MAX_SEED, name, found, f"0 to {MAX_SEED}")
            given = values["guidance_scale"]
            scale = run_scale if given is None else float(given)
            name = label("guidance_scale", index)
            check(0 <= scale < float("inf"), name, scale, "0 or more")
            if not values["negative"]:
                check_strength(name, scale)
            if values["negative"] and scale == 1.0:
                raise ValueError(
                    f"the negative prompt {values['negative']!r} is for guidance to lead away "
                    f"from, and {name} is 1, which is no guidance"
                )
            length = values["seconds"]
            if length is not None:
                check_seconds(label("seconds", index), length)
            yield Request(values["prompts"], int(found), values["negative"], scale, length)

    whole = all(isinstance(column, Sized) for column in columns.values())
    return iter(list(read())) if whole else read()


def _rows(columns: Mapping[str, Iterable[Any]]) -> Iterator[dict[str, Any]]:
    """The values of every row by the names of the columns, which must be equally long."""
    ended = object()
    for number, row in enumerate(itertools.zip_longest(*columns.values(), fillvalue=ended)):
        short = [name for name, value in zip(columns, row, strict=True) if value is ended]
        if short:
            longer = next(name for name in columns if name not in short)
            raise ValueError(
                f"{short[0]} ends after {number}, {longer} goes on; allowed: one for each prompt"
            )
        yield dict(zip(columns, row, strict=True))
