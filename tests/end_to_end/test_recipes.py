"""The recipes of docs/extending.md, followed to the letter in a copy of the repository."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(part.split("\n", 1) for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])
FILE = re.compile(r"^`([\w./]+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGE = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COPIED = ("fasttta_jax", "data", "configs", "tests", "pyproject.toml")
NEIGHBOURS = ("tests/evaluation/test_scoring.py", "tests/objectives/test_objectives.py")
"""Tests of what the recipes add to: they hold with the additions, too."""
APART = (
    "test_a_third_objective_trains_evaluates_and_samples",
    "test_a_loss_is_given_the_teacher_the_average_and_the_target",
    "test_a_target_is_saved_and_restored",
    "test_equal_runs_share_their_programs",
)
"""Tests among them that train objectives of their own, whatever others there are."""


def changed(text: str, diff: str) -> str:
    """The text with a block of unchanged, removed and added lines applied where it fits."""
    lines = diff.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, f"fits {text.count(before)} times:\n{before}"
    return text.replace(before, after)


def follow(recipe: str, repository: pathlib.Path) -> list[str]:
    """Writes the files of a recipe and makes its changes; returns the tests among them."""
    files = dict(FILE.findall(recipe))
    for name, code in files.items():
        assert not (repository / name).exists(), name
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(code, encoding="utf-8")
    for match in CHANGE.finditer(recipe):
        name = re.findall(r"`([\w./]+\.py)`", recipe[: match.start()])[-1]
        path = repository / name
        path.write_text(changed(path.read_text(encoding="utf-8"), match[1]), encoding="utf-8")
    return [name for name in files if name.startswith("tests/")]


def test_recipes_work_as_they_stand(tmp_path):
    """All in one copy and one process, so that they do not stand in each other's way either."""
    for name in COPIED:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "golden")
            shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    tests = {title: follow(recipe, tmp_path) for title, recipe in RECIPES.items()}
    assert all(tests.values()), tests
    names = [name for own in tests.values() for name in own]
    apart = " or ".join(APART)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(f"-k=not ({apart})", *names, *NEIGHBOURS),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
