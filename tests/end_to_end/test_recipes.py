"""The recipes of docs/extending.md, followed to the letter in a copy of the repository."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(part.split("\n", 1) for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])
FILE = re.compile(r"^`([\w./]+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGE = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COPIED = ("fasttta_jax", "data", "configs", "tests", "pyproject.toml", "train.py")


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


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "golden")
    for name in COPIED:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, tmp_path / name, **({"ignore": ignored} if source.is_dir() else {}))
    tests = follow(RECIPES[title], tmp_path)
    assert tests, title
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
