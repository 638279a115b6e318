"""Programs lowered or compiled for chips that are not there: what is found, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import scaling_cells
from fasttta_jax.config import ConfigError, DataConfig, MeshConfig, RunConfig
from fasttta_jax.parallel.compile import Program
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance import topology as topologies
from fasttta_jax.performance.flops import sampling_flops, training_step_flops
from fasttta_jax.performance.topology import parse_topology
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.tools import aot_cases
from fasttta_jax.tools.aot_cases import COMPILED, PROGRAMS, Case, report
from fasttta_jax.tools.aot_report import describe, earlier_reports, group_warnings
from fasttta_jax.training.state import TrainState
from tests.support import commands, helpers
from tests.support.latent_runs import latent_config

REPOSITORY = pathlib.Path(__file__).parents[2]
HAS_LIBTPU = topologies.find_libtpu() is not None
GIB = 2**30


def student(**mesh: int) -> RunConfig:
    """Eight clips on 8 chips."""
    config = helpers.tiny_student_config("unused", "unused")
    return dataclasses.replace(config, mesh=MeshConfig(**mesh))


def case(program: Any, config: RunConfig | None = None, topology: str = "v5e:2x4") -> Case:
    return Case(config or student(data=-1, fsdp=2), parse_topology(topology), program)


def text_of(config: RunConfig):
    return abstract_text_encoder(config.model.text)


# ------------------------------------------------------------------------------- without libtpu


@pytest.mark.parametrize(
    ("program", "kind"),
    [*((program, "") for program in PROGRAMS), ("train", "reflow"), ("sampler", "consistency")],
)
def test_without_a_compiler_shardings_and_sizes_are_known(program, kind):
    """Of a student, and of networks that move all tokens together."""
    config = student(data=-1, fsdp=2)
    if kind:
        config = latent_config(kind, mesh=config.mesh, data=config.data)
    one = case(program, config)
    found = report(one, text_of(one.config), one.abstract_mesh())
    assert all(found[name] is None for name in COMPILED)
    assert found["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert (found["chips"], found["hosts"]) == (8, 2)
    flops = training_step_flops if program == "train" else sampling_flops
    assert found["flops_per_chip"] == flops(one.config).total  # 8 clips on 8 chips
    shown = describe(found)
    assert "not known without libtpu" in shown
    assert f"{found['parameters']:,}" in shown


def test_a_chip_holds_its_part_of_state_and_teacher(monkeypatch):
    monkeypatch.setattr("fasttta_jax.parallel.sharding.MIN_FSDP_SIZE", 64)
    config = student(data=-1)
    sizes = {}
    for fsdp in (1, 2):
        one = case("train", dataclasses.replace(config, mesh=MeshConfig(-1, fsdp)))
        _, arguments = aot_cases.build(one, text_of(config), one.abstract_mesh())
        parts = arguments | {"params": arguments["state"].params}
        sizes[fsdp] = {name: aot_cases.chip_bytes(tree) for name, tree in parts.items()}
    whole = sizes[1]
    copies = 4 * whole["params"]  # parameters, their average, two moments; and a few counters
    assert copies <= whole["state"] <= copies + 16
    for name in ("params", "state", "frozen"):
        assert whole[name] / 2 <= sizes[2][name] < 0.7 * whole[name]
    assert sizes[2]["batch"] == whole["batch"]


def test_one_clip_more_a_chip_is_more_operations():
    config = student(data=-1)
    twice = dataclasses.replace(config, data=DataConfig(batch_size=16))
    assert aot_cases.flops_per_chip(case("train", twice)) == 2 * aot_cases.flops_per_chip(
        case("train", config)
    )


def test_several_slices_are_several_times_the_chips():
    one = case("train", student(data=4, fsdp=2, tensor=2), "2xv5e:2x4")
    one.check()
    assert one.abstract_mesh().shape == {"data": 4, "fsdp": 2, "tensor": 2}


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("config", "topology", "message"),
    [
        (student(data=3, fsdp=2), "v5e:2x4", "does not multiply to the 8 devices"),
        (student(data=-1), "v5e:4x4", r"data.batch_size is 8; allowed: multiples of .* = 16"),
        (student(data=1, fsdp=8), "2xv5e:2x2", r"mesh.data is 1; allowed: multiples of 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(config, topology, message):
    with pytest.raises(ConfigError, match=message):
        case("train", config, topology).check()


def test_parts_of_the_batch_must_divide_in_training_only():
    config = student(data=-1)
    optimizer = dataclasses.replace(config.optimizer, accumulation_steps=2)
    config = dataclasses.replace(config, optimizer=optimizer)
    case("sampler", config).check()
    with pytest.raises(ConfigError, match=r"accumulation_steps = 16"):
        case("train", config).check()


def test_rules_that_match_nothing_are_refused():
    config = student(data=-1)
    mesh = dataclasses.replace(config.mesh, rules=(("no_such_name", ("fsdp",)),))
    one = case("train", dataclasses.replace(config, mesh=mesh))
    with pytest.raises(ConfigError, match="matches no parameter"):
        report(one, text_of(config), one.abstract_mesh())


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run("-m", "fasttta_jax.tools.aot_report", *arguments, timeout=120)


def test_the_command_names_the_topologies_that_there_are():
    done = run_command("--config=configs/tiny.py:student", "--topology=v5e:3x3")
    assert done.returncode == 1
    assert "error: topology is 'v5e:3x3', which does not exist; allowed: v5e:2x2" in done.stderr


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_no_report_of_a_compiled_program_is_lost(tmp_path):
    cell = scaling_cells.cells()[0]
    target = tmp_path / "cells" / f"{cell.name}.json"
    target.parent.mkdir()
    target.write_text("[]")
    report_of_cell = scaling_cells.command(cell, target, "low")[1:]
    table = ["-m", "benchmarks.scaling", "--table", f"--results={tmp_path}", "--docs="]
    for command, flag in ((report_of_cell, "--reuse"), (table, "--table")):
        done = commands.run(*command, timeout=120)
        assert done.returncode == 1
        assert f"error: {flag} takes libtpu: pip install 'fasttta_jax[aot]'" in done.stderr
    assert target.read_text() == "[]"


# ----------------------------------------------------------------------------------- compiling


@pytest.fixture(scope="module")
def devices_mesh() -> Mesh:
    """This machine's devices in place of the chips, so that there is something to compile for."""
    return make_mesh(MeshConfig(-1, 2), jax.devices())


