"""The comparison of rivals as Markdown: what came out, figures, differences, training.

Rows are as rivals.json has them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.frontier_table import measured, table
from benchmarks.measure import describe_machine
from benchmarks.rivals_plan import OURS, SAME_SECONDS, SAME_STEPS, TEACHER, TEACHERS
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.values import MISSING, decimals, fixed, format_value, standard_error

Row = Mapping[str, Any]
PLOTS = {SAME_STEPS: "rivals_same_steps.png", SAME_SECONDS: "rivals_same_seconds.png"}
PART = "rivals"
"""The marked part of docs/rivals.md."""
HEADINGS = {
    TEACHERS: "Teachers",
    SAME_STEPS: "As many steps",
    SAME_SECONDS: "As many seconds",
}
SYSTEMS = {
    TEACHER: "IMPACT (teacher)",
    OURS: "AudioDEAR (ours)",
    "flow": "flow (teacher of the rivals)",
    "consistency": "ConsistencyTTA",
    "latent_consistency": "AudioLCM",
    "trajectory": "SoundCTM",
    "reflow": "AudioTurbo",
    "meanflow": "MeanFlow",
    "shortcut": "Shortcut",
    "meanflow_head": "MeanFlow head",
    "shortcut_head": "Shortcut head",
}
DEVIATIONS = {
    "a": "constants for hundreds of steps, not the published ones of `configs/rivals.py`, in which "
    "the other deviations of that file remain",
    "b": "a grid of uniform steps on the straight path, in place of the published one",
    "c": "starts from a trained flow, as MeanAudio does; published ones start from nothing",
    "d": "uniform times, and a fifth of the pairs is the jump from noise to data",
    "e": "no weight by the signal-to-noise ratio",
    "f": "the squared distance in place of features of the teacher",
    "g": "constants are ours: none are published",
    "h": "a head on our backbone, in place of the energy head, as in AudioDEAR's ablation",
}
LETTERS = {
    "consistency": "abe",
    "latent_consistency": "ab",
    "trajectory": "abf",
    "reflow": "ag",
    "meanflow": "acd",
    "shortcut": "abc",
    "meanflow_head": "adh",
    "shortcut_head": "abh",
}
"""Of `DEVIATIONS`, by system."""


def verdict(results: Mapping[str, Any]) -> str:
    """Whether a rival is better than ours by the interval of the paired difference: a line, and a
    list of who and where.
    """
    found: dict[str, dict[str, list[str]]] = {}
    num_compared = 0
    titles = {one["name"]: one["title"] for one in results["quantities"]}
    for row in results["rows"]:
        if row["system"] in (OURS, TEACHER):
            continue
        for name, one in row["differences"].items():
            num_compared += 1
            if one["verdict"] == "better":
                who = SYSTEMS[row["system"]]
                if row["setting"] != TEACHERS:
                    who += f" ({HEADINGS[row['setting']].lower()})"
                found.setdefault(who, {}).setdefault(titles[name], []).append(str(row["passes"]))
    if not num_compared:
        return "No rival has been judged beside ours yet."
    if not found:
        return (
            "No rival is better than ours by the 95 % interval of the paired difference, in any "
            f"figure at any number of passes ({num_compared} differences)."
        )
    parts = []
    for who, figures in found.items():
        where = ", ".join(f"{title} at {' and '.join(passes)}" for title, passes in figures.items())
        parts.append(f"* {who}: {where}")
    number = sum(len(passes) for figures in found.values() for passes in figures.values())
    return (
        "**Better than ours** by the 95 % interval of the paired difference, at so many passes "
        f"({number} of {num_compared} differences):\n\n" + "\n".join(parts)
    )


def to_markdown(results: Mapping[str, Any]) -> str:
    """The page of rivals.json; its first line says whether a rival is better."""
    parts = [verdict(results) + "\n", _introduction(results)]
    for setting, plot in results["plots"].items():
        shown = f"quality against passes and operations, {HEADINGS[setting].lower()}"
        parts.append(f"![{shown}]({plot})\n")
    parts.append(body(results))
    return "\n".join(parts).rstrip() + "\n"


def page_part(results: Mapping[str, Any]) -> str:
    """What stands between the markers of docs/rivals.md."""
    return "\n".join([verdict(results) + "\n", _introduction(results), body(results).rstrip()])


def body(results: Mapping[str, Any]) -> str:
    """The tables."""
    parts = []
    for setting, heading in HEADINGS.items():
        rows = [row for row in results["rows"] if row["setting"] == setting]
        if not rows:
            continue
        parts += [f"### {heading}\n", figures_table(rows, results)]
        if any(row["differences"] for row in rows):
            parts += [_about_differences(setting), differences_table(rows, results)]
    parts += ["### Training\n", training_table(results["training"])]
    if results["left_out"]:
        parts.append("Left out:\n")
        lines = {
            f"* `{one['run']}` at {one['passes']} passes: {one['reason']}."
            for one in results["left_out"]
        }
        parts += [*sorted(lines), ""]
    used = {letter for row in results["rows"] for letter in LETTERS.get(row["system"], "")}
    if used:
        parts.append("Deviations from the publications:\n")
        parts += [f"* {letter}: {DEVIATIONS[letter]}." for letter in sorted(used)]
    parts += [f"* {warning}" for warning in results["warnings"]]
    return "\n".join(parts)


def _introduction(results: Mapping[str, Any]) -> str:
    clips = results["clips"]
    return _wrapped(
        f"Figures are of {clips['single']} test clips with one event and {clips['scenes']} with "
        f"several, [] is a 95 % interval over clips, seed {clips['seed']}; guidance was chosen on "
        f"{clips['tuning']} validation clips. Training seconds include compiling and validation; "
        "of a run that was interrupted, what its last part comes to. "
        f"Machine: {describe_machine(results['machine'])}; load before the start "
        f"{results['load']:.1f}."
    )


def _about_differences(setting: str) -> str:
    impact = ", of IMPACT at most of ours" if setting == TEACHERS else ""
    return _wrapped(
        f"Difference to ours at as many passes{impact}, clip by clip; in **bold** where it is "
        "better by its interval, in _italics_ where worse."
    )


def _wrapped(text: str) -> str:
    """A paragraph in lines of the docs' width."""
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def _name(row: Row) -> str:
    letters = ", ".join(LETTERS.get(row["system"], ""))
    name = SYSTEMS[row["system"]]
    return f"{name} ({letters})" if letters else name


