"""The tables of docs/scaling.md, and where the time would go on paper.

A program's paper times are lower bounds, each as if it were alone: operations over the peak rate;
state and activations once through memory; and for each kind of collective the bytes that a chip
sends over the rate of the links that its mesh axes lie along.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fasttta_jax.report.text_table import format_table
from fasttta_jax.storage.files import write_atomically
from fasttta_jax.tools.aot_report import describe_axes

MIB, GIB = 2**20, 2**30
Report = Mapping[str, Any]


class PaperTimes(NamedTuple):
    """Seconds of one call on one chip, none hidden behind another.

    Attributes:
      compute: of the matrix products at the peak rate.
      memory: of arguments and results once, temporaries written and read once.
      links: of all collectives.
    """

    compute: float
    memory: float
    links: float

    @property
    def largest(self) -> str:
        """Which of the three it is."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def overlapped(self) -> float:
        """The call, if all three ran at once: what no program can beat."""
        return max(self)

    @property
    def in_turn(self) -> float:
        """The call, if none of them overlapped."""
        return sum(self)


def paper_times(report: Report) -> PaperTimes | None:
    """None where the program did not fit, or a link's rate is not known."""
    if not report["fits"] or any(row["seconds"] is None for row in report["collectives"]):
        return None
    memory = report["memory"]
    touched = memory["arguments"] + memory["outputs"] + 2 * memory["temporaries"]
    return PaperTimes(
        compute=report["flops_per_chip"] / report["peak_flops"],
        memory=touched / report["hbm_bandwidth"],
        links=sum(row["seconds"] for row in report["collectives"]),
    )


def clips_to_hide_links(report: Report) -> float | None:
    """Clips a chip from which its operations take longer than its collectives, at the peak rate.

    Only where all collectives carry parameters and gradients, whose size does not depend on the
    batch: without tensor parallelism, in training.
    """
    times = paper_times(report)
    if times is None or report["program"] != "train" or report["mesh"]["tensor"] > 1:
        return None
    return times.links / times.compute * report["batch_size"] / report["chips"]


def _mesh(report: Report) -> str:
    return "{data} x {fsdp} x {tensor}".format(**report["mesh"])


def _names(report: Report) -> list[str]:
    return [report["model"], report["topology"], _mesh(report)]


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f}"


def _collectives(report: Report) -> str:
    """ "all-gather fsdp 989 (331)": MiB that a chip sends, and executions."""
    if report["collectives"] is None:
        return "?"
    return "; ".join(
        f"{row['kind']} {describe_axes(row['axes'])} {row['sent_bytes'] / MIB:,.1f} "
        f"({row['executions']}{'' if row['is_exact'] else ' x unknown'})"
        for row in report["collectives"]
    )


def needs_table(reports: Sequence[Report], program: str) -> str:
    """Memory and collectives of every layout."""
    columns = (
        "model",
        "slice",
        "data x fsdp x tensor",
        "clips/chip",
        "M params/chip",
        "arguments",
        "temporaries",
        "peak MiB",
        "of HBM",
        "TFLOP/chip",
        "compile s",
        "  sent by a chip, MiB (executions)",
    )
    rows = []
    for report in reports:
        if report["program"] != program:
            continue
        memory = report["memory"]
        rows.append(
            [
                *_names(report),
                f"{report['batch_size'] / report['chips']:g}",
                f"{report['parameters_per_chip'] / 1e6:.1f}",
                _mib(memory["arguments"]) if report["fits"] else "?",
                _mib(memory["temporaries"]) if report["fits"] else "?",
                _mib(memory["peak"]),
                f"{memory['peak'] / report['hbm_bytes']:.0%}" + ("" if report["fits"] else " NO"),
                f"{report['flops_per_chip'] / 1e12:.2f}",
                f"{report['compile_seconds']:.0f}",
                "  " + _collectives(report),
            ]
        )
    return _ragged(columns, rows)


