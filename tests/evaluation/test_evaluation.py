"""eval.py goes from two untrained runs to figures, page and exit code, and refuses misfits."""

import dataclasses
import json
import pathlib
import shutil
import subprocess

import jax
import numpy as np
import pytest
import soundfile

from data import embed_text, encode_latents
from fasttta_jax.config import ConfigError, RunConfig
from fasttta_jax.evaluation import evaluator as evaluation
from fasttta_jax.evaluation import judging, tagger_cache
from fasttta_jax.evaluation.evaluator import Evaluator
from fasttta_jax.evaluation.judging import JudgingConfig, JudgingError
from fasttta_jax.evaluation.setup import (
    EvaluationConfig,
    EvaluationError,
    load_setup,
    parse_named,
)
from fasttta_jax.evaluation.sounds import FolderSounds
from fasttta_jax.evaluation.tagger import Tagger, abstract_params, to_float
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.sealed import FIELD, sealed
from fasttta_jax.systems import build_model
from fasttta_jax.training.optimizer import make_optimizer
from fasttta_jax.training.state import new_state, to_items
from fasttta_jax.workdir.checkpoint import Checkpoints
from fasttta_jax.workdir.folder import CONFIG_FILE, FILES, Workdir, WorkdirError
from fasttta_jax.workdir.metrics_log import MetricsWriter
from tests.evaluation.level_error import TAGGER_METRICS, LevelError
from tests.support import commands, helpers
from tests.support.labelled_clips import EVENTS, NUM_CLIPS, write_audio_data
from tests.support.stand_in_networks import stand_ins


def write_run(workdir: pathlib.Path, config: RunConfig) -> pathlib.Path:
    """A run with a checkpoint of fresh parameters and two rows of metrics."""
    folder = Workdir(workdir)
    folder.prepare(config, EncodedDataset(config.data.path))
    model = build_model(config, folder.text())
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(
        3, to_items(new_state(optimizer, jax.jit(model.init)(jax.random.key(0)))), {"loss": 1.0}
    )
    checkpoints.close()
    loss = "mse" if config.objective == "diffusion" else "energy"
    with MetricsWriter(workdir) as writer:
        for step in (1, 2):
            writer.write_scalars(step, {f"train/{loss}": 1.0 / step})
    return workdir


@dataclasses.dataclass
class World:
    audio: pathlib.Path
    encoded: pathlib.Path
    runs: dict[str, str]
    root: pathlib.Path

    def config(self, **changes) -> EvaluationConfig:
        config = EvaluationConfig(
            self.runs, str(self.audio), str(self.encoded), str(self.root / "report"), batch_size=8
        )
        return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def world(labelled_dataset, tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("evaluation")
    audio, encoded = labelled_dataset / "audio", labelled_dataset / "encoded"
    teacher = write_run(root / "teacher", helpers.tiny_teacher_config(encoded))
    student = write_run(root / "student", helpers.tiny_student_config(encoded, root / "teacher"))
    runs = {"teacher": str(teacher), "student": str(student)}
    return World(audio, encoded, runs, root)


@pytest.fixture(scope="module")
def evaluated(world) -> tuple[subprocess.CompletedProcess, dict, str]:
    """What `eval.py --gates=demo` says, and metrics.json and report.html."""
    out = world.root / "report"
    done = commands.run(
        "eval.py",
        *(f"--run={name}={path}" for name, path in world.runs.items()),
        f"--audio_data={world.audio}",
        f"--encoded_data={world.encoded}",
        f"--out={out}",
        "--batch_size=8",
        "--num_energy_clips=12",
        "--num_iterations=1",
        "--tagger_steps=20",
        "--gates=demo",
        timeout=240,
    )
    assert (out / "metrics.json").is_file(), done.stderr
    return done, json.loads((out / "metrics.json").read_text()), (out / "report.html").read_text()


@pytest.mark.slow
def test_every_row_has_its_figures_and_counts(evaluated):
    rows = evaluated[1]["rows"]
    assert list(rows) == ["real", "codec", "teacher", "student"]
    for row in rows.values():
        assert (row["num_clips"], row["num_scenes"], row["frechet_count"]) == (16, 4, 16)
        assert row["attribute_accuracy_count"] == 16
        assert sum(count["clips"] for count in row["events"].values()) == 16
        right = sum(count["right"] for count in row["events"].values())
        assert row["event_accuracy"] == right / 16
    assert rows["real"]["event_accuracy"] >= 0.8 > rows["teacher"]["event_accuracy"]
    assert rows["real"]["frechet"] < rows["teacher"]["frechet"]
    assert all(row["not_measured"] == {} for row in rows.values())
    assert "energy" not in rows["codec"]
    for name in ("teacher", "student"):
        assert rows[name]["energy_score"] == rows[name]["energy"]["mean"]
        assert rows[name]["energy_score_count"] == 12
        assert rows[name]["sampling_ms"] == rows[name]["sampling"]["median_ms"]
        assert rows[name]["energy"]["num_clips"] == 12
        assert rows[name]["energy"]["standard_error"] > 0
        sampling = rows[name]["sampling"]
        assert sampling["num_calls"] >= 3
        assert sampling["batch_size"] == 8
        assert sampling["first_call_seconds"] > sampling["median_ms"] / 1000
        clip_seconds = helpers.CLIP_SAMPLES / helpers.SAMPLE_RATE
        per_second = sampling["clips_per_second"] * clip_seconds
        assert sampling["real_time_factor"] == pytest.approx(1 / per_second)
    assert rows["student"]["times_slower"] == 1


def test_failed_gates_are_named_and_the_exit_code_is_one(evaluated):
    done, metrics, _ = evaluated
    failed = [gate for gate in metrics["gates"] if not gate["passed"]]
    assert failed
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("error: gates failed") :]
    for gate in failed:
        assert f"{gate['row']}: {gate['condition']}" in message
    assert done.stdout.splitlines()[0].split() == ["figure", *metrics["rows"]]
    assert "16 + 4" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_page_has_sounds_curves_and_settings(evaluated):
    _, metrics, page = evaluated
    # one prompt for each event and each of the four two-event clips; real, teacher, student
    assert page.count("data:audio/flac") == (len(EVENTS) + 4) * 3
    for title in ("Squared error of the prediction", "Energy score", "Event by event"):
        assert title in page
    assert "run.teacher.config.model.num_tokens" in page
    assert metrics["settings"]["run"]["student"]["step"] == 3
    assert metrics["settings"]["environment"]["jax"] == jax.__version__


