"""Importing the package is cheap and silent: no other framework, no device, no unreadable type."""

from __future__ import annotations

import ast
import graphlib
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
PACKAGE = REPOSITORY / "fasttta_jax"
FLOORS = (
    ("version", "typing", "config", "schedules", "storage", "audio", "losses"),
    ("parallel", "masking", "randomness"),
    ("models", "diffusion", "flow", "multihost"),
    ("pretrained", "objectives", "decoding", "cli"),
    ("text", "codecs", "performance"),
    ("systems", "input_pipeline", "metrics", "convert"),
    ("workdir",),
    ("report",),
    ("generation",),
    ("training", "evaluation"),
    ("tools",),
)
"""Rooms from the lowest floor up: a room imports from its own floor and from those below."""
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(fasttta_jax.__path__, "fasttta_jax.")
)

IMPORT_EVERYTHING = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
frameworks = {"tensorflow", "torch", "keras", "beartype"} & set(sys.modules)
assert not frameworks, f"imported: {frameworks}"
assert not xla_bridge._backends, f"devices were touched: {list(xla_bridge._backends)}"
hooks = [finder for finder in sys.meta_path if "jaxtyping" in type(finder).__module__]
assert not hooks, f"imports are hooked: {hooks}"
assert "data" not in sys.modules and "configs" not in sys.modules, "repository folders imported"
"""


def test_imports_touch_neither_devices_nor_other_frameworks():
    assert "fasttta_jax.decoding.loop" in MODULES
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, *MODULES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout


IMPORT_FRONT_DOOR = """
import sys, time
start = time.perf_counter()
import fasttta_jax
print(time.perf_counter() - start)
heavy = {"jax", "jaxlib", "numpy"} & set(sys.modules)
assert not heavy, f"imported: {heavy}"
assert callable(fasttta_jax.load)
"""


def test_importing_the_front_door_costs_nothing():
    """The best of three, for a machine that is busy."""
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", IMPORT_FRONT_DOOR]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.3


IMPORT_PIPELINE = """
import sys
import fasttta_jax.generation.pipeline
slow = {"orbax", "tensorflow_datasets", "transformers", "huggingface_hub", "matplotlib", "grain"}
assert not slow & set(sys.modules), f"imported: {slow & set(sys.modules)}"
"""


def test_an_exported_model_needs_no_slow_import():
    command = [sys.executable, "-c", IMPORT_PIPELINE]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


def imported(file: pathlib.Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, types included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fasttta_jax"):
            whole = node.module == "fasttta_jax"
            names |= (
                {f"{node.module}.{each.name}" for each in node.names} if whole else {node.module}
            )
        elif isinstance(node, ast.Import):
            names |= {each.name for each in node.names if each.name.startswith("fasttta_jax.")}
    return names - {"fasttta_jax.__version__"}


def room_of_module(name: str) -> str:
    return name.split(".")[1]


def room_of_file(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    if room == "__init__":  # the front door is above all
        return len(FLOORS)
    found = [level for level, floor in enumerate(FLOORS) if room in floor]
    assert found, f"{room} has no floor"
    return found[0]


def test_imports_go_one_way():
    """No file imports a room of a higher floor."""
    upward = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in sorted(PACKAGE.glob("**/*.py"))
        for name in imported(file)
        if floor_of(room_of_module(name)) > floor_of(room_of_file(file))
    ]
    assert not upward, "\n".join(upward)


def test_every_room_has_a_floor():
    rooms = {room_of_file(file) for file in PACKAGE.glob("**/*.py")} - {"__init__"}
    assert rooms == {room for floor in FLOORS for room in floor}


def test_no_two_rooms_import_each_other():
    """Rooms of one floor may import one another, but in one direction."""
    arrows = {
        (room_of_file(file), room_of_module(name))
        for file in PACKAGE.glob("**/*.py")
        for name in imported(file)
    }
    arrows = {(room, other) for room, other in arrows if room != other}
    order = graphlib.TopologicalSorter()
    for room, other in arrows:
        order.add(room, other)
    order.prepare()  # raises CycleError, which names the rooms


def test_one_importer_of_orbax():
    importers = [
        file.name
        for file in (REPOSITORY / "fasttta_jax").glob("**/*.py")
        if "import orbax" in file.read_text()
    ]
    assert importers == ["checkpoint.py"]