def _ragged(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose last column, of any length, starts where the numbers end."""
    *heads, last = columns
    lines = format_table(heads, [row[:-1] for row in rows], num_names=3).split("\n")
    width = max(map(len, lines))
    endings = [last, "-" * len(last), *(row[-1] for row in rows)]
    return "\n".join(
        (line.ljust(width) + ending).rstrip() for line, ending in zip(lines, endings, strict=True)
    )


def paper_table(reports: Sequence[Report], program: str) -> str:
    """Where the time would go."""
    columns = (
        "model",
        "slice",
        "data x fsdp x tensor",
        "clips/chip",
        "compute ms",
        "memory ms",
        "links ms",
        "largest",
        "at most, clips/s",
        "none hidden, clips/s",
        "links hidden from clips/chip",
    )
    rows = []
    for report in reports:
        times = paper_times(report)
        if report["program"] != program or times is None:
            continue
        enough = clips_to_hide_links(report)
        rows.append(
            [
                *_names(report),
                f"{report['batch_size'] / report['chips']:g}",
                *(f"{1e3 * seconds:.2f}" for seconds in times),
                times.largest,
                f"{report['batch_size'] / times.overlapped:,.0f}",
                f"{report['batch_size'] / times.in_turn:,.0f}",
                "" if enough is None else f"{enough:.1f}",
            ]
        )
    return format_table(columns, rows, num_names=3)


def conclusions(reports: Sequence[Report]) -> list[str]:
    """What the numbers say, a sentence for each model and slice."""
    found = []
    groups: dict[tuple[str, str], list[tuple[PaperTimes, Report]]] = {}
    for report in reports:
        times = paper_times(report)
        if report["program"] == "train" and times is not None:
            groups.setdefault((report["model"], report["topology"]), []).append((times, report))
    for (model, topology), members in groups.items():
        fastest, best = min(members, key=lambda pair: pair[0].in_turn)
        smallest = min((report for _, report in members), key=lambda one: one["memory"]["peak"])
        share = fastest.compute / fastest.in_turn
        clips = best["batch_size"] / best["chips"]
        found.append(
            f"* {model} on {topology}, {clips:g} clip{'' if clips == 1 else 's'} a chip: "
            f"fastest on paper is {_mesh(best)}, limited by {fastest.largest}; operations are "
            f"{share:.0%} of its time if nothing overlaps, and it takes "
            f"{best['memory']['peak'] / best['hbm_bytes']:.0%} of the memory. Least memory has "
            f"{_mesh(smallest)}: {smallest['memory']['peak'] / smallest['hbm_bytes']:.0%}."
        )
    refused = [one for one in reports if one["program"] == "train" and not one["fits"]]
    found += [
        f"* {one['model']} on {one['topology']} does not fit as {_mesh(one)}: it would take "
        f"{one['memory']['peak'] / one['hbm_bytes']:.0%} of the memory."
        for one in refused
    ]
    return found


# ---------------------------------------------------------------------------------- the page


def replace_between(page: str, name: str, content: str) -> str:
    """`page` with what stands between the markers of `name` replaced.

    Raises:
      ValueError: the page does not have the two markers, once each, in their order.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"the page must have {start} and after it {end}, once each")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def fenced(text: str) -> str:
    """As Markdown that keeps its columns."""
    return f"```\n{text}\n```"


def write_page(path: pathlib.Path, parts: Mapping[str, str]) -> None:
    """Replaces the generated parts of a page, by name.

    Raises:
      OSError: there is no such page.
      ValueError: it lacks the markers of a part.
    """
    page = path.read_text(encoding="utf-8")
    for name, content in parts.items():
        page = replace_between(page, name, content)
    write_atomically(path, page.encode())


def aot_parts(reports: Sequence[Report]) -> dict[str, str]:
    """The generated parts of the page that come from compiled programs."""
    first = reports[0]
    efforts = "/".join(sorted({str(report["effort"]) for report in reports}))
    source = (
        f"jax {first['jax']}, libtpu {first['libtpu']}, {efforts} effort of the compiler; "
        f"{first['dtype']}; a global batch of {first['batch_size']}; the sampler with "
        f"{first['num_iterations']} iterations and guidance."
    )
    return {
        "source": source,
        "training": fenced(needs_table(reports, "train")),
        "sampling": fenced(needs_table(reports, "sampler")),
        "training on paper": fenced(paper_table(reports, "train")),
        "sampling on paper": fenced(paper_table(reports, "sampler")),
        "conclusions": "\n".join(conclusions(reports)),
    }
