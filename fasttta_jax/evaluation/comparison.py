"""Compares two evaluations clip by clip: better, worse, or how many clips more it would take.

Each metrics.json holds, for every judged figure, how far every clip moves it (its influence; for a
mean, the distance of a clip's value from it). Differences of two systems on the same captions are
drawn from the differences of these, prompt by prompt, so neither sounds nor features are needed.
A difference is between figures of the same protocol, list, reference, networks and preparation; of
others there is none.
Dimensions: n clips.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from fasttta_jax.metrics.bootstrap import clips_needed, paired_difference
from fasttta_jax.metrics.intervals import Estimate, Measured
from fasttta_jax.report.page import Row, Table
from fasttta_jax.report.values import decimals, fixed, standard_error

Verdict = Literal["better", "worse", "cannot tell"]


class ComparisonError(ValueError):
    """Two evaluations that cannot be subtracted; names the field and both values."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One figure of two systems.

    Attributes:
      figure: its name.
      value: of the first system.
      other: of the second system.
      difference: first minus second, with its interval.
      verdict: what the first is, against the second.
      more_clips: how many more it would take to tell; None where that is not needed or no number
        would do.
    """

    figure: str
    value: float
    other: float
    difference: Measured
    verdict: Verdict
    more_clips: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All figures that two rows share.

    Attributes:
      name: of the first row.
      other: of the second row.
      differences: in the order of the first file.
    """

    name: str
    other: str
    differences: tuple[Difference, ...]

    def table(self) -> Table:
        """For a page and a terminal."""
        return Table(
            "Clip by clip",
            ("figure", self.name, self.other, "difference", "95 % interval", f"{self.name} is"),
            [Row(one.figure, list(_cells(one))) for one in self.differences],
        )


def compare(first: str | pathlib.Path, second: str | pathlib.Path) -> Comparison:
    """Compares two judged rows.

    Args:
      first: a metrics.json, with ":ROW" behind it where it has several judged rows.
      second: likewise.

    Raises:
      ComparisonError: a file cannot be read or has no such row, or the two were not judged alike:
        the field is named, with both values.
    """
    one, other = _read(first), _read(second)
    for field, value, other_value in _fields(one, other):
        if value != other_value:
            raise ComparisonError(
                f"{one.name} and {other.name} cannot be subtracted: {field} is {value!r} in "
                f"{one.path} and {other_value!r} in {other.path}"
            )
    order = _order(one, other)
    differences = [
        _difference(name, one, other, order) for name in one.figures if name in other.figures
    ]
    if not differences:
        raise ComparisonError(
            f"{one.path} and {other.path} share no figure: {', '.join(one.figures) or 'none'} and "
            f"{', '.join(other.figures) or 'none'}"
        )
    return Comparison(one.name, other.name, tuple(differences))


@dataclasses.dataclass(frozen=True)
class _Row:
    path: str
    name: str
    values: Mapping[str, Any]
    about: Mapping[str, Any]
    clips: Mapping[str, Sequence[str]]
    figures: Mapping[str, Mapping[str, Any]]