def test_figures_repeat_with_a_kept_tagger_fewer_runs_and_more_devices(
    world, evaluated, monkeypatch
):
    def forbidden(*args, **kwargs):
        raise AssertionError("the tagger is there already")

    monkeypatch.setattr(tagger_cache, "train_tagger", forbidden)
    config = world.config(
        runs={"student": world.runs["student"]},
        num_energy_clips=12,
        tagger_steps=20,
        decode={"num_iterations": 1},
    )
    found = evaluation.evaluate(config)
    before = evaluated[1]["rows"]
    for row in found.rows:
        for name, measured in row.values.items():
            if name != "sampling_ms":
                assert measured.value == pytest.approx(before[row.name][name], rel=1e-3)
    assert "times_slower" not in found.rows[-1].values
    assert found.failures() == []
    monkeypatch.setattr(Tagger, "embed", lambda *_: pytest.fail("its features are there already"))
    again = Evaluator(config, load_setup(config, local_mesh())).references()
    assert [row.values for row in again] == [row.values for row in found.rows[:2]]


@pytest.mark.slow
def test_data_without_labels_has_the_figures_that_need_none(world, tmp_path):
    """Another metric has its column; what needs labels or the tagger says why it is missing."""
    audio, encoded = tmp_path / "audio", tmp_path / "encoded"
    write_audio_data(audio, {split: split for split in NUM_CLIPS}, labelled=False)
    encode_latents.encode(audio, encoded, helpers.fit_codec(audio, tmp_path / "codec"))
    embed_text.fit(encoded, 300)
    found = evaluation.evaluate(
        world.config(
            runs={"student": world.runs["student"]},
            audio_data=str(audio),
            encoded_data=str(encoded),
            out=str(tmp_path / "report"),
            num_clips=6,
            num_energy_clips=8,
            decode={"num_iterations": 1},
        ),
        [*TAGGER_METRICS, LevelError()],
    )
    real, codec, student = json.loads((tmp_path / "report/metrics.json").read_text())[
        "rows"
    ].values()
    assert real["level_error"] == 0 < codec["level_error"]
    assert student["level_error_count"] == student["num_clips"] == 6
    for name in ("energy_score", "sampling_ms"):
        assert student[name] > 0
    assert set(student["not_measured"]) == {metric.quantity.name for metric in TAGGER_METRICS}
    missing = found.table.missing
    assert 'event accuracy: no label names an event (labels with "events")' in missing
    assert missing[-1].startswith("Fréchet (tagger): none of 36 training clips has labels")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "no tagger can be trained" in page
    assert page.count("data:audio/flac") == 6 * 2  # real and student


