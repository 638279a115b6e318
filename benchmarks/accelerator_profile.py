"""Where the time of one call goes, by the parts of the model that the operations come from."""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.profiler import ProfileData

NUM_COSTS = 12
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?([a-z][\w\-]*)\(", re.MULTILINE)
OP_NAME = re.compile(r'op_name="([^"]*)"')
CONTAINERS = ("while", "conditional", "call")
"""Whose time is that of what they hold."""


def instructions(hlo: str) -> dict[str, str]:
    """Of a compiled program: each instruction's name, and the part of the model it comes from.

    Blocks are not told apart: "decoder_3/attention/qkv" is "decoder/attention/qkv". An instruction
    that does not say where it comes from is named by its kind.
    """
    found = {}
    for line in hlo.splitlines():
        match = INSTRUCTION.match(line)
        if match is None or match[2] in CONTAINERS:
            continue
        name = OP_NAME.search(line)
        found[match[1]] = _part(name[1]) if name else match[2]
    return found


def _part(op_name: str) -> str:
    """ "jit(step)/transpose(jvp(MAR))/decoder_3/mlp_in/dot_general" without what repeats."""
    backward = "backward " if "transpose(" in op_name else ""
    steps = [re.sub(r"_\d+$", "", step) for step in op_name.split("/")]
    kept = [step for step in steps if not re.search(r"[()]", step) and step not in CONTAINERS]
    kept = [step for step in kept if step not in ("body", "cond", "closed_call")]
    return backward + "/".join(kept or [steps[-1]])


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """Name and seconds of every operation on the device; on a CPU, of the host's threads."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        lines = list(plane.lines)
        operations = [line for line in lines if line.name == "XLA Ops"]
        for line in operations or lines:
            for event in line.events:
                stats = dict(event.stats)
                yield str(stats.get("hlo_op", event.name)), event.duration_ns / 1e9


def top_costs(call: Callable[[], Any], hlo: str) -> list[dict[str, Any]]:
    """The parts of a warm program that take most of its time, and all others together.

    Args:
      call: runs it.
      hlo: its compiled text.

    Returns:
      Rows of "part", "seconds", "share" of the time of all operations, and "calls"; empty where the
      trace names no operation of the program.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        traces = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
        data = [ProfileData.from_file(str(trace)) for trace in traces]
    parts = instructions(hlo)
    seconds: dict[str, float] = collections.defaultdict(float)
    calls: collections.Counter[str] = collections.Counter()
    for one in data:
        for name, duration in _events(one):
            if name in parts:
                seconds[parts[name]] += duration
                calls[parts[name]] += 1
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    rows = [
        {"part": part, "seconds": spent, "share": spent / total, "calls": calls[part]}
        for part, spent in ordered[:NUM_COSTS]
    ]
    rest = total - sum(row["seconds"] for row in rows)
    if len(seconds) > NUM_COSTS:
        others = sum(calls.values()) - sum(row["calls"] for row in rows)
        rows.append({"part": "others", "seconds": rest, "share": rest / total, "calls": others})
    return rows
