"""The ablation sweep: every row once, nothing computed twice, a killed sweep goes on."""

import dataclasses
import json
import pathlib
import types

import jax
import pytest

from benchmarks import sweep, sweep_plan
from benchmarks.sweep_plan import STUDENT, TEACHER, plan, shortened
from benchmarks.sweep_table import to_markdown
from configs import demo_student, demo_teacher
from fasttta_jax.config import RunConfig, from_config_dict
from fasttta_jax.evaluation.evaluator import Evaluator
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.systems import build_model
from fasttta_jax.training.optimizer import make_optimizer
from fasttta_jax.training.state import new_state, to_items
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import Workdir
from tests.support import helpers

VARIANTS = len(demo_student.VARIANTS)


@pytest.fixture(scope="module")
def teacher() -> RunConfig:
    return from_config_dict(demo_teacher.get_config())


@pytest.fixture(scope="module")
def students() -> dict[str, RunConfig]:
    return sweep.student_configs("teachers/one", "some/data", None)


def test_students_are_the_demo_variants_on_the_given_data_and_teacher(students):
    assert next(iter(students)) == STUDENT
    assert len(students) == VARIANTS
    for name, config in students.items():
        assert config.init_from == ("" if name == "from_scratch" else "teachers/one")
        assert config.data.path == "some/data"
        assert config.num_steps == 500


def test_the_plan_names_every_row_once_and_evaluates_equal_ones_once(teacher, students):
    rows = plan(teacher, students)
    by_name = {row.name: row.setting for row in rows}
    assert len(by_name) == len(rows) == 1 + VARIANTS + 2 * 5 + 2 * 6 + 4
    student = by_name[STUDENT]
    for same in ("lambda_1", "draws_2", "student_guidance_4.5", "student_iterations_8"):
        assert by_name[same] == student
    for same in ("teacher_guidance_4.5", "teacher_iterations_8", "teacher_diffusion_100"):
        assert by_name[same] == by_name[TEACHER]
    distinct = {row.setting for row in rows}
    assert len({setting.name for setting in distinct}) == len(distinct) == len(rows) - 7
    assert {setting.run for setting in distinct} == set(students) - {"lambda_1", "draws_2"} | {
        TEACHER
    }
    assert by_name["teacher_guidance_1"].decode.guidance_scale == 1
    assert by_name["teacher_guidance_1"].decode.num_iterations == teacher.decode.num_iterations
    assert by_name["teacher_diffusion_25"].sampling_steps == 25
    assert student.sampling_steps is None


@pytest.mark.parametrize(("tokens", "last"), [(32, 32), (48, 32), (64, 64), (256, 256)])
def test_iterations_are_the_powers_of_two_up_to_the_tokens(teacher, students, tokens, last):
    model = dataclasses.replace(teacher.model, num_tokens=tokens)
    rows = plan(dataclasses.replace(teacher, model=model), students, "student_iterations")
    numbers = [row.setting.decode.num_iterations for row in rows]
    assert numbers == [2**power for power in range(len(numbers))]
    assert numbers[-1] == last


def test_only_chooses_rows_or_says_what_there_is(teacher, students):
    names = [row.name for row in plan(teacher, students, "lambda|^ear$")]
    assert names == ["lambda_0", "lambda_1", "lambda_10", "lambda_100", "lambda_1000", "ear"]
    with pytest.raises(ValueError, match=r"--only='xyz' finds none of the rows: teacher, student,"):
        plan(teacher, students, "xyz")
    with pytest.raises(ValueError, match=r"--only='\(' is no regular expression"):
        plan(teacher, students, "(")


def test_diffusion_steps_stop_at_the_schedule(teacher, students):
    diffusion = dataclasses.replace(teacher.diffusion, num_steps=40, sampling_steps=30)
    rows = plan(dataclasses.replace(teacher, diffusion=diffusion), students, "diffusion")
    assert [row.setting.sampling_steps for row in rows] == [10, 25]


