"""The scaling benchmark: which cases it has, how cells are compiled and kept, tables and page."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

import pytest

from benchmarks import scaling, scaling_cells, scaling_tables
from benchmarks.measure import load_run_config
from benchmarks.scaling_cells import Cell
from fasttta_jax.config import ConfigError, DataConfig, MeshConfig
from fasttta_jax.performance.topology import parse_topology
from fasttta_jax.tools.aot_cases import Case
from tests.support import helpers

REPOSITORY = pathlib.Path(__file__).parents[2]
MIB = 2**20
CELL = Cell("configs/tiny.py:student", "v5e:4x4", (4, 4, 1), ("train",))


# ------------------------------------------------------------------------------------- layouts


def test_layouts_use_all_devices_once_each():
    assert scaling.layouts(1) == ((1, 1, 1),)
    assert scaling.layouts(8) == ((8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2))
    for num_devices in (2, 3, 4, 6, 8):
        found = scaling.layouts(num_devices)
        assert len(set(found)) == len(found)
        assert all(math.prod(mesh) == num_devices for mesh in found)


def test_weak_scaling_keeps_the_clips_of_a_device_and_strong_those_of_the_batch():
    run = helpers.tiny_teacher_config("unused", data=DataConfig(batch_size=8))
    cases = scaling.study_cases(run, 4)
    sizes = {name: case.data.batch_size for name, (_, case) in cases.items()}
    assert sizes.pop("weak 4") == 32
    assert set(sizes.values()) == {8}
    assert [kind for kind, _ in scaling.study_cases(run, 1).values()] == ["strong"]


@pytest.mark.long
def test_the_study_times_steps_and_counts_their_collectives(monkeypatch):
    monkeypatch.setattr("fasttta_jax.parallel.sharding.MIN_FSDP_SIZE", 64)
    monkeypatch.setattr(scaling, "layouts", lambda num_devices: ((1, num_devices, 1),))
    run = helpers.tiny_teacher_config("unused", data=DataConfig(batch_size=2))
    cases = scaling.study_cases(run, 2)
    monkeypatch.setattr(scaling, "study_cases", lambda *_: {"strong": cases["strong 1x2x1"]})
    results = scaling.work(run, 2, repeats=3)
    (row,) = results["rows"]
    assert (row["scaling"], row["mesh"]) == ("strong", {"data": 1, "fsdp": 2, "tensor": 1})
    assert row["clips_per_second"] == row["batch_size"] / row["median_seconds"] > 0
    sent = {(one["kind"], one["axes"]) for one in row["collectives"]}
    assert {("all-gather", ("fsdp",)), ("all-reduce", ("fsdp",))} <= sent
    assert {axes for _, axes in sent} == {("fsdp",)}
    shown = scaling.study_tables(json.loads(json.dumps(results)))
    assert "1 x 2 x 1" in shown
    assert "all-gather" in shown
    with pytest.raises(RuntimeError, match="100 devices are asked for; this machine has 8"):
        scaling.work(run, 100, repeats=3)


def study_row(devices: int, clips_per_second: float) -> dict[str, Any]:
    return {"devices": devices, "clips_per_second": clips_per_second}


def test_what_is_ideal_depends_on_whether_devices_share_a_processor():
    one, eight = study_row(1, 10.0), study_row(8, 40.0)
    assert scaling.ideal(eight, one, is_shared=False) == 0.5
    assert scaling.ideal(eight, one, is_shared=True) == 4.0


def test_a_study_says_on_how_many_devices_it_failed():
    with pytest.raises(RuntimeError, match=r"on 2 devices: .*'configs/nothing.py'; allowed"):
        scaling.study(["--config=configs/nothing.py"], [2])


# --------------------------------------------------------------------------------------- cells


def test_every_cell_of_the_table_can_be_compiled():
    found = scaling_cells.cells()
    assert len({cell.name for cell in found}) == len(found) >= 12
    assert {cell.topology for cell in found} == set(scaling_cells.TOPOLOGIES)
    for cell in found:
        run = load_run_config(cell.config)
        run = dataclasses.replace(run, mesh=MeshConfig(*cell.mesh))
        for program in cell.programs:
            Case(run, parse_topology(cell.topology), program).check()
    with pytest.raises(ConfigError, match="does not exist"):
        scaling_cells.cells(topologies=["v5e:5x5"])


def test_the_command_of_a_cell_names_it_whole(tmp_path):
    words = scaling_cells.command(CELL, tmp_path / "cell.json", "low")
    for word in (
        "--config=configs/tiny.py:student",
        "--topology=v5e:4x4",
        "--config.mesh.fsdp=4",
        "--program=train",
        "--effort=low",
        "--reuse",
    ):
        assert word in words
    assert CELL.name == "tiny_student-v5e_4x4-4x4x1"


def test_cells_that_fail_are_named_after_the_others_are_done(tmp_path, monkeypatch):
    def command(cell: Cell, target: pathlib.Path, effort: str) -> list[str]:
        if cell.mesh[0] == 4:
            return [sys.executable, "-c", "import sys; sys.exit('error: no such thing')"]
        script = f"open({str(target)!r}, 'w').write('[{{\"program\": \"train\"}}]')"
        return [sys.executable, "-c", script]

    monkeypatch.setattr(scaling_cells, "command", command)
    good = CELL._replace(mesh=(16, 1, 1))
    with pytest.raises(RuntimeError, match=r"1 of 2 cells failed.*\n.*4x4x1: no such thing"):
        scaling_cells.compile_cells([CELL, good], tmp_path, "low")
    assert scaling_cells.read_cells([CELL, good], tmp_path) == [
        {"model": "tiny:student", "program": "train"}
    ]


# -------------------------------------------------------------------------------------- tables


def report(mesh: tuple[int, int, int] = (4, 4, 1), **changes: Any) -> dict[str, Any]:
    """Of a training step that computes 10 ms, moves memory 5 ms and sends 20 ms on paper."""
    values = {
        "model": "base",
        "program": "train",
        "topology": "v5e:4x4",
        "chips": 16,
        "mesh": dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)),
        "batch_size": 256,
        "num_iterations": 64,
        "dtype": "bfloat16",
        "parameters_per_chip": 48_000_000,
        "hbm_bytes": 1000 * MIB,
        "hbm_bandwidth": 1000.0 * MIB,
        "peak_flops": 100e12,
        "flops_per_chip": 1e12,
        "compile_seconds": 60.0,
        "fits": True,
        "memory": {
            "arguments": 2 * MIB,
            "outputs": 1 * MIB,
            "temporaries": 1 * MIB,
            "peak": 500 * MIB,
        },
        "collectives": [
            {
                "kind": "all-gather",
                "axes": ["fsdp"],
                "sent_bytes": 3.0 * MIB,
                "executions": 24,
                "is_exact": True,
                "seconds": 15e-3,
            },
            {
                "kind": "all-reduce",
                "axes": ["data", "fsdp"],
                "sent_bytes": 1.0 * MIB,
                "executions": 2,
                "is_exact": False,
                "seconds": 5e-3,
            },
        ],
        "jax": "0.10.2",
        "libtpu": "0.0.42",
        "effort": "low",
    }
    return values | changes


NOT_FITTING = {"fits": False, "collectives": None, "memory": {"peak": 2000 * MIB}}


def test_paper_times_are_each_resource_alone():
    times = scaling_tables.paper_times(report())
    assert times is not None
    assert times == pytest.approx((10e-3, 5e-3, 20e-3))
    assert times.largest == "links"
    assert times.overlapped == pytest.approx(20e-3)
    assert times.in_turn == pytest.approx(35e-3)
    # 16 clips a chip compute half as long as the links take.
    assert scaling_tables.clips_to_hide_links(report()) == pytest.approx(32)


def test_what_is_not_known_is_not_estimated():
    assert scaling_tables.paper_times(report(**NOT_FITTING)) is None
    unknown = [{**report()["collectives"][0], "seconds": None}]
    assert scaling_tables.paper_times(report(collectives=unknown)) is None
    assert scaling_tables.clips_to_hide_links(report(mesh=(4, 2, 2))) is None
    assert scaling_tables.clips_to_hide_links(report(program="sampler")) is None


def test_tables_show_what_was_found():
    reports = [report(), report(mesh=(16, 1, 1), **NOT_FITTING)]
    needs = scaling_tables.needs_table(reports, "train").splitlines()
    assert "all-gather fsdp 3.0 (24); all-reduce data x fsdp 1.0 (2 x unknown)" in needs[2]
    assert "50%" in needs[2]
    assert "200% NO" in needs[3]
    assert needs[3].endswith("?")
    paper = scaling_tables.paper_table(reports, "train").splitlines()
    assert len(paper) == 3
    assert paper[2].split()[-4:] == ["links", "12,800", "7,314", "32.0"]
    sentence, refusal = scaling_tables.conclusions(reports)
    assert "fastest on paper is 4 x 4 x 1, limited by links" in sentence
    assert "operations are 29%" in sentence
    assert "does not fit as 16 x 1 x 1: it would take 200% of the memory" in refusal


# ---------------------------------------------------------------------------------------- page


def test_only_what_stands_between_the_markers_is_replaced():
    page = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n"
    once = scaling_tables.replace_between(page, "a", "new")
    assert once == "before\n<!-- a -->\nnew\n<!-- end of a -->\nafter\n"
    assert scaling_tables.replace_between(once, "a", "new") == once
    for wrong in ("", "<!-- a -->", "<!-- end of a --> <!-- a -->", page + page):
        with pytest.raises(ValueError, match="once each"):
            scaling_tables.replace_between(wrong, "a", "new")


def test_the_page_has_a_place_for_every_table(tmp_path):
    page = tmp_path / "scaling.md"
    page.write_text((REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8"))
    results = {
        "machine": {
            "platform": "cpu",
            "processor": "a processor",
            "usable_cores": 2,
            "num_devices": 1,
            "jax": "0",
            "jaxlib": "0",
            "python": "3",
        },
        "what": "tiny:student",
        "rows": [],
    }
    parts = scaling_tables.aot_parts([report(), report(program="sampler")])
    scaling_tables.write_page(page, parts | scaling.study_parts(results))
    written = page.read_text()
    for content in parts.values():
        assert content in written
    assert "a processor, 2 usable cores" in written
