"""The comparison of rivals: plan, rule of guidance, refusals; and nothing is done twice."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
from absl import flags

from benchmarks import (
    frontier_grid,
    rivals,
    rivals_judging,
    rivals_plan,
    rivals_run,
    rivals_training,
)
from benchmarks.rivals_judging import lowest
from benchmarks.rivals_plan import (
    OURS,
    RIVALS,
    SAME_SECONDS,
    SAME_STEPS,
    TEACHER,
    Options,
    RivalsError,
    candidates,
)
from benchmarks.rivals_table import to_markdown
from benchmarks.sweep_plan import shortened
from configs import demo_rivals, demo_student, demo_teacher
from fasttta_jax.config import from_config_dict
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.workdir.folder import Workdir
from tests.benchmarks.test_sweep import write_run
from tests.support import helpers

DEMO = {TEACHER: demo_teacher, OURS: demo_student}


class DemoWorkdir:
    """Stands in for the demo's runs."""

    def __init__(self, path):
        self.path = path

    def config(self):
        return from_config_dict(DEMO[str(self.path)].get_config())


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals_plan, "Workdir", DemoWorkdir)
    runs = {name: name for name in DEMO}
    return Options(EvaluationConfig(runs, "audio", "encoded", str(tmp_path)))


# ----------------------------------------------------------------------------------------- plan


def test_all_runs_share_data_seed_and_teachers_and_have_their_steps(options):
    impact, flow = rivals_plan.teachers(options)
    assert impact.is_given
    assert flow.config.num_steps == impact.config.num_steps == 1000
    found = rivals_plan.trained(SAME_STEPS, dict.fromkeys((OURS, *RIVALS), 500), options)
    assert [run.system for run in found] == [OURS, *RIVALS]
    for run in found:
        assert run.config.num_steps == 500
        assert run.is_given == (run.system == OURS)
        if run.is_given:
            continue
        is_head = run.system.endswith("_head")
        assert run.config.init_from == (TEACHER if is_head else str(options.out / "flow"))
        pairs = run.system == "reflow"
        assert run.config.data.path == (str(options.out / "pairs") if pairs else "encoded")
        assert rivals_plan._sizes(run.config) == rivals_plan._sizes(impact.config)
    for setting, steps in ((SAME_STEPS, 400), (SAME_SECONDS, 500)):
        ours = rivals_plan.trained(setting, dict.fromkeys((OURS, *RIVALS), steps), options)[0]
        assert not ours.is_given
        assert ours.config.num_steps == steps
        assert ours.config.optimizer.decay_steps == steps // 2


def test_only_heads_need_no_flow(options):
    only = dataclasses.replace(options, rivals=("meanflow_head",))
    assert [run.system for run in rivals_plan.teachers(only)] == [TEACHER]


def test_settings_take_just_the_passes_and_the_guidance_that_is_allowed(options):
    runs = rivals_plan.trained(SAME_STEPS, dict.fromkeys((OURS, *RIVALS), 500), options)
    for run in (*runs, rivals_plan.teachers(options)[1]):
        for number in (1, 2, 4, 8):
            found, reasons = candidates(run, number, options.scales)
            assert found
            assert len(found) + len(reasons) == len(options.scales)
            for setting in found:
                assert rivals_judging.passes_of(run, setting) == number
            if frontier_grid.num_passes(run.config) and run.config.flow.tells_guidance:
                low, high = run.config.flow.guidance_low, run.config.flow.guidance_high
                assert all(low <= one.decode.guidance_scale <= high for one in found)
            elif number == 1:
                assert [one.decode.guidance_scale for one in found] == [1.0], run.system
    by_name = {run.system: run for run in runs}
    for system, number, reason in (
        ("shortcut", 3, "a divisor of flow.grid_steps = 8"),
        ("consistency", 16, "from 1 to flow.grid_steps = 8"),
        (OURS, 64, "from 1 to model.num_tokens = 32"),
    ):
        found, reasons = candidates(by_name[system], number, (1.0,) if number != 16 else (3.0,))
        assert not found
        assert reason in rivals_plan.why_not(reasons)