@pytest.mark.parametrize("num_steps", [2, 3, 10, 499, 1000])
def test_shorter_runs_keep_the_shape_of_their_schedule(students, num_steps):
    for config in students.values():
        short = shortened(config, num_steps)
        assert short.num_steps == num_steps
        assert short.optimizer.warmup_steps == num_steps // 10
        assert short.optimizer.decay_steps == num_steps // 2
        assert num_steps / 2 <= short.evaluate_every <= num_steps / 2 + 1


def write_run(workdir: pathlib.Path, config: RunConfig, step: int) -> None:
    """A run with a checkpoint of small random parameters."""
    folder = Workdir(workdir)
    folder.prepare(config, EncodedDataset(config.data.path))
    model = build_model(config, folder.text())
    params = helpers.random_params(jax.eval_shape(model.init, jax.random.key(0)), scale=0.02)
    state = new_state(make_optimizer(config.optimizer, config.num_steps), params)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(step, to_items(state), {"loss": 1.0})
    checkpoints.close()


class FakeTrainer:
    """Takes two seconds a step by its own clock and leaves a checkpoint of the last one."""

    clock = 0.0

    def __init__(self, config: RunConfig, workdir: pathlib.Path) -> None:
        self.config, self.workdir = config, workdir
        checkpoints = Checkpoints(workdir)
        self.first_step = max(checkpoints.steps(), default=0)
        checkpoints.close()

    def run(self) -> None:
        if self.first_step < self.config.num_steps:
            write_run(self.workdir, self.config, self.config.num_steps)
            FakeTrainer.clock += 2.0 * (self.config.num_steps - self.first_step)


