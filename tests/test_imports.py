"""Importing the package is cheap and silent: no other framework, no device, no unreadable type."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys
import typing

import pytest

import fasttta_jax

REPOSITORY = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(fasttta_jax.__path__, "fasttta_jax.")
)

IMPORT_EVERYTHING = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
frameworks = {"tensorflow", "torch", "keras"} & set(sys.modules)
assert not frameworks, f"imported: {frameworks}"
assert not xla_bridge._backends, f"devices were touched: {list(xla_bridge._backends)}"
assert "data" not in sys.modules and "configs" not in sys.modules, "repository folders imported"
"""


def test_imports_touch_neither_devices_nor_other_frameworks():
    assert "fasttta_jax.decode" in MODULES
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, *MODULES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout


def own_functions(module) -> list:
    """Functions, classes and methods that the module defines."""
    found = []
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            found.append(value)
        elif inspect.isclass(value):
            found.append(value)
            found += [method for method in vars(value).values() if inspect.isfunction(method)]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_annotations_can_be_evaluated(name):
    for value in own_functions(importlib.import_module(name)):
        if value.__module__ != name:
            continue
        try:
            typing.get_type_hints(value)
        except Exception as error:
            pytest.fail(f"{value.__qualname__}: {error}")


def test_imports_go_one_way():
    """Lower rooms do not import higher ones."""
    order = [
        ("models", "codecs", "text", "diffusion", "losses", "masking"),
        ("decode",),
        ("training",),
    ]
    folder = REPOSITORY / "fasttta_jax"
    for level, rooms in enumerate(order):
        higher = [room for above in order[level + 1 :] for room in above]
        for room in rooms:
            path = folder / room
            files = sorted(path.glob("**/*.py")) if path.is_dir() else [path.with_suffix(".py")]
            assert files
            for file in files:
                text = file.read_text()
                for other in higher:
                    assert f"fasttta_jax.{other}" not in text, f"{file} imports {other}"


def test_one_importer_of_orbax():
    importers = [
        file.name
        for file in (REPOSITORY / "fasttta_jax").glob("**/*.py")
        if "import orbax" in file.read_text()
    ]
    assert importers == ["checkpoint.py"]