# ------------------------------------------------------------------------------------- training


def test_steps_are_timed_once_and_seconds_become_steps(options, monkeypatch):
    timed = []

    def time_step(config):
        timed.append(config.objective)
        return {"seconds": 0.1 * len(timed), "memory_bytes": 2**20, "machine": {}}

    monkeypatch.setattr(rivals_training, "time_step", time_step)
    options = dataclasses.replace(
        options, rivals=("meanflow", "shortcut"), seconds=10.0, given_steps={"shortcut": 7}
    )
    costs = rivals_training.step_costs(options)
    assert timed == ["diffusion", "flow", "energy", "meanflow", "shortcut"]
    assert rivals_training.step_costs(options) == costs
    assert len(timed) == 5
    steps = rivals_training.steps_of(SAME_SECONDS, costs, options)
    assert steps == {OURS: 33, "meanflow": 25, "shortcut": 7}
    assert set(rivals_training.steps_of(SAME_STEPS, costs, options).values()) == {500}


def test_what_is_given_is_not_trained_and_pairs_come_before_reflow(options, monkeypatch):
    done = []
    monkeypatch.setattr(rivals_training, "make_pairs", lambda _: done.append("pairs"))
    monkeypatch.setattr(rivals_training, "train", lambda _, workdir, sha: done.append(workdir.name))
    origin = type("Trained", (), {"origin": lambda _: {"sha256": "a"}})
    monkeypatch.setattr(rivals_training, "load_trained", lambda *_: origin())
    options = dataclasses.replace(options, rivals=("reflow", "shortcut_head"))
    systems = (TEACHER, "flow", OURS, *options.rivals)
    costs = {name: {"seconds": 1.0} for name in systems}
    runs = rivals_training.plan_runs(costs, options)
    rivals_training.train_runs(runs, costs, options)
    one = ["pairs", "reflow", "shortcut_head"]
    assert done == ["flow", *one, OURS, *one]
    row = rivals_training.training_row(runs[-1], {"seconds": 0.5, "memory_bytes": 1}, None)
    assert row["starts_from"] == TEACHER
    assert row["tflop"] == pytest.approx(row["step_gflop"] * row["steps"] / 1e3)


# ------------------------------------------------------------------------------------- guidance


def test_the_lowest_distance_wins_and_the_lower_scale_where_two_are_equal():
    assert lowest({1.0: 3.0, 2.0: 2.0, 3.0: 2.5}) == 2.0
    assert lowest({4.5: 2.0, 3.0: 2.0, 1.0: 2.1}) == 3.0


def test_guidance_is_chosen_on_validation_clips_and_recorded(options, monkeypatch):
    asked = []

    class Judge:
        def __init__(self, config, settings, metrics, with_energy):
            assert config.split == "validation"
            assert len(settings) == len({one.name for one in settings})
            self.settings = settings

        def row(self, setting):
            assert setting in self.settings
            asked.append(setting)
            scale, iterations = setting.decode.guidance_scale, setting.decode.num_iterations
            cheap = iterations < 8 or (setting.sampling_steps or 100) < 20
            value = 10 + abs(scale - 3) + (1.0 if cheap and setting.sampling_steps else 0.0)
            return {"frechet": value, "frechet_standard_error": 0.5}

    monkeypatch.setattr(rivals_judging, "SettingEvaluator", Judge)
    options = dataclasses.replace(options, rivals=("trajectory", "shortcut"))
    impact, *others = rivals_plan.teachers(options)
    others += rivals_plan.trained(SAME_STEPS, {OURS: 500, "trajectory": 5, "shortcut": 5}, options)
    tuning = dataclasses.replace(options.evaluation, split="validation")
    found = rivals_judging.choose(others, tuning, (1, 3), options.scales, impact)
    rows = {(row.run.system, row.passes): row.setting for row in found.rows[2:]}
    assert rows["trajectory", 1].decode.guidance_scale == 3.0
    assert rows[OURS, 1].decode.guidance_scale == 1.0
    assert ("shortcut", 3) not in rows
    assert [(one["run"], one["passes"]) for one in found.left_out] == [("same_steps_shortcut", 3)]
    full, cheap = found.rows[:2]
    assert (full.setting.decode.num_iterations, full.setting.sampling_steps) == (32, 100)
    assert (cheap.setting.decode.num_iterations, cheap.setting.sampling_steps) == (8, 20)
    assert all(row.setting.decode.guidance_scale == 3.0 for row in (full, cheap))
    tuned = {(one["run"], one["passes"]): one for one in found.tuned}
    assert tuned["same_steps_trajectory", 1]["frechet"] == {"2": 11.0, "3": 10.0, "4.5": 11.5}
    assert ("same_steps_student", 1) not in tuned, "there was nothing to choose"


