"""One HTML file that shows what an evaluation found: figures, curves, and sounds to listen to.

Everything is inside the file: audio as FLAC, images as PNG, both in base64. It opens offline and
can be mailed or kept next to a checkpoint.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import soundfile
from jaxtyping import Float

from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.storage.files import write_atomically

Value = float | int | str | bool | np.number | np.bool_ | Measured | None


@dataclasses.dataclass(frozen=True)
class Gate:
    """A bound that a figure had to meet.

    Attributes:
      condition: the bound in words, such as "event accuracy at least 0.85".
      passed: whether it was met.
    """

    condition: str
    passed: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      name: what was measured; the first column.
      values: one for each further column; None shows as a dash.
      gates: the bounds of this line; a table in which any line has some gets a column for them.
    """

    name: str
    values: Sequence[Value]
    gates: Sequence[Gate] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
      title: heading.
      columns: names of all columns; the first is that of the row names.
      rows: lines.
      caption: what the columns mean, with their units.
      missing: what could not be measured, each with the reason.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns) - 1:
                raise ValueError(
                    f"table {self.title!r}, row {row.name!r} has {len(row.values)} values; "
                    f"expected {len(self.columns) - 1}, for the columns {list(self.columns[1:])}"
                )

    @property
    def has_gates(self) -> bool:
        """Whether any line has a bound."""
        return any(row.gates for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image with a heading.

    Attributes:
      title: heading, and what a reader who cannot see it is told.
      png: the bytes of a PNG file, such as `spectrograms.curves_png` makes.
      caption: a line below.
    """

    title: str
    png: bytes
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One sound.

    Attributes:
      label: where it comes from, such as "student".
      audio: waveform [S] in [-1, 1], clipped to it; None leaves the place empty.
      sample_rate: samples per second.
    """

    label: str
    audio: Float[np.ndarray, " S"] | None
    sample_rate: int


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A prompt and the sounds made for it, side by side."""

    prompt: str
    cells: Sequence[Cell]


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole report; an empty part leaves no trace on the page.

    Attributes:
      title: heading.
      introduction: paragraphs, separated by empty lines.
      tables: of measured values.
      curves: figures of curves.
      prompts: sounds.
      settings: of the evaluation, shown folded.
      created: when, in any form; left out if None, so that equal results give equal files.
      notes: listed at the end.
    """

    title: str
    introduction: str = ""
    tables: Sequence[Table] = ()
    curves: Sequence[Figure] = ()
    prompts: Sequence[PromptRow] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    created: str | None = None
    notes: Sequence[str] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Writes `report` to an HTML file, atomically.

    Raises:
      ValueError: a sound is not one finite, non-empty waveform; its prompt and label are named.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fasttta_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = format_value
    html = environment.get_template("page.html.j2").render(
        report=report,
        paragraphs=[part for part in report.introduction.split("\n\n") if part.strip()],
        curves=[(figure, _data_url("image/png", figure.png)) for figure in report.curves],
        prompts=[
            (row.prompt, [_sound(row.prompt, cell) for cell in row.cells]) for row in report.prompts
        ],
        is_number=_is_number,
    )
    write_atomically(path, html.encode("utf-8"))


def format_value(value: Value) -> str:
    """A figure for a reader: four significant digits, grouped thousands, a dash for None.

    One with a confidence interval is shown as 0.885 [0.840, 0.930], one with a standard error as
    0.885 ± 0.023, with as many decimals as two digits of the error need.
    """
    if value is None:
        return "–"
    if isinstance(value, Measured):
        if value.interval is not None:
            return _format_with_interval(value.value, value.interval)
        if value.standard_error is None:
            return format_value(value.value)
        return _format_with_error(value.value, value.standard_error)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        value = float(value)
        if math.isnan(value):
            return "NaN"
        if 1e4 <= abs(value) < 1e15:
            return f"{value:,.0f}"
        return f"{value:#.4g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    return str(value)


def _format_with_error(value: float, error: float) -> str:
    decimals = 3
    if math.isfinite(error) and error > 0:
        decimals = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _format_with_interval(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    decimals = 3
    if math.isfinite(high - low) and high > low:
        decimals = min(max(1 - math.floor(math.log10(high - low)), 0), 6)
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _is_number(value: Value) -> bool:
    return value is None or isinstance(value, int | float | np.number | Measured)


@dataclasses.dataclass(frozen=True)
class _Sound:
    label: str
    audio_url: str | None
    spectrogram_url: str | None
    seconds: float


def _sound(prompt: str, cell: Cell) -> _Sound:
    if cell.audio is None:
        return _Sound(cell.label, None, None, 0.0)
    audio = np.asarray(cell.audio, np.float32)
    if audio.ndim != 1 or audio.size == 0 or not np.isfinite(audio).all():
        raise ValueError(
            f"audio of prompt {prompt!r}, cell {cell.label!r} has shape {audio.shape} and "
            f"{int((~np.isfinite(audio)).sum())} non-finite samples; expected one finite waveform"
        )
    audio = np.clip(audio, -1.0, 1.0)
    file = io.BytesIO()
    soundfile.write(file, audio, cell.sample_rate, format="FLAC", subtype="PCM_16")
    return _Sound(
        cell.label,
        _data_url("audio/flac", file.getvalue()),
        _data_url("image/png", spectrogram_png(audio, cell.sample_rate)),
        audio.size / cell.sample_rate,
    )


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
