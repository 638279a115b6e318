"""Plots as the bytes of PNG files: mel spectrograms, frames of decoding, curves of training.

Every spectrogram has the same scale, 0 to -80 decibels against a full-scale sine, so two of them
can be compared by eye. The same input gives the same bytes.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import librosa
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

LOWEST_DB = -80.0
NUM_MELS = 80
FREQUENCY_TICKS = (125, 500, 1000, 2000, 4000, 8000, 16000)
SMOOTH_FROM = 100
"""Curves of at least this many points are drawn faintly, with a moving average on top."""

MARKERS_UNTIL = 30
"""Curves of at most this many points show every point, also one that stands between two gaps."""

MASKED, REVEALED, KNOWN = range(3)
"""What a cell of a token grid may be."""

_CELLS = {"masked": "#d5d9de", "revealed": "#d9622b", "given": "#3b6fd4"}  # in that order
LINE_COLOURS = ("#3b6fd4", "#d9622b", "#2a9d74", "#9656b8", "#c2994b", "#5a6472")  # distinct hues


def spectrogram_png(
    audio: Float[np.ndarray, " S"], sample_rate: int, title: str | None = None
) -> bytes:
    """The mel spectrogram of a waveform as a PNG.

    Args:
      audio: waveform in [-1, 1].
      sample_rate: samples per second.
      title: a line above the plot.

    Returns:
      Time in seconds to the right, frequency in hertz upwards, on the mel scale.

    Raises:
      ValueError: `audio` is not one finite, non-empty waveform.
    """
    figure, axes = _figure(3.6, 2.0)
    _draw_mel(axes, audio, sample_rate)
    if title:
        axes.set_title(title, fontsize=9, parse_math=False)
    return png(figure)


class Frame(NamedTuple):
    """The state of decoding after an iteration.

    Attributes:
      title: a line above the frame.
      audio: the sound so far, in [-1, 1].
      cells: MASKED, REVEALED or KNOWN for every token, by place in its column and column in time.
    """

    title: str
    audio: Float[np.ndarray, " S"]
    cells: Int[np.ndarray, "G P"]


def frames_png(frames: Sequence[Frame], sample_rate: int, title: str | None = None) -> bytes:
    """Frames of decoding side by side as a PNG: the token grid above, the mel spectrogram below.

    Args:
      frames: from left to right.
      sample_rate: samples per second.
      title: a line above all frames.

    Raises:
      ValueError: there are no frames, or a sound is not one finite, non-empty waveform.
    """
    if not frames:
        raise ValueError("frames is empty; expected at least one")
    figure = Figure(figsize=(0.6 + 1.7 * len(frames), 2.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        2, len(frames), sharey="row", squeeze=False, gridspec_kw={"height_ratios": (1, 6)}
    )
    for index, (frame, grid, mel) in enumerate(zip(frames, *panels, strict=True)):
        grid.imshow(
            frame.cells,
            origin="lower",
            aspect="auto",
            cmap=ListedColormap(list(_CELLS.values())),
            vmin=MASKED,
            vmax=KNOWN,
            interpolation="nearest",
        )
        grid.set_axis_off()
        grid.set_title(frame.title, fontsize=8)
        style(mel)
        _draw_mel(mel, frame.audio, sample_rate)
        if index:
            mel.set_ylabel("")
            mel.tick_params(labelleft=False)
    found = {int(cell) for frame in frames for cell in np.unique(frame.cells)}
    patches = [
        Patch(color=colour, label=name)
        for cell, (name, colour) in enumerate(_CELLS.items())
        if cell in found
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    return png(figure)


def curves_png(
    curves: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    *,
    title: str | None = None,
    x_label: str = "step",
    y_label: str = "loss",
) -> bytes:
    """One or more curves as a PNG, with a legend where there are several.

    The vertical axis is logarithmic where all values are positive and span more than a decade.

    Args:
      curves: for each run its (steps, values); a value that is not finite leaves a gap.
      title: a line above the plot.
      x_label: what the steps are.
      y_label: what the values are, with their unit.

    Raises:
      ValueError: there are no curves, or a curve has no points, or not one value for each step.
    """
    if not curves:
        raise ValueError("curves is empty; expected at least one run")
    figure, axes = _figure(5.4, 2.8)
    finite_values = []
    for index, (name, (steps, values)) in enumerate(curves.items()):
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        if steps.ndim != 1 or steps.shape != values.shape or steps.size == 0:
            raise ValueError(
                f"curve {name!r} has steps {steps.shape} and values {values.shape}; expected two "
                "equally long lists with at least one point"
            )
        values = np.where(np.isfinite(values), values, np.nan)
        finite_values.append(values[np.isfinite(values)])
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        style = ("-", "--", ":")[index // len(LINE_COLOURS) % 3]
        marker = {"marker": "o", "markersize": 3} if steps.size <= MARKERS_UNTIL else {}
        if steps.size >= SMOOTH_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
            values = _smooth(values, width=steps.size // 25)
        axes.plot(steps, values, color=colour, linestyle=style, **marker, linewidth=1.6, label=name)
    everything = np.concatenate(finite_values)
    if everything.size and everything.min() > 0 and everything.max() > 10 * everything.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if title:
        axes.set_title(title, fontsize=9, parse_math=False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


def _draw_mel(axes: Axes, audio: Float[np.ndarray, " S"], sample_rate: int) -> None:
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or audio.size == 0 or not np.isfinite(audio).all():
        raise ValueError(
            f"audio has shape {audio.shape} and {int((~np.isfinite(audio)).sum())} non-finite "
            "samples; expected one finite waveform [samples]"
        )
    axes.imshow(
        _mel_decibels(audio, sample_rate),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=LOWEST_DB,
        vmax=0.0,
        interpolation="nearest",
        extent=(0.0, audio.size / sample_rate, 0.0, NUM_MELS),
    )
    # Band i is centred on edge i + 1 of the mel grid, and drawn from i to i + 1.
    edges = librosa.mel_frequencies(NUM_MELS + 2, fmin=0.0, fmax=sample_rate / 2)
    shown = [tick for tick in FREQUENCY_TICKS if tick <= edges[-2]]
    positions = np.interp(shown, edges, np.arange(NUM_MELS + 2) - 0.5)
    axes.set_yticks(
        positions, [f"{tick / 1000:g}k" if tick >= 1000 else str(tick) for tick in shown]
    )
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (Hz)")


def _mel_decibels(audio: np.ndarray, sample_rate: int) -> Float[np.ndarray, "F T"]:
    # A window of about 64 ms, whatever the sample rate; a full-scale sine comes to about 0 dB.
    n_fft = int(2 ** np.round(np.log2(0.064 * sample_rate)))
    power = librosa.feature.melspectrogram(
        y=audio,
        sr=sample_rate,
        n_fft=n_fft,
        hop_length=n_fft // 8,
        n_mels=NUM_MELS,
        fmin=0.0,
        fmax=sample_rate / 2,
        norm=None,
    )
    full_scale = (n_fft / 4) ** 2
    decibels = 10.0 * np.log10(np.maximum(power / full_scale, np.finfo(np.float32).tiny))
    return np.maximum(decibels, LOWEST_DB)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average of the finite values in a window of `width`; gaps stay gaps."""
    finite = np.isfinite(values)
    window = np.ones(2 * (width // 2) + 1)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite.astype(float), window, mode="same")
    return np.where(finite, total / np.maximum(count, 1.0), np.nan)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches that no global state knows of, and its axes."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """Small, quiet labels, as on all plots."""
    axes.tick_params(labelsize=7, color="#8a929c")
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file, equal for equal figures."""
    return _drawing(os.getpid()).submit(_png, figure).result()


@functools.cache
def _drawing(process: int) -> ThreadPoolExecutor:
    """The thread of a process that draws: Matplotlib keeps its fonts open for every thread that has
    ever drawn, some megabytes each.
    """
    del process  # a fork has none of the threads of before
    return ThreadPoolExecutor(1, "drawing")


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