# -------------------------------------------------------------------------------------- refused


@pytest.fixture
def values():
    found = flags.FlagValues()
    rivals._define_flags(found)
    return found


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--systems=meanflow,ddpm", "--systems names 'ddpm'; allowed: consistency, "),
        ("--systems=", "--systems names nothing"),
        ("--settings=same_size", "--settings names 'same_size'; allowed: same_steps, "),
        ("--given_steps=meanflow", "--given_steps is 'meanflow'; allowed: NAME=STEPS"),
        ("--given_steps=flow=9", "--given_steps names 'flow'"),
        ("--given_steps=meanflow=1", "1 training steps are asked for; allowed: 2 or more"),
        ("--passes=1,0", "--passes holds '0'; allowed: whole numbers above 0"),
        ("--scales=1,x", "--scales is '1,x'; allowed: numbers"),
        ("--scales=-1", "--scales is "),
        ("--seconds=0", "--seconds is 0; allowed: above 0"),
    ],
)
def test_flags_are_refused_with_the_reason(values, flag, message):
    with pytest.raises(ValueError, match=message):
        rivals.options_of(_parsed(values, flag))


def _parsed(values, *arguments):
    values(["rivals", *arguments])
    return values


def test_flags_become_options(values):
    found = rivals.options_of(
        _parsed(values, "--settings=same_seconds,same_steps", "--given_steps=reflow=9", "--notimes")
    )
    assert found.settings == (SAME_STEPS, SAME_SECONDS)
    assert (found.rivals, found.given_steps, found.times) == (RIVALS, {"reflow": 9}, False)
    assert found.evaluation.runs == {TEACHER: "runs/demo/teacher", OURS: "runs/demo/student"}


def test_a_folder_keeps_the_settings_that_it_began_with(options):
    wanted = {"num_steps": 500, "seed": 0}
    for _ in range(2):
        rivals_training.check_folder(options, wanted, "settings.json")
    with pytest.raises(RivalsError, match="num_steps is 500 there and 400 here"):
        rivals_training.check_folder(options, wanted | {"num_steps": 400}, "settings.json")


@pytest.fixture(scope="module")
def world(labelled_dataset, tmp_path_factory):
    """Audio, its tokens, and workdirs of a teacher and a student without parameters."""
    root = tmp_path_factory.mktemp("rivals")
    for name in ("audio", "encoded"):
        (root / name).symlink_to(labelled_dataset / name)
    for name, config in configs_in(root).items():
        Workdir(root / name).prepare(config, EncodedDataset(root / "encoded"))
    return root


def configs_in(root: pathlib.Path):
    encoded = root / "encoded"
    student = helpers.tiny_student_config(encoded, root / TEACHER)
    return {TEACHER: helpers.tiny_teacher_config(encoded), OURS: student}


def tiny(world: pathlib.Path, out: pathlib.Path, **changes) -> Options:
    config = EvaluationConfig(
        {name: str(world / name) for name in (TEACHER, OURS)},
        str(world / "audio"),
        str(world / "encoded"),
        str(out),
        num_clips=12,
        num_scenes=4,
        tagger_steps=10,
    )
    settings = {"num_steps": 6, "teacher_steps": 6, "tuning_clips": 6, "scales": (1.0, 2.0)}
    return Options(config, **(settings | changes))