@pytest.fixture(scope="module")
def world(labelled_dataset, tmp_path_factory):
    """Audio, its tokens, and an untrained teacher."""
    root = tmp_path_factory.mktemp("sweep")
    for name in ("audio", "encoded"):
        (root / name).symlink_to(labelled_dataset / name)
    write_run(root / "teacher", helpers.tiny_teacher_config(root / "encoded"), step=6)
    return root


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the runs that a trainer was asked for; it only pretends to train."""
    names = []

    def trainer(config, workdir):
        names.append(workdir.name)
        return FakeTrainer(config, workdir)

    monkeypatch.setattr(sweep, "Trainer", trainer)
    clock = types.SimpleNamespace(perf_counter=lambda: FakeTrainer.clock)
    monkeypatch.setattr(sweep, "time", clock)
    return names


def seconds_of(workdir: pathlib.Path) -> float:
    return json.loads((workdir / sweep.RECORD_FILE).read_text())["seconds"]


def test_a_complete_run_is_not_trained_again(world, trained, tmp_path):
    config = helpers.tiny_student_config(world / "encoded", world / "teacher")
    for _ in range(2):
        sweep.train(config, tmp_path / "run", "a")
        assert trained == ["run"]
    assert seconds_of(tmp_path / "run") == 2 * config.num_steps
    sweep.train(config, tmp_path / "run", "b")
    assert trained == ["run", "run"], "the trainer knows whether another teacher matters"
    assert seconds_of(tmp_path / "run") == 2 * config.num_steps


def test_an_interrupted_run_took_its_last_part_in_proportion(world, trained, tmp_path):
    config = helpers.tiny_student_config(world / "encoded", world / "teacher")
    write_run(tmp_path / "run", config, step=4)
    start = FakeTrainer.clock
    sweep.train(config, tmp_path / "run", "a")
    assert FakeTrainer.clock - start == 4
    assert seconds_of(tmp_path / "run") == pytest.approx(12)


@pytest.mark.slow
def test_a_sweep_writes_its_table_and_evaluates_nothing_twice(world, trained, monkeypatch):
    student = helpers.tiny_student_config(world / "encoded", world / "teacher")
    students = {STUDENT: student, "lambda_1": student, "lambda_10": student}
    students["lambda_10"] = dataclasses.replace(student, seed=1)
    monkeypatch.setattr(sweep, "student_configs", lambda *_: students)
    monkeypatch.setattr(sweep_plan, "GUIDANCE_SCALES", (student.decode.guidance_scale,))
    config = EvaluationConfig(
        {TEACHER: "unused"},
        str(world / "audio"),
        str(world / "encoded"),
        str(world / "out"),
        num_energy_clips=8,
        tagger_steps=10,
    )
    only = "^student$|^lambda_1$|^student_guidance"
    found = sweep.sweep(config, str(world / "teacher"), only=only)
    assert trained == [STUDENT]
    written = json.loads((world / "out" / sweep.RESULT_FILE).read_text())
    assert written == json.loads(json.dumps(found)), "tuples are lists"
    first, *others = found["rows"]
    assert [row["name"] for row in others] == ["lambda_1", "student_guidance_2"]
    for row in others:
        assert {**row, "name": 0, "group": 0} == {**first, "name": 0, "group": 0}
    assert first["steps"] == student.num_steps
    assert first["training_seconds"] == 12
    assert first["figures"]["energy"]["num_clips"] == 8
    assert set(found["references"]) == {"real", "codec"}
    page = (world / "out" / sweep.TABLE_FILE).read_text()
    assert page == to_markdown(found)

    for stage in ("sounds", "energy", "references"):
        monkeypatch.setattr(Evaluator, stage, lambda *_: pytest.fail("evaluated twice"))
    again = sweep.sweep(config, str(world / "teacher"), only=only)
    assert trained == [STUDENT]
    for row, before in zip(again["rows"], found["rows"], strict=True):
        assert row["figures"] == before["figures"]
        assert row["sampling"] != before["sampling"], "times are those of this process"


def test_the_table_has_a_line_for_every_row():
    sampling = {"median_ms": 12.3456, "batch_size": 8, "first_call_seconds": 4.04}
    figures = {
        "event_accuracy": 0.5,
        "event_accuracy_standard_error": 0.05,
        "attribute_accuracy": 1.0,
        "attribute_accuracy_standard_error": 0.0,
        "recall_at_k": None,
        "frechet": None,
    }
    energy = {"energy_score": 8.0}
    row = {"group": "A", "name": "x", "steps": 500, "training_seconds": None, "sampling": sampling}
    row["figures"] = {**figures, **energy}
    titles = {
        "event_accuracy": "event accuracy",
        "attribute_accuracy": "attribute accuracy",
        "recall_at_k": "scene recall@k",
        "frechet": "Fréchet (tagger)",
        "energy_score": "energy score",
        "sampling_ms": "sampling, ms",
    }
    results = {
        "quantities": [{"name": name, "title": title} for name, title in titles.items()],
        "references": {"real": figures},
        "rows": [row, {**row, "group": "B", "name": "y", "training_seconds": 99.6}],
        "warnings": ["Mind this."],
        "settings": {
            "evaluation": {
                "num_clips": 4,
                "num_scenes": 0,
                "num_energy_clips": 2,
                "seed": 0,
            },
            "environment": {"devices": "1 x cpu", "machine": "Linux", "jax": "1"},
        },
    }
    page = to_markdown(results)
    lines = page.splitlines()
    assert "| `x` | 500 | – | 0.50 ± 0.05 | 1.000 | – | – | 8.00 | 12.3 | 4.0 |" in lines
    assert "| `y` | 500 | 100 | 0.50 ± 0.05 | 1.000 | – | – | 8.00 | 12.3 | 4.0 |" in lines
    assert [line for line in lines if line.startswith("## ")] == ["## References", "## A", "## B"]
    head = ["variant", "steps", "training, s", *titles.values(), "first call, s"]
    assert lines.count(f"| {' | '.join(head)} |") == 3
    assert all(line.count("|") == len(head) + 1 for line in lines if line.startswith("|"))
    assert lines[-1] == "- Mind this."