@pytest.mark.slow
def test_sounds_of_a_folder_are_evaluated_beside_real_clips(world, tmp_path):
    """Real clips in a folder have the figures of real clips; what is left out is counted."""
    config = world.config(runs={}, encoded_data=None, generated={"copy": "unused"})
    real = Evaluator(config, load_setup(config, local_mesh())).test
    folder = tmp_path / "theirs"
    folder.mkdir()
    rows = [{"file": f"{i}.wav", "prompt": prompt} for i, prompt in enumerate(real.prompts)]
    for row, audio in zip(rows, real.audio, strict=True):
        soundfile.write(folder / row["file"], audio, helpers.SAMPLE_RATE, subtype="PCM_16")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = shutil.copytree(folder, tmp_path / "some")
    (some / "1.wav").write_bytes(b"nonsense")
    (some / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-2]))
    out = tmp_path / "report"
    done = commands.run(
        "eval.py",
        f"--generated=copy={folder}",
        f"--generated=some={some}",
        f"--audio_data={world.audio}",
        f"--out={out}",
        "--tagger_steps=20",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "metrics.json").read_text())["rows"]
    assert list(found) == ["real", "copy", "some"]
    for name in (metric.quantity.name for metric in TAGGER_METRICS):
        assert found["copy"][name] == pytest.approx(found["real"][name], rel=1e-3, abs=1e-6)
    assert "energy_score" not in found["copy"]
    assert found["copy"]["sounds"] == {"missing": 0, "unreadable": {}, "unused": 0, "cut": 0}
    assert found["some"]["sounds"]["unreadable"] == {"1.wav": "unreadable"}
    assert found["some"]["sounds"]["missing"] == 2
    assert found["some"]["event_accuracy_count"] == 15
    assert found["some"]["recall_at_k_count"] == 4
    assert "warning: some: 1 files cannot be read and are left out: 1.wav" in done.stdout
    page = (out / "report.html").read_text()
    assert "some: 2 captions of test clips have no sound." in page


def test_runs_and_codec_are_judged_by_networks_against_the_test_clips(world, tmp_path, monkeypatch):
    """Beside the other figures; the real clips are the reference, and are not judged."""
    monkeypatch.setattr(judging, "load_networks", lambda folders: stand_ins())
    config = world.config(
        out=str(tmp_path),
        num_clips=12,
        num_scenes=0,
        judging=JudgingConfig({"panns_16k": "unused"}, metrics=("fd_panns", "kl_softmax")),
    )
    evaluator = Evaluator(config, load_setup(config, local_mesh()), [LevelError()])
    real, codec = evaluator.references()
    assert real.judged is None
    assert set(real.values) == {"level_error"}
    assert set(codec.values) == {"level_error", "fd_panns", "kl_softmax"}
    about = codec.to_json(evaluator.quantities)["judged"]
    assert (about["protocol"], about["clips"]) == ("ours", 12)
    assert about["pairs"] == {"count": 12, "by": "stem"}
    some = evaluator.test.take([2, 5, 7])
    with pytest.raises(JudgingError, match="kl_softmax compare pairs, and more than 1 %"):
        evaluator.row("theirs", "sounds", some, [2, 5, 7])
    folder = FolderSounds(to_float(some.audio), [2, 5, 7], 9, {}, 0, 0)
    with pytest.raises(JudgingError, match="9 have no sound, such as '00000'"):
        evaluator.check_pairs("theirs", folder)


def test_the_tagger_is_kept_for_the_same_clips_and_settings_only(world, tmp_path, monkeypatch):
    trained = []

    def train(clips, spec, *, seed, **kwargs):
        trained.append(seed)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(spec))
        return Tagger(spec, params, 0.0, 1.0)

    monkeypatch.setattr(tagger_cache, "train_tagger", train)

    def load(seed: int, folder: pathlib.Path) -> Tagger:
        return tagger_cache.load_or_train_tagger(
            tmp_path / "kept",
            folder,
            num_samples=helpers.CLIP_SAMPLES,
            sample_rate=helpers.SAMPLE_RATE,
            seed=seed,
            num_steps=1,
        )

    assert load(0, world.audio).spec == load(0, world.audio).spec
    assert trained == [0]
    load(1, world.audio)
    assert trained == [0, 1]
    load(1, shutil.copytree(world.audio, tmp_path / "moved"))
    assert trained == [0, 1]
    load(1, write_audio_data(tmp_path / "other", {"train": "test"}))
    assert trained == [0, 1, 1]


