"""Quality against what it takes, as a PNG: passes of the backbone, operations, seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from benchmarks.frontier_ratios import Quantity, Row, seconds
from fasttta_jax.report.spectrograms import LINE_COLOURS, png, style

MARKERS = "osD^v"


def frontier_png(results: Mapping[str, Any], quantity: Quantity) -> bytes:
    """One panel for each cost, one line for each series of rows; bars are one standard error.

    Args:
      results: what frontier.json holds.
      quantity: the figure that is drawn; real clips after the codec are a dotted line.
    """
    batch = results["batch_sizes"][0] if results["batch_sizes"] else None
    costs: dict[str, Callable[[Row], float | None]] = {
        "passes of the backbone": lambda row: row["passes"],
        "operations of a clip": lambda row: 1e9 * row["gflop"],
    }
    if batch is not None:
        costs[f"seconds, batch of {batch}"] = lambda row: seconds(row, batch)
    floor = results["references"].get("codec", {}).get(quantity["name"])
    return costs_png(results["rows"], costs, quantity, floor)


def costs_png(
    rows: Sequence[Row],
    costs: Mapping[str, Callable[[Row], float | None]],
    quantity: Quantity,
    floor: float | None,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """One panel for each cost, one line for each series of rows; bars are one standard error.

    Args:
      rows: with series and figures.
      costs: of a row, by the titles of their axes.
      quantity: the figure that is drawn.
      floor: what a dotted line shows, if anything.
      colours: by series; None takes turns.
    """
    figure = Figure(figsize=(3.4 * len(costs), 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (title, cost) in zip(panels, costs.items(), strict=True):
        _draw(axes, rows, quantity, cost, colours or {})
        if floor is not None:
            axes.axhline(floor, color="#8a929c", linestyle=":", linewidth=1)
        axes.set_xlabel(title)
    panels[0].set_ylabel(f"{quantity['title']}, {quantity['better']} is better", parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7
        )
    return png(figure)


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    quantity: Quantity,
    cost: Callable[[Row], float | None],
    colours: Mapping[str, str],
) -> None:
    name = quantity["name"]
    for index, series in enumerate(dict.fromkeys(row["series"] for row in rows)):
        points = sorted(
            (x, row["figures"][name], row["figures"].get(f"{name}_standard_error") or 0.0)
            for row in rows
            if row["series"] == series
            and row["figures"]
            and row["figures"].get(name) is not None
            and (x := cost(row)) is not None
        )
        if points:
            x, y, errors = zip(*points, strict=True)
            axes.errorbar(
                x,
                y,
                errors,
                color=colours.get(series, LINE_COLOURS[index % len(LINE_COLOURS)]),
                marker=MARKERS[index // len(LINE_COLOURS) % len(MARKERS)],
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.8,
                label=series,
            )
    style(axes)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
