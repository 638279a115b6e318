"""Both benchmarks run end to end, and what they compare computes the same."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import measure, sampler, train_step
from fasttta_jax.config import ConfigError, DistillationConfig, MeshConfig, RunConfig
from fasttta_jax.parallel.compile import Program
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.performance.flops import sampling_flops, training_step_flops
from fasttta_jax.performance.timing import Timing
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from tests.decoding.test_models import decode_rounding
from tests.support import helpers
from tests.support.tolerance import assert_close

OBJECTIVES = ("diffusion", "energy")
DECODES: tuple[sampler.Decode, ...] = ("segments", "full_length", "host_loop")
SECONDS = 0.64
BATCH_SIZE, TRAIN_SIZE = 2, 4
EPSILON = float(np.finfo(np.float32).eps)


def run_config(objective: str) -> RunConfig:
    """The teacher decodes in one segment; the student in two, the first without guidance."""
    if objective == "guided":
        return helpers.tiny_guided_config("unused", "unused")
    run = helpers.tiny_teacher_config("unused", objective=objective)
    changes = {"max_segments": 1}
    if objective == "energy":
        changes = {"max_segments": 2, "order": "bisection", "guided": (0.0, 0.7)}
    weight = 10.0 if objective == "energy" else 0.0
    return dataclasses.replace(
        run,
        distillation=DistillationConfig(weight=weight),
        data=dataclasses.replace(run.data, batch_size=TRAIN_SIZE),
        decode=run.decode.changed(**changes),
    )


# ----------------------------------------------------------------------------------- measuring


def test_a_program_compiles_once_and_knows_its_memory():
    traces = []

    def double(x):
        traces.append(1)
        return 2 * x

    program = Program(jax.jit(double))
    x = np.ones((64, 64), np.float32)
    for _ in range(3):
        compiled = program.compile(x)
        np.testing.assert_array_equal(compiled(x), 2 * x)
    assert len(traces) == 1
    assert compiled.report.seconds > 0
    assert compiled.report.total_bytes >= 2 * x.nbytes  # argument and result
    with pytest.raises(TypeError):
        compiled(x[:1])


def test_median_and_percentiles():
    timing = Timing(1.0, tuple(float(second) for second in range(1, 12)))
    assert (timing.low, timing.median, timing.high) == (2.0, 6.0, 10.0)


def test_configs_are_read_by_name_with_their_argument():
    run = measure.load_run_config("configs/tiny.py:student", "bfloat16")
    assert (run.objective, run.model.dtype) == ("energy", "bfloat16")
    assert measure.model_label("configs/tiny.py:student") == "tiny:student"
    with pytest.raises(ConfigError, match=r"'configs/nothing.py'; allowed: a file"):
        measure.load_run_config("configs/nothing.py")


def test_what_the_flags_say_is_checked():
    assert measure.positive_integers("batch_sizes", ["1", "8"]) == [1, 8]
    for wrong in ("0", "-1", "x", ""):
        with pytest.raises(ValueError, match="--batch_sizes holds"):
            measure.positive_integers("batch_sizes", [wrong])
    assert measure.clip_seconds(256, None) == 10.24
    assert measure.clip_seconds(8, SECONDS) == SECONDS
    with pytest.raises(ValueError, match="--seconds is missing"):
        measure.clip_seconds(8, None)


# ------------------------------------------------------------------------------------- sampling


def model_of(objective: str) -> sampler.Model:
    return sampler.Model(objective, run_config(objective), SECONDS)


def large_params(objective: str, seed: int = 0):
    """Values that let every part of the model count."""
    run = run_config(objective)
    model = build_model(run, abstract_text_encoder(run.model.text))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return helpers.random_params(shapes, seed, scale=0.2)


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str], sampler.Case]:
    return {
        (objective, decode): sampler.Case(
            model_of(objective), decode, BATCH_SIZE, large_params(objective)
        )
        for objective in OBJECTIVES
        for decode in DECODES
    }


@pytest.fixture(scope="module")
def sampling(cases) -> list[sampler.Row]:
    return sampler.benchmark(list(cases.values()), 3)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("decode", ["full_length", "host_loop"])
def test_all_decoders_make_the_same_tokens(cases, objective, decode):
    tokens = np.asarray(cases[objective, "segments"]())
    assert tokens.shape == (BATCH_SIZE, helpers.NUM_TOKENS, helpers.TOKEN_DIM)
    assert len(np.unique(tokens)) == tokens.size
    bound = decode_rounding(objective, run_config(objective).decode)
    assert_close(cases[objective, decode](), tokens, bound)


def test_a_student_that_guides_itself_takes_one_pass_however_it_is_driven():
    params = large_params("guided")
    segments, *others = (
        sampler.Case(model_of("guided"), decode, BATCH_SIZE, params)() for decode in DECODES
    )
    bound = decode_rounding("energy", run_config("guided").decode)
    for tokens in others:
        assert_close(tokens, np.asarray(segments), bound)


def test_cases_are_all_combinations():
    built = sampler.build_cases(
        [model_of("energy")], batch_sizes=[1, 2], num_iterations=[2, 3], decodes=DECODES
    )
    names = [case.name for case in built]
    sizes = [f"{size} x {times}" for size in (1, 2) for times in (2, 3)]
    assert sorted(names) == sorted(f"energy {way} {size}" for way in DECODES for size in sizes)
    (config_s,) = sampler.build_cases(
        [model_of("energy")], batch_sizes=[1], num_iterations=[], decodes=["segments"]
    )
    assert config_s.name == f"energy segments 1 x {run_config('energy').decode.num_iterations}"


def test_random_parameters_are_ordinary_numbers():
    params = measure.random_params(lambda key: {"a": jnp.zeros((50, 40)), "b": jnp.ones(3)})
    assert params["a"].shape == (50, 40)
    assert params["b"].dtype == jnp.float32
    values = np.abs(np.asarray(params["a"]))
    assert (
        0.5 * measure.PARAMETER_SCALE < values.std() + values.mean() < 2 * measure.PARAMETER_SCALE
    )
    assert values.min() > np.finfo(np.float32).tiny


def test_sampler_rows_hold_times_and_operations(sampling):
    rows = {(row.values["model"], row.values["decode"]): row.values for row in sampling}
    assert set(rows) == {(objective, decode) for objective in OBJECTIVES for decode in DECODES}
    for (objective, decode), row in rows.items():
        kind = "full_length" if decode == "full_length" else "segments"
        flops = sampling_flops(run_config(objective), kind)
        assert row["flops_per_clip"] == flops.total
        assert row["unpadded_flops_per_clip"] <= row["flops_per_clip"]
        assert 0 < row["p10_seconds"] <= row["median_seconds"] <= row["p90_seconds"]
        assert row["compile_seconds"] > 0
        assert row["memory_bytes"] > 0
        assert row["clips_per_second"] == BATCH_SIZE / row["median_seconds"]
        assert np.isclose(row["real_time_factor"], 1 / (row["clips_per_second"] * SECONDS))
        assert row["flops_per_second"] == BATCH_SIZE * flops.total / row["median_seconds"]


def test_sampler_comparisons_hold_what_is_allowed_beside_what_was_found(sampling):
    found = sampler.compare(sampling)
    pairs = {(pair["faster"].split()[0], *pair["than"].split()[:2]) for pair in found}
    expected = {(objective, objective, other) for objective in OBJECTIVES for other in DECODES[1:]}
    assert pairs == expected | {("energy", "diffusion", "segments")}
    assert len(found) == len(pairs)
    by_name = {row.name: row.values for row in sampling}
    for pair in found:
        ours, theirs = by_name[pair["faster"]], by_name[pair["than"]]
        assert pair["measured"] == theirs["median_seconds"] / ours["median_seconds"]
        assert pair["allowed"] == theirs["flops_per_clip"] / ours["flops_per_clip"]
        if theirs["decode"] == "host_loop":
            assert pair["allowed"] == 1.0
        else:
            assert pair["allowed"] > 1.0


def test_the_same_case_twice_is_refused(cases):
    case = cases["energy", "segments"]
    with pytest.raises(ValueError, match="more than once"):
        sampler.benchmark([case, case], 3)


def test_sampler_writes_what_it_prints(sampling, tmp_path, capsys):
    out = tmp_path / "new" / "sampler.json"
    comparisons = sampler.compare(sampling)
    values = {"rows": [row.values for row in sampling], "comparisons": comparisons}
    measure.finish(values, sampler.report(sampling, comparisons), str(out))
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["rows"] == values["rows"]
    assert written["comparisons"] == comparisons
    assert written["machine"]["jax"] == jax.__version__
    assert f"jax {jax.__version__}" in printed
    for row in written["rows"]:
        line = next(
            line
            for line in printed.splitlines()
            if line.split()[:2] == [row["model"], row["decode"]]
        )
        assert f"{1e3 * row['median_seconds']:.2f}" in line.split()
        assert f"{row['flops_per_clip'] / 1e9:.3f}" in line.split()


# ------------------------------------------------------------------------------------- training


@pytest.mark.long
@pytest.mark.slow
def test_train_step_runs_the_real_step_over_the_mesh(tmp_path, capsys):
    """The student's, which holds a teacher's forward pass as well."""
    run = run_config("energy")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    one = train_step.Training("energy", run, SECONDS, mesh)
    results = train_step.benchmark([one], repeats=3, split=True)
    assert int(one.state.step) == 2 * (1 + 3)  # two encoders, a warm and 3 timed calls
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one.state.params))
    rows = {row["encoder"]: row for row in results.rows}
    assert list(rows) == ["gathered", "full_length"]
    for encoder, row in rows.items():
        visible = run.model.num_tokens if encoder == "full_length" else None
        flops = training_step_flops(run, visible).total
        assert row["flops_per_clip"] == flops
        assert row["flops_per_second"] == TRAIN_SIZE * flops / row["median_seconds"]
        assert row["audio_seconds_per_second"] == TRAIN_SIZE * SECONDS / row["median_seconds"]
        assert row["compile_seconds"] > 0
        assert row["memory_bytes"] > 0
    (split,) = results.splits
    parts = sum(split[f"{part}_seconds"] for part in ("forward", "backward", "update"))
    assert np.isclose(parts, rows["gathered"]["median_seconds"])
    (pair,) = results.comparisons
    assert pair["allowed"] > 1

    out = tmp_path / "train_step.json"
    measure.finish(results._asdict(), train_step.report(results), str(out))
    written = json.loads(out.read_text())
    assert written["rows"] == results.rows
    printed = capsys.readouterr().out
    for row in results.rows:
        assert f"{1e3 * row['median_seconds']:.1f}" in printed.split()


def test_full_length_training_has_the_same_loss():
    """Student and frozen teacher; up to the order of sums of up to 128 terms, in four blocks."""
    run = run_config("energy")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = train_step.synthetic_batch(run, abstract_text_encoder(run.model.text), mesh)
    arguments = large_params("energy"), large_params("diffusion", 1), batch, jax.random.key(3)
    gathered, whole = (
        float(jax.jit(train_step.loss_of(train_step.step_context(run, encoder)))(*arguments))
        for encoder in ("gathered", "full_length")
    )
    assert abs(gathered - whole) <= 4 * 128 * EPSILON * abs(gathered)


def test_a_batch_that_the_mesh_cannot_split_is_refused():
    mesh = make_mesh(MeshConfig(), jax.devices()[:3])
    with pytest.raises(ConfigError, match=r"data\.batch_size is 4"):
        train_step.Training("energy", run_config("energy"), SECONDS, mesh)


def test_a_single_stack_has_nothing_to_gather():
    run = run_config("diffusion")
    backbone = dataclasses.replace(run.model.backbone, encoder_depth=0)
    single = dataclasses.replace(run, model=dataclasses.replace(run.model, backbone=backbone))
    assert train_step.encoders(run) == ("gathered", "full_length")
    assert train_step.encoders(single) == ("gathered",)


def test_accumulation_is_off_and_the_batch_may_be_set():
    run = measure.load_run_config("configs/tiny.py:teacher")
    assert run.optimizer.accumulation_steps > 1
    found = train_step.in_one_part(run, 6)
    assert (found.optimizer.accumulation_steps, found.data.batch_size) == (1, 6)
    assert train_step.in_one_part(run, None).data == run.data