def _how(row: Row) -> str:
    steps = row["sampling_steps"]
    return f"{row['iterations']}" + ("" if steps is None else f" x {steps}")


def figures_table(rows: Sequence[Row], results: Mapping[str, Any]) -> str:
    """Passes, settings, operations, time and figures of each row."""
    quantities, timed = results["quantities"], any(row["seconds"] is not None for row in rows)
    head = ["system", "passes", "jumps or iterations", "guidance", "GFLOP a clip"]
    head += ["ms a clip"] if timed else []
    lines = []
    if rows[0]["setting"] == TEACHERS:
        for name, figures in results["references"].items():
            cells = [MISSING] * (len(head) - 1)
            lines.append([name, *cells, *_figures(figures, quantities)])
    for row in rows:
        cells = [_name(row), str(row["passes"]), _how(row), f"{row['scale']:g}"]
        cells.append(format_value(row["gflop"]))
        if timed:
            seconds = row["seconds"]
            cells.append(format_value(None if seconds is None else 1e3 * seconds))
        lines.append([*cells, *_figures(row["figures"], quantities)])
    return table(head + [one["title"] for one in quantities], lines)


def _figures(figures: Mapping[str, Any], quantities: Sequence[Mapping[str, str]]) -> list[str]:
    return [format_value(measured(figures, one)) for one in quantities]


def differences_table(rows: Sequence[Row], results: Mapping[str, Any]) -> str:
    """Each row's figures minus ours."""
    quantities = results["quantities"]
    lines = [
        [_name(row), str(row["passes"]), *(_difference(row, one["name"]) for one in quantities)]
        for row in rows
        if row["differences"]
    ]
    return table(["system", "passes", *(one["title"] for one in quantities)], lines)


def _difference(row: Row, name: str) -> str:
    one = row["differences"].get(name)
    if one is None:
        return MISSING
    found = Measured(one["value"], interval=tuple(one["interval"]))
    digits = decimals(found.value, standard_error(found))
    low, high = (fixed(bound, digits, signed=True) for bound in one["interval"])
    text = f"{fixed(found.value, digits, signed=True)} [{low}, {high}]"
    marks = {"better": "**", "worse": "_"}
    mark = marks.get(one["verdict"], "")
    return f"{mark}{text}{mark}"


def training_table(rows: Sequence[Row]) -> str:
    """What the training of every run took."""
    head = ["system", "setting", "parameters", "starts from", "steps", "ms a step"]
    head += ["GFLOP a step", "TFLOP", "training, s", "memory of a step, MiB"]
    lines = []
    for row in rows:
        seconds = row["seconds"]
        cells = [_name(row), HEADINGS[row["setting"]].lower(), format_value(row["parameters"])]
        cells += [row["starts_from"], format_value(row["steps"])]
        numbers = (1e3 * row["step_seconds"], row["step_gflop"], row["tflop"])
        cells += [format_value(float(number)) for number in numbers]
        cells.append(format_value(None if seconds is None else round(seconds)))
        lines.append([*cells, format_value(row["memory_bytes"] / 2**20)])
    return table(head, lines)