@pytest.fixture
def _links(monkeypatch) -> None:
    monkeypatch.setattr(topologies, "axis_bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(topologies, "libtpu_version", lambda: "0")


def small_program(scale: float) -> Any:
    """A stand-in for `build`: one step of least squares, its kernel split over fsdp."""

    def step(state: TrainState, batch: jax.Array) -> TrainState:
        def loss(params: Any) -> jax.Array:
            return scale * jnp.sum((batch @ params["kernel"]) ** 2)

        gradient = jax.grad(loss)(state.params)
        return state.replace(  # type: ignore[attr-defined]
            params=jax.tree.map(jnp.subtract, state.params, gradient)
        )

    def build(case: Case, text: Any, mesh: Mesh) -> tuple[Program[Any], dict[str, Any]]:
        def shaped(shape: tuple[int, ...], *spec: Any) -> Any:
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

        params = {"kernel": shaped((64, 32), "fsdp")}
        state = TrainState(step=shaped(()), params=params, ema=params, opt_state=())
        batch = shaped((16, 64), ("data", "fsdp"))
        out = jax.tree.map(lambda leaf: leaf.sharding, state)
        jitted = jax.jit(step, out_shardings=out, donate_argnums=0)
        return Program(jitted, mesh), {"state": state, "batch": batch}

    return build


@pytest.mark.usefixtures("unchecked")
@pytest.mark.usefixtures("_links")
def test_a_compiled_program_has_memory_and_collectives(devices_mesh, monkeypatch):
    monkeypatch.setattr(aot_cases, "build", small_program(1.0))
    found = report(case("train"), None, devices_mesh)  # type: ignore[arg-type]
    assert found["fits"] is True
    assert found["parameters_per_chip"] == found["parameters"] / 2
    memory, given = found["memory"], found["argument_bytes"]
    assert given == {"state": 2 * 64 * 32 * 4 // 2 + 4, "batch": 16 * 64 * 4 // 8}
    assert memory["arguments"] == sum(given.values())
    assert memory["aliased"] == given["state"]  # the old state is donated
    parts = (memory["arguments"], memory["outputs"], -memory["aliased"], memory["temporaries"])
    assert memory["peak"] == sum(parts) + memory["program"]
    # The kernel is gathered; its gradient is summed over the batch.
    kinds = {(row["kind"], tuple(row["axes"])) for row in found["collectives"]}
    assert ("all-gather", ("fsdp",)) in kinds
    assert any("data" in axes for _, axes in kinds)
    for row in found["collectives"]:
        assert row["seconds"] == row["sent_bytes"] / 1e9
        members = [
            one
            for one in found["instructions"]
            if (one["kind"], list(one["axes"])) == (row["kind"], row["axes"])
        ]
        assert len(members) == row["instructions"]
    shown = describe(json.loads(json.dumps(found)))
    assert "15.75 GiB: fits" in shown
    assert "all-gather" in shown


@pytest.mark.usefixtures("unchecked")
@pytest.mark.usefixtures("_links")
def test_only_the_same_program_is_taken_from_an_earlier_report(devices_mesh, monkeypatch):
    monkeypatch.setattr(aot_cases, "build", small_program(1.0))
    one = case("train")
    known = [json.loads(json.dumps(report(one, None, devices_mesh)))]  # type: ignore[arg-type]

    def refuse(*_: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(aot_cases, "_compile", refuse)
    again = report(one, None, devices_mesh, known)  # type: ignore[arg-type]
    assert again | {"lower_seconds": 0} == known[0] | {"lower_seconds": 0}
    for other in (
        dataclasses.replace(one, effort="low"),
        dataclasses.replace(one, topology=parse_topology("v6e:2x4")),
    ):
        with pytest.raises(AssertionError, match="compiled again"):
            report(other, None, devices_mesh, known)  # type: ignore[arg-type]
    monkeypatch.setattr(aot_cases, "build", small_program(2.0))
    with pytest.raises(AssertionError, match="compiled again"):
        report(one, None, devices_mesh, known)  # type: ignore[arg-type]


class Refusing:
    """A lowered program that the compiler refuses."""

    def __init__(self, message: str) -> None:
        self.message = message

    def compile(self, options: Any) -> None:
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.50G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\nUsed 20.50G of 15.75G hbm.",
    ],
)
def test_a_program_that_does_not_fit_says_how_much_it_needs(message, devices_mesh):
    one = case("train")
    found = aot_cases._compile(Refusing(message), one, devices_mesh)
    assert found["fits"] is False
    assert found["memory"]["peak"] == int(20.5 * GIB)
    rest = report(one, text_of(one.config), one.abstract_mesh())
    assert "130% of 15.75 GiB: DOES NOT FIT" in describe(rest | found | {"effort": "low"})


def test_other_refusals_of_the_compiler_are_not_hidden(devices_mesh):
    with pytest.raises(jax.errors.JaxRuntimeError, match="strange"):
        aot_cases._compile(Refusing("INTERNAL: strange"), case("train"), devices_mesh)


# ---------------------------------------------------------------------------------- the words


def test_warnings_about_the_blocks_of_a_stack_are_one_line():
    why = "no axis of (3,) is a multiple of mesh.fsdp = 2"
    warnings = {f"backbone/encoder_{index}/norm/scale": why for index in range(12)}
    assert group_warnings(warnings | {"head/bias": why}) == [
        f"backbone/encoder_*/norm/scale: {why} (12 arrays)",
        f"head/bias: {why}",
    ]


def test_a_file_of_earlier_reports_is_checked(tmp_path):
    assert earlier_reports(None) == earlier_reports(str(tmp_path / "none.json")) == []
    path = tmp_path / "reports.json"
    path.write_text('[{"fingerprint": "x"}]')
    assert earlier_reports(str(path)) == [{"fingerprint": "x"}]
    for wrong, message in (("{", "cannot be read"), ("{}", "holds no list"), ("[1]", "no list")):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=message):
            earlier_reports(str(path))


# ---------------------------------------------------------------------------------- with libtpu


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed: pip install -e '.[aot]'")
def test_the_step_compiles_for_tpus(tmp_path):
    out = tmp_path / "reports" / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fasttta_jax.tools.aot_report"),
            *("--config=configs/tiny.py:student", "--topology=v5e:2x2", "--program=train"),
            *("--config.mesh.fsdp=2", "--config.model.backbone.scan_layers=true"),
            *("--effort=low", f"--out={out}"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())
    assert found["fits"] is True
    assert found["libtpu"]
    assert any(row["kind"] == "all-gather" for row in found["collectives"])
    assert all(row["is_exact"] for row in found["collectives"])
    assert all(row["seconds"] > 0 for row in found["collectives"])