def test_runs_that_do_not_fit_are_refused_before_anything_runs(world, encoded_dataset, tmp_path):
    options = tiny(world, tmp_path / "out")
    with pytest.raises(RivalsError, match=r"consistency has model\.num_tokens = 32; allowed: 8, "):
        rivals_run.compare(options)
    swapped = dataclasses.replace(
        options.evaluation, runs={TEACHER: str(world / OURS), OURS: str(world / TEACHER)}
    )
    with pytest.raises(RivalsError, match="is a run of objective 'energy'; allowed: one of 'diff"):
        rivals_run.compare(dataclasses.replace(options, evaluation=swapped))
    other = dataclasses.replace(options.evaluation, encoded_data=str(encoded_dataset))
    with pytest.raises(RivalsError, match="was trained on other data than"):
        rivals_run.compare(dataclasses.replace(options, evaluation=other))
    missing = dataclasses.replace(options.evaluation, runs={TEACHER: "nowhere", OURS: "nowhere"})
    with pytest.raises(ValueError, match="holds no run"):
        rivals_run.compare(dataclasses.replace(options, evaluation=missing))
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- all of it


def tiny_rival(name: str, num_steps: int):
    """A rival of the size of the tests' models."""
    run, small = RIVAL(name, num_steps), helpers.tiny_teacher_config("")
    backbone = small.model.backbone
    if run.model.network == "latent":
        backbone = dataclasses.replace(backbone, encoder_depth=0, decoder_depth=2)
    model = dataclasses.replace(small.model, network=run.model.network, backbone=backbone)
    return dataclasses.replace(
        shortened(run, num_steps), model=model, data=small.data, energy=small.energy, log_every=2
    )


RIVAL = demo_rivals.rival


@pytest.mark.long
def test_a_comparison_trains_tunes_judges_and_does_nothing_twice(world, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_rivals, "rival", tiny_rival)
    monkeypatch.setattr(frontier_grid, "ITERATIONS", (4,))
    monkeypatch.setattr(frontier_grid, "STEPS", (4, 2))
    for name, config in configs_in(world).items():
        write_run(world / name, config, step=config.num_steps)
    options = tiny(
        world,
        tmp_path / "out",
        rivals=("reflow", "shortcut_head"),
        settings=(SAME_STEPS, SAME_SECONDS),
        given_steps={OURS: 4, "reflow": 5, "shortcut_head": 3},
        passes=(1, 2),
        num_pairs=16,
        pair_steps=2,
    )
    found = rivals_run.compare(options)
    rows = {(row["setting"], row["system"], row["passes"]): row for row in found["rows"]}
    for setting in (SAME_STEPS, SAME_SECONDS):
        for system in (OURS, "reflow", "shortcut_head"):
            for number in (1, 2):
                one = rows[setting, system, number]
                assert one["figures"]["event_accuracy"] is not None
                assert one["seconds"] > 0
                assert bool(one["differences"]) == (system != OURS)
    assert {(row["setting"], row["system"]): row["steps"] for row in found["training"]} == {
        ("teachers", TEACHER): 6,
        ("teachers", "flow"): 6,
        (SAME_STEPS, OURS): 6,
        (SAME_STEPS, "reflow"): 6,
        (SAME_STEPS, "shortcut_head"): 6,
        (SAME_SECONDS, OURS): 4,
        (SAME_SECONDS, "reflow"): 5,
        (SAME_SECONDS, "shortcut_head"): 3,
    }
    out = options.out
    assert (out / "rivals.md").read_text() == to_markdown(found)
    assert json.loads((out / "rivals.json").read_text())["rows"][0]["system"] == TEACHER

    monkeypatch.setattr("benchmarks.sweep.Trainer", lambda *_: pytest.fail("trained twice"))
    monkeypatch.setattr(rivals_training, "time_step", lambda _: pytest.fail("timed twice"))
    monkeypatch.setattr(
        "benchmarks.settings.Evaluator.sounds", lambda *_: pytest.fail("judged twice")
    )
    assert rivals_run.compare(options)["rows"] == json.loads(json.dumps(found["rows"]))
