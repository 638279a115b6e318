"""The benchmark of an accelerator: what it measures, what a cut run keeps, and that it runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import accelerator, measure
from benchmarks.accelerator_parts import SIZES, Part, parts, programs
from benchmarks.accelerator_profile import instructions
from benchmarks.accelerator_table import to_markdown
from fasttta_jax.performance.flops import sampling_flops, strength_flops

BASE, TINY = SIZES["base"], SIZES["tiny"]


def test_there_are_ten_samplers_and_a_pass_less_is_half_the_backbone() -> None:
    samplers = programs(BASE, "bfloat16")
    found = {name: sampling_flops(one.run) for name, one in samplers.items()}
    assert len(found) == 10
    told = strength_flops(samplers["student 16 single"].run.model)
    for number in (16, 32):
        single, doubled = (
            found[f"student {number} {kind}"].backbone for kind in ("single", "doubled")
        )
        assert 2 * (single - number * told) == pytest.approx(doubled, rel=1e-12)
    assert found["student 32 single, half depth"].total < 0.5 * found["student 32 single"].total
    late = found["student 16 exponential, guided late"].total
    assert found["student 16 single"].total < 1.5 * late < 1.5 * found["student 16 doubled"].total
    assert all(one.run.model.dtype == "bfloat16" for one in samplers.values())


def test_parts_have_names_and_files_of_their_own() -> None:
    found = parts(BASE, "bfloat16")
    assert len(found) == 2 + 3 * 10 + 5 + 2
    folder = pathlib.Path("out")
    assert len({accelerator.part_path(folder, part) for part in found}) == len(found)


def never(seconds: float) -> dict[str, Any]:
    raise AssertionError(f"measured here, for {seconds} s")


NAMES = ("quick", "endless", "dies", "last")
WORKER = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
    if (folder / (name + ".json")).exists():
        continue
    if name == "dies":
        sys.exit(3)
    if name == "endless":
        time.sleep(600)
    scratch = folder / (name + ".part")
    scratch.write_text(json.dumps({"name": name, "kind": "training"}))
    scratch.rename(folder / (name + ".json"))
"""


def test_a_part_that_takes_too_long_or_dies_costs_no_other(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "MOST_SHARES", 0.2)
    folder = tmp_path / accelerator.PARTS_FOLDER
    folder.mkdir()
    wanted = [Part(name, "training", never) for name in NAMES]
    command = [sys.executable, "-S", "-c", WORKER, str(folder), *NAMES]
    accelerator.supervise(wanted, tmp_path, command, seconds=40)
    rows = {row["name"]: row for row in accelerator.collect(wanted, tmp_path)["rows"]}
    assert "failed" not in rows["quick"]
    assert rows["endless"]["failed"].startswith("stopped after ")
    assert rows["dies"]["failed"] == "its process ended with exit code 3"
    assert "failed" not in rows["last"]


def test_what_no_time_is_left_for_says_so(tmp_path: pathlib.Path) -> None:
    wanted = [Part("late", "training", never)]
    accelerator.supervise(wanted, tmp_path, ["no such command"], seconds=0)
    assert accelerator.collect(wanted, tmp_path)["rows"] == [
        {"name": "late", "kind": "training", "failed": "no time was left of 0 minutes"}
    ]


def test_a_part_that_fails_is_a_row_that_says_how(tmp_path: pathlib.Path) -> None:
    accelerator.measure_parts([Part("wrong", "sampler", never)], tmp_path)
    results = accelerator.collect([Part("wrong", "sampler", never)], tmp_path)
    reason = f"AssertionError: measured here, for {accelerator.CALL_SECONDS} s"
    assert results["rows"][0]["failed"] == reason
    assert f"* wrong: {reason}" in to_markdown(results)


HLO = """
ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %dot.3 = f32[2]{0} dot(%p, %p), metadata={op_name="jit(step)/jvp(MAR)/decoder_3/mlp_in/dot"}
  %f.1 = f32[2]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(s)/transpose(jvp(MAR))/norm/mul"}
  %w = (f32[2]{0}, s32[]) while(%t), condition=%c, body=%b, metadata={op_name="jit(s)/while"}
  ROOT %copy.2 = f32[2]{0} copy(%dot.3)
}
"""


def test_operations_are_named_by_the_part_of_the_model() -> None:
    assert instructions(HLO) == {
        "p": "parameter",
        "dot.3": "decoder/mlp_in/dot",
        "f.1": "backward norm/mul",
        "copy.2": "copy",
    }


def run_tiny(names: Sequence[str], out: pathlib.Path) -> dict[str, Any]:
    wanted = [part for part in parts(TINY, "float32") if part.name in names]
    accelerator.measure_parts(wanted, out)
    results = accelerator.collect(wanted, out)
    text = accelerator.write_results(results, out)
    assert json.loads((out / accelerator.RESULT_FILE).read_text()) == results
    assert (out / accelerator.TABLE_FILE).read_text() == text
    assert measure.describe_machine(results["machine"]) in text
    return {row["name"]: row for row in results["rows"]}


def check_rates(row: dict[str, Any], flops: float) -> None:
    assert "failed" not in row, row
    assert row["utilisation"] is None  # a CPU's peak rate is not known
    assert row["flops_per_second"] * row["median_seconds"] == pytest.approx(
        row["batch_size"] * flops
    )
    assert row["compile_seconds"] <= row["first_call_seconds"]


def test_samplers_the_front_end_and_a_profile_are_measured(tmp_path: pathlib.Path) -> None:
    """At tiny size, on this machine."""
    name = "student 16 single"
    batch_size = TINY.batch_sizes[-1]
    rows = run_tiny([f"{name} x {batch_size}", "clap_text", f"profile of {name} x 2"], tmp_path)
    run = programs(TINY, "float32")[name].run
    check_rates(rows[f"{name} x {batch_size}"], sampling_flops(run).total)
    assert rows["clap_text"]["clips_per_second"] > 0
    costs = rows[f"profile of {name} x 2"]["costs"]
    assert sum(cost["share"] for cost in costs) == pytest.approx(1)
    assert any("attention" in cost["part"] or "mlp" in cost["part"] for cost in costs)


@pytest.mark.long
def test_every_part_is_measured(tmp_path: pathlib.Path) -> None:
    """Training steps, all ten samplers, the front end and both profiles, at tiny size."""
    rows = run_tiny([part.name for part in parts(TINY, "float32")], tmp_path)
    assert not [row for row in rows.values() if "failed" in row]
    assert {row["kind"] for row in rows.values()} == {
        "training",
        "sampler",
        "front end",
        "profile",
    }


def test_programs_of_a_model_share_its_parameters() -> None:
    for one in programs(TINY, "float32").values():
        assert (
            dataclasses.replace(one.run, decode=one.model.decode, diffusion=one.model.diffusion)
            == one.model
        )