def _read(where: str | pathlib.Path) -> _Row:
    path, wanted = str(where), ""
    while ":" in path and not pathlib.Path(path).is_file():
        path, _, part = path.rpartition(":")
        wanted = f"{part}:{wanted}" if wanted else part
    if not pathlib.Path(path).is_file():
        path, wanted = str(where), ""
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path} cannot be read as metrics.json: {error}") from error
    try:
        judged = {
            name: row
            for name, row in (found.get("rows") or {}).items()
            if row.get("judged") and name in found.get("influences", {})
        }
    except (AttributeError, TypeError) as error:
        raise ComparisonError(
            f"{path} is no metrics.json of eval.py, which holds rows and their influences"
        ) from error
    allowed = ", ".join(judged) or "none: it was written without --networks"
    if wanted and wanted not in judged:
        raise ComparisonError(f"{path} has no judged row {wanted!r}; its rows: {allowed}")
    if not wanted:
        if len(judged) != 1:
            raise ComparisonError(
                f"{path} must have one judged row, or be given as {path}:ROW; its rows: {allowed}"
            )
        (wanted,) = judged
    influences = found["influences"][wanted]
    row = judged[wanted]
    try:
        read = _Row(path, wanted, row, row["judged"], influences["clips"], influences["figures"])
        _check(read)
    except KeyError as error:
        raise ComparisonError(
            f"{path}, row {wanted!r} lacks {error}: another version wrote it; evaluate anew"
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ComparisonError(f"{path}, row {wanted!r} is damaged: {error}") from error
    return read


def _check(row: _Row) -> None:
    """Raises an error where something is missing that a comparison reads, or of another form."""
    list(_fields(row, row))
    for name, figure in row.figures.items():
        float(row.values[name])
        if figure["better"] not in ("lower", "higher"):
            raise ValueError(f"{name}: better is {figure['better']!r}; allowed: lower, higher")
        sides = {figure["kind"]: figure["clips"], "reference": figure["reference"]}
        for kind, influence in sides.items():
            if influence is None and kind == "reference":
                continue
            shape, clips = np.asarray(influence, np.float64).shape, len(row.clips[kind])
            if shape != (clips,):
                raise ValueError(f"{name}: influences of shape {shape} and {clips} clips ({kind})")


def _fields(one: _Row, other: _Row) -> Iterator[tuple[str, Any, Any]]:
    """What must be equal, with both values."""
    for field in ("protocol", "clips", "caption_list_sha256"):
        yield field, one.about[field], other.about[field]
    for field in ("clips", "sha256"):
        yield f"reference.{field}", one.about["reference"][field], other.about["reference"][field]
    yield "pairs.count", one.about["pairs"]["count"], other.about["pairs"]["count"]
    yield "candidates", one.about["candidates"], other.about["candidates"]
    networks = (one.about["networks"], other.about["networks"])
    for name in dict.fromkeys([*networks[0], *networks[1]]):
        if all(name in found for found in networks):
            for field in networks[0][name]:
                values = [found[name].get(field) for found in networks]
                yield f"networks.{name}.{field}", values[0], values[1]


def _order(one: _Row, other: _Row) -> dict[str, list[int]]:
    """For each kind of clips, the places in the second row of those of the first."""
    orders = {}
    for kind, keys in one.clips.items():
        others = other.clips[kind]
        if sorted(keys) != sorted(others):
            different = sorted(set(keys) ^ set(others))
            raise ComparisonError(
                f"{one.name} and {other.name} cannot be subtracted: their clips differ, such as "
                f"{different[0] if different else keys[0]!r}"
            )
        places: dict[str, list[int]] = {}
        for place, key in enumerate(others):
            places.setdefault(key, []).append(place)
        orders[kind] = [places[key].pop(0) for key in keys]
    return orders


def _difference(
    name: str, one: _Row, other: _Row, orders: Mapping[str, Sequence[int]]
) -> Difference:
    found = one.figures[name]
    difference = paired_difference(_estimate(one, name, None), _estimate(other, name, orders))
    verdict: Verdict = "cannot tell"
    more = clips_needed(difference)
    if more == 0:
        lower = difference.value < 0
        verdict = "better" if lower == (found["better"] == "lower") else "worse"
        more = None
    return Difference(name, one.values[name], other.values[name], difference, verdict, more)


def _estimate(row: _Row, name: str, orders: Mapping[str, Sequence[int]] | None) -> Estimate:
    found = row.figures[name]

    def side(values: Sequence[float] | None, kind: str) -> Float64[np.ndarray, " n"] | None:
        if values is None:
            return None
        array = np.asarray(values, np.float64)
        return array if orders is None else array[list(orders[kind])]

    influence = side(found["clips"], found["kind"])
    assert influence is not None
    return Estimate(row.values[name], influence, side(found["reference"], "reference"))


def _cells(one: Difference) -> Iterator[str]:
    """With the decimals that the interval of the difference has."""
    low, high = one.difference.interval or (float("nan"), float("nan"))
    digits = decimals(one.difference.value, standard_error(one.difference))
    yield fixed(one.value, digits)
    yield fixed(one.other, digits)
    yield fixed(one.difference.value, digits, signed=True)
    yield f"{fixed(low, digits, signed=True)} to {fixed(high, digits, signed=True)}"
    more = "" if one.more_clips is None else f"; about {one.more_clips:,} clips more would"
    yield one.verdict + more
