"""Compiles a run's training step and sampler for a TPU slice, with no TPU: what they need and send.

    python -m fasttta_jax.tools.aot_report --config=configs/audiodear_base.py \\
        --topology=v5e:16x16 --config.mesh.fsdp=16 --out=report.json
    python -m fasttta_jax.tools.aot_report --config=configs/tiny.py:student \\
        --topology=2xv5e:4x4 --program=train

For each program: parameters and memory of a chip beside what it has, the collectives by kind with
the mesh axes they run along and the bytes that a chip sends, floating-point operations, compile
time, and which parameters could not be split. Nothing is allocated and no dataset is needed; the
step of a student holds its frozen teacher.

Compiling takes libtpu (pip install 'fasttta_jax[aot]', or TPU_LIBRARY_PATH). Without it the same
programs are traced and lowered for as many abstract chips: every sharding is checked, and what only
the compiler knows is left out.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pathlib
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from fasttta_jax import cli
from fasttta_jax.config import ConfigError, RunConfig, from_config_dict
from fasttta_jax.parallel.mesh import AnyMesh, make_mesh
from fasttta_jax.performance import topology as topologies
from fasttta_jax.performance.topology import Topology
from fasttta_jax.report.text_table import format_table
from fasttta_jax.storage.files import write_json
from fasttta_jax.tools.aot_cases import EFFORTS, PROGRAMS, Case, report
from fasttta_jax.tools.param_overview import STACKED, text_encoder

logger = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30


def _mib(number: float) -> str:
    return f"{number / MIB:,.1f} MiB"


def describe_axes(axes: Sequence[str]) -> str:
    """ "fsdp" or "data x fsdp"."""
    return " x ".join(axes)


def _memory_lines(found: Mapping[str, Any]) -> list[str]:
    memory, hbm = found["memory"], found["hbm_bytes"]
    if memory is None:
        parts = ", ".join(f"{name} {_mib(size)}" for name, size in found["argument_bytes"].items())
        return [
            f"memory of a chip   arguments alone: {parts}; a chip has {hbm / GIB:.2f} GiB",
            "not known without libtpu: temporaries, peak memory, collectives, compile time",
        ]
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    share = memory["peak"] / hbm
    lines = [f"memory of a chip   {_mib(memory['peak'])}, {share:.0%} of {hbm / GIB:.2f} GiB"]
    lines[0] += f": {verdict}"
    if found["fits"]:
        parts = ("arguments", "outputs", "aliased", "temporaries", "program")
        lines.append("   " + ", ".join(f"{part} {_mib(memory[part])}" for part in parts))
    return lines


def describe(found: Mapping[str, Any]) -> str:
    """One report as text."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    lines = [
        f"{found['program']}, objective {found['objective']}, on {found['topology']}: "
        f"{found['chips']} chips, {found['hosts']} hosts, mesh {mesh}, "
        f"batch {found['batch_size']}, {found['dtype']}",
        f"parameters   {found['parameters']:,}, of which a chip holds "
        f"{found['parameters_per_chip']:,}",
        *_memory_lines(found),
        f"operations   {found['flops_per_chip'] / 1e12:,.3f} TFLOP a chip, analytic",
        f"time   lowered in {found['lower_seconds']:.1f} s"
        + (
            f", compiled in {found['compile_seconds']:.1f} s with {found['effort']} effort"
            if found["compile_seconds"] is not None
            else ""
        ),
    ]
    if found["collectives"]:
        rows = [
            [
                row["kind"],
                describe_axes(row["axes"]),
                str(row["instructions"]),
                str(row["executions"]) + ("" if row["is_exact"] else " x unknown"),
                f"{row['sent_bytes'] / MIB:,.2f}",
                "?" if row["seconds"] is None else f"{1e3 * row['seconds']:,.2f}",
            ]
            for row in found["collectives"]
        ]
        columns = (
            "collective",
            "over",
            "instructions",
            "executions",
            "MiB a chip sends",
            "ms on its links",
        )
        lines += ["", format_table(columns, rows, num_names=2), ""]
    elif found["collectives"] is not None:
        lines.append("collectives   none")
    lines.append(f"not split as wished   {len(found['warnings'])} arrays")
    lines += [f"   {line}" for line in group_warnings(found["warnings"])]
    return "\n".join(lines)


