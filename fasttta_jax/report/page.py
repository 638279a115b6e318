"""One HTML file that shows what was made or found: sounds, figures, gates, curves, settings.

Everything is inside the file: audio as FLAC, images as PNG, both in base64. It opens offline, needs
no script, fits a telephone, and can be mailed or kept next to a checkpoint. `base.html.j2` has the
styles; a page with prompts alone is a page of sounds.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jinja2
import numpy as np
import soundfile
from jaxtyping import Float

from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.report.values import Value, figure_and_error
from fasttta_jax.storage.files import write_atomically

PROMPTS_BEFORE_FIGURES = 3
"""Prompts above the first table; the others are folded, so that the table is not far."""
ARROWS = {"higher": "↑", "lower": "↓"}


@dataclasses.dataclass(frozen=True)
class Gate:
    """A bound that a figure had to meet.

    Attributes:
      row: whose figure, such as "teacher".
      figure: its heading, such as "event accuracy".
      bound: in words, such as "at least 0.85".
      found: the figure in words.
      passed: whether the bound was met.
    """

    row: str
    figure: str
    bound: str
    found: str
    passed: bool

    @property
    def condition(self) -> str:
        """Figure, bound and what was found as one phrase."""
        return f"{self.figure} {self.bound} (found: {self.found})"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      name: what the line is about; the first column.
      values: one for each further column; None shows as a dash.
      better: which side is the better one, shown as an arrow; None where there is none.
    """

    name: str
    values: Sequence[Value]
    better: Literal["higher", "lower"] | None = None

    @property
    def heading(self) -> str:
        """The name with its arrow."""
        return self.name if self.better is None else f"{self.name} {ARROWS[self.better]}"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
      title: heading.
      columns: names of all columns; the first is that of the row names.
      rows: lines.
      caption: what holds for all of it.
      words: what names of rows, columns or values mean, listed below.
      missing: what could not be measured, each with the reason.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns) - 1:
                raise ValueError(
                    f"table {self.title!r}, row {row.name!r} has {len(row.values)} values; "
                    f"expected {len(self.columns) - 1}, for the columns {list(self.columns[1:])}"
                )


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
    """A whole page, in this order; an empty part leaves no trace on it.

    Attributes:
      title: heading.
      lead: a sentence below it.
      created: when, in any form; left out if None, so that equal results give equal files.
      prompts: sounds.
      results: the main table.
      gates: bounds of its figures.
      details: further tables.
      curves: figures of curves.
      notes: what a reader must know of these figures, listed.
      about: how to read figures of this kind: paragraphs, separated by empty lines.
      settings: shown folded.
    """

    title: str
    lead: str = ""
    created: str | None = None
    prompts: Sequence[PromptRow] = ()
    results: Table | None = None
    gates: Sequence[Gate] = ()
    details: Sequence[Table] = ()
    curves: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    about: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    environment.filters |= {"parts": figure_and_error, "number_columns": _number_columns}
    prompts = [
        (row.prompt, [_sound(row.prompt, cell) for cell in row.cells]) for row in report.prompts
    ]
    shown = PROMPTS_BEFORE_FIGURES if report.results else len(prompts)
    html = environment.get_template("page.html.j2").render(
        report=report,
        prompts=prompts,
        shown=shown,
        several=any(len(row.cells) > 1 for row in report.prompts),
        curves=[(figure, _data_url("image/png", figure.png)) for figure in report.curves],
        about=[part for part in report.about.split("\n\n") if part.strip()],
        failed=sum(not gate.passed for gate in report.gates),
    )
    write_atomically(path, html.encode("utf-8"))


def _number_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, and are aligned as such."""
    columns = zip(*(row.values for row in table.rows), strict=True)
    number = int, float, np.number, Measured
    return [False, *(any(isinstance(value, number) for value in column) for column in columns)]


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
