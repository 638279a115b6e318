"""Figures of several systems side by side as a PNG: a dot and its interval for each."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.spectrograms import LINE_COLOURS, png, style

WIDTH = 5.4
ROW_HEIGHT = 0.24
PANEL_HEIGHT = 0.62


def intervals_png(panels: Mapping[str, Mapping[str, Measured]]) -> bytes:
    """One panel for each figure, one line of it for each system.

    Args:
      panels: by the figure's heading, what was measured of each system by its name. A line is the
        confidence interval where one is known, else two standard errors to either side.

    Raises:
      ValueError: there are no panels, or one is empty.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels is empty or has an empty one; expected figures of a system")
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    heights = [PANEL_HEIGHT + ROW_HEIGHT * len(panel) for panel in panels.values()]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (title, panel) in zip(drawn[:, 0], panels.items(), strict=True):
        for place, (name, measured) in enumerate(panel.items()):
            colour = LINE_COLOURS[names.index(name) % len(LINE_COLOURS)]
            low, high = _bounds(measured)
            axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
            axes.plot([measured.value], [place], "o", color=colour, markersize=5)
        style(axes)
        axes.set_yticks(range(len(panel)), list(panel), parse_math=False)
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.tick_params(axis="y", labelsize=8, labelcolor="#1c2128", length=0)
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", color="#e3e6ea", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    return png(figure)


def _bounds(measured: Measured) -> tuple[float, float]:
    if measured.interval is not None:
        return measured.interval
    reach = 2 * (measured.standard_error or 0.0)
    return measured.value - reach, measured.value + reach