def group_warnings(warnings: Mapping[str, str]) -> list[str]:
    """Arrays that could not be split as wished, blocks of a stack in one line."""
    groups = collections.Counter((STACKED.sub("*", name), why) for name, why in warnings.items())
    return [
        f"{name}: {why}" + (f" ({count} arrays)" if count > 1 else "")
        for (name, why), count in groups.items()
    ]


def mesh_for(topology: Topology, config: RunConfig) -> AnyMesh:
    """The run's mesh over devices to compile for, or an abstract one where libtpu is missing."""
    if topologies.find_libtpu() is None:
        logger.warning("libtpu is not installed: programs are lowered, not compiled")
        return Case(config, topology, "train").abstract_mesh()
    return make_mesh(config.mesh, topologies.devices(topology))


def earlier_reports(path: str | None) -> list[dict[str, Any]]:
    """The reports that --out holds already.

    Raises:
      ConfigError: it is there and no list of reports.
    """
    if path is None or not pathlib.Path(path).is_file():
        return []
    try:
        found = json.loads(pathlib.Path(path).read_text())
    except ValueError as error:
        raise ConfigError(f"--out is {path!r}, which cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"--out is {path!r}, which holds no list of reports; allowed: a new file")
    return found


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/; fields as --config.mesh.fsdp=16.",
        lock_config=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "topology",
        None,
        "TPU slice, such as v5e:16x16; two of them: 2xv5e:16x16.",
        flag_values=values,
    )
    flags.mark_flags_as_required(["config", "topology"], flag_values=values)
    flags.DEFINE_list(
        "program", list(PROGRAMS), f"Which of {', '.join(PROGRAMS)}.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Global batch of both programs; left out: data.batch_size.",
        1,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "effort",
        "full",
        list(EFFORTS),
        "Of the compiler: low is several times faster and gives an upper bound on memory.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "vocabulary_size",
        1000,
        "Entries of a learned text encoder that is not fitted yet.",
        1,
        flag_values=values,
    )
    flags.DEFINE_string("out", None, "JSON file for the reports.", flag_values=values)
    flags.DEFINE_bool(
        "reuse",
        False,
        "Take from --out what the same compiler made of the same program before.",
        flag_values=values,
    )


def _without_stack_limit() -> None:
    """Starts this program anew without a limit on its stack, where it has one and may lift it.

    libtpu 0.0.42 was seen to end in a segmentation fault while it compiled the large model's
    training step in processes that began with a limit, of 8 MiB or of 1 GB, and in none without.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and hard == unlimited:
        resource.setrlimit(resource.RLIMIT_STACK, (unlimited, hard))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Reports on the programs that the flags name."""
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is touched
    jax.config.update("jax_enable_compilation_cache", False)
    unknown = [name for name in values.program if name not in PROGRAMS]
    if unknown or not values.program:
        raise ValueError(f"--program holds {unknown or values.program}; allowed: {PROGRAMS}")
    topology = topologies.parse_topology(values.topology)
    config = from_config_dict(values.config)
    if values.batch_size is not None:
        data = dataclasses.replace(config.data, batch_size=values.batch_size)
        config = dataclasses.replace(config, data=data)
    cases = [Case(config, topology, name, values.effort) for name in values.program]
    for case in cases:
        case.check()
    if values.reuse:
        if values.out is None:
            raise ValueError("--reuse takes an --out to reuse")
        # Programs that are only lowered would take the place of reports of compiled ones.
        topologies.require_libtpu("--reuse")
    if topologies.find_libtpu() is not None:
        _without_stack_limit()
    if values.out is not None:
        pathlib.Path(values.out).parent.mkdir(parents=True, exist_ok=True)
    text = text_encoder(config, values.vocabulary_size)
    mesh = mesh_for(topology, config)
    known = earlier_reports(values.out) if values.reuse else []
    reports: list[dict[str, Any]] = []
    for case in cases:
        reports.append(report(case, text, mesh, known))
        print(describe(reports[-1]), end="\n\n", flush=True)
        if values.out is not None:  # after each, for compiling takes minutes
            rest = known if len(reports) < len(cases) else []
            write_json(pathlib.Path(values.out), [*reports, *rest])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
