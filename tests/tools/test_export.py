"""The command that exports: a card with what is known of the model, and errors before any work."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import subprocess

import pytest
from absl import flags

from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.tools import export as command
from fasttta_jax.workdir.exported import ExportedError, check_files
from fasttta_jax.workdir.folder import WorkdirError
from tests.support import commands

METRICS = {
    "rows": {
        "real": {"kind": "reference", "event_accuracy": 1.0, "event_accuracy_count": 96},
        "student": {
            "kind": "energy",
            "event_accuracy": 0.979,
            "event_accuracy_standard_error": 0.01,
            "event_accuracy_count": 96,
            "frechet": None,
            "num_clips": 192,
        },
    },
    "settings": {"evaluation": {"seed": 5}},
}


@pytest.fixture(scope="module")
def exported(
    runs: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, subprocess.CompletedProcess[str]]:
    """A folder that the command wrote, and what it said."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "about.md").write_text("## Data\n\nTones, noise and clicks, CC0.\n")
    done = commands.run(
        *("-m", "fasttta_jax.tools.export", runs["student"], folder / "bells", "--dtype=float16"),
        *("--title=Bells", f"--metrics={folder / 'metrics.json'}", "--licence=cc-by-4.0"),
        *(f"--notes={folder / 'about.md'}", "--checkpoint=40"),
    )
    return folder / "bells", done


def test_the_command_writes_what_can_be_loaded(
    runs: dict[str, pathlib.Path],
    exported: tuple[pathlib.Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = exported
    assert done.returncode == 0, done.stderr
    assert f"python generate.py --workdir={folder}" in done.stdout
    check_files(folder)
    described = json.loads((folder / "config.json").read_text())["exported"]
    trained = Pipeline.open(str(runs["student"])).trained
    assert described["parameters_sha256"] == trained.origin()["sha256"]
    assert (described["step"], described["dtype"]) == (40, "float16")
    assert re.fullmatch(r"[0-9a-f]{40}\+?", described["commit"])


def test_the_card_says_what_is_known(
    exported: tuple[pathlib.Path, subprocess.CompletedProcess[str]],
) -> None:
    card = (exported[0] / "README.md").read_text()
    described = json.loads((exported[0] / "config.json").read_text())["exported"]
    for part in (
        "---\nlibrary_name: fasttta_jax\npipeline_tag: text-to-audio\nlicense: cc-by-4.0\n---\n",
        "# Bells",
        f"{described['num_parameters']:,} (",
        "stored as float16",
        "0.64 s, 16,000 Hz",
        "Tones, noise and clicks, CC0.",
        "| seed | 0 |",
        described["parameters_sha256"],
        described["commit"],
        "|  | real | student |",
        "| event accuracy | 1.000 | 0.979 ± 0.010 |",
        "Of `eval.py`, seed 5",
        "a clicks is loud noise quiet that tone",
        "Code: Apache-2.0. Model: cc-by-4.0.",
    ):
        assert part in card, part
    assert "frechet" not in card
    assert "/" + "tmp" not in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ast.parse(code)


def test_wrong_arguments_are_named_before_anything_is_loaded(
    runs: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no JSON")
    for contents in ("no JSON", "[]", '{"rows": {"a": 1}}'):
        (tmp_path / "metrics.json").write_text(contents)
        with pytest.raises(ExportedError, match=r"metrics\.json cannot be read .*allowed: a metr"):
            command.read_metrics_file(str(tmp_path / "metrics.json"))
    with pytest.raises(ExportedError, match=r"nowhere cannot be read .FileNotFound"):
        command.read_metrics_file(str(tmp_path / "nowhere"))
    with pytest.raises(WorkdirError, match=r"nothing holds no run: config\.json is missing"):
        command.export(str(tmp_path / "nothing"), str(tmp_path / "out"))
    monkeypatch.setattr(command, "load_trained", None)
    with pytest.raises(ExportedError, match="file is a file; allowed: a new folder"):
        command.export(str(runs["student"]), str(tmp_path / "file"))
    values = flags.FlagValues()
    command.define_flags(values)
    with pytest.raises(flags.Error, match=r"float32.bfloat16.float16"):
        values(["export", "--dtype=int8"])