def test_run_flags_are_parsed_and_refused():
    assert parse_named(["a=x/y", "b=c=d"], "run") == {"a": "x/y", "b": "c=d"}
    for values, words in (
        (["teacher"], "--run is 'teacher'; allowed: NAME=FOLDER"),
        (["=x"], "NAME=FOLDER"),
        (["a="], "NAME=FOLDER"),
        (["a=x", "a=y"], "two of --run are named 'a'"),
    ):
        with pytest.raises(EvaluationError, match=words):
            parse_named(values, "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": {}}, "--run=NAME=WORKDIR"),
        ({"runs": {"codec": "x"}}, "a run is named 'codec'"),
        ({"generated": {"real": "x"}}, "a run is named 'real'"),
        ({"generated": {"student": "x"}}, "a run and a folder of sounds are both named 'student'"),
        ({"runs": {}, "generated": {"a": "x"}}, "encoded_data is 'e' and there are 0 runs"),
        ({"encoded_data": None}, "encoded_data is None and there are 1 runs"),
        ({"num_clips": 0}, "num_clips is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"gates": "demo", "runs": {"baseline": "x"}}, "the runs are named baseline"),
        ({"gates": "strict"}, "allowed: \\['demo'\\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EvaluationConfig(
            **({"runs": {"student": "x"}, "encoded_data": "e"} | changes), audio_data="a", out="o"
        )


def test_runs_that_do_not_fit_are_refused_before_anything_is_computed(world, tmp_path):
    mesh = local_mesh()

    def refused(error: type[Exception], words: str, **changes) -> None:
        with pytest.raises(error, match=words):
            load_setup(world.config(**changes), mesh)

    teacher = world.runs["teacher"]
    refused(WorkdirError, "holds no run", runs={"a": str(tmp_path / "nowhere")})
    refused(ConfigError, "num_iterations is 0", decode={"num_iterations": 0})
    refused(ConfigError, "a sum of 8, the number of tokens; found 3", decode={"counts": "1,2"})
    refused(ConfigError, r"guided is \(0\.9, 0\.1\)", decode={"guided": "0.9,0.1"})
    refused(ConfigError, "batch_size is 12", batch_size=12)

    other_codec = tmp_path / "other_codec"
    shutil.copytree(teacher, other_codec)
    statistics = other_codec / "codec" / "statistics.npz"
    with np.load(statistics) as arrays:
        changed = {name: 2 * arrays[name] for name in arrays}
    np.savez(statistics, **changed)
    notes = other_codec / CONFIG_FILE  # without hashes, as earlier versions wrote it
    kept = {
        name: value
        for name, value in json.loads(notes.read_text()).items()
        if name not in (FILES, FIELD)
    }
    notes.write_text(json.dumps(kept))
    refused(EvaluationError, "run 'b' .* another codec", runs={"a": teacher, "b": str(other_codec)})

    config = helpers.tiny_teacher_config(
        world.encoded, model=helpers.tiny_model_config(num_tokens=4)
    )
    shorter = write_run(tmp_path / "shorter", config)
    refused(
        EvaluationError,
        "run 'b' has model.num_tokens = 4 and run 'a' has 8",
        runs={"a": teacher, "b": str(shorter)},
    )


def test_data_that_does_not_fit_is_refused(world, tmp_path):
    mesh = local_mesh()
    for splits, words in (
        ({"train": "test"}, "no split 'test'"),
        ({"train": "test", "test": "validation"}, "was not encoded from"),
    ):
        folder = write_audio_data(tmp_path / str(len(splits)), splits)
        with pytest.raises(DatasetError, match=words):
            load_setup(world.config(audio_data=str(folder)), mesh)
    other = shutil.copytree(world.audio, tmp_path / "other")  # built anew, of the same sizes
    (metadata,) = other.rglob("metadata.json")
    metadata.write_text(json.dumps(sealed(json.loads(metadata.read_text()) | {"sha256": "0" * 64})))
    with pytest.raises(DatasetError, match=r"was not encoded from .*: their contents differ"):
        load_setup(world.config(audio_data=str(other)), mesh)
