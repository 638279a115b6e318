"""README and docs name links, files, modules, flags and rooms that exist; their Python compiles."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re

import pytest

from fasttta_jax.config import RunConfig
from tests.test_imports import FLOORS

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(REPOSITORY)
    for folder in (".", "docs", "launch", "benchmarks")
    for page in (REPOSITORY / folder).glob("*.md")
)
LINE_LENGTH = 120
GENERATED = re.compile(r"<!-- (?!end)(?!floors|rooms)(.+?) -->.*?<!-- end of \1 -->", re.DOTALL)
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(
    r"(?<![\w/.-])((?:fasttta_jax|data|benchmarks|configs|docs|launch|tests)/[\w./-]*\w)"
)
MODULE = re.compile(r"(?:python -m |from |import )((?:fasttta_jax|data|benchmarks)[\w.]*)")
COMMAND = re.compile(
    r"python (-m (?:fasttta_jax|data|benchmarks)[\w.]*|\w+\.py)((?:\\\n|[^\n`|])*)"
)
FLAG = re.compile(r"(?<![\w-])--(\w+(?:\.\w+)*)")
MADE = re.compile(r"^`([\w./]+)`:$", re.MULTILINE)
"""The files that a recipe writes."""
ROOTS = ("fasttta_jax", "data", "benchmarks")
BUILT_IN = {"help", "config"}


def text_of(page: pathlib.Path) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def made_in(text: str) -> set[str]:
    """The modules that a recipe writes."""
    return {name.removesuffix(".py").replace("/", ".") for name in MADE.findall(text)}


def anchors(page: pathlib.Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for link in LINK.findall(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(REPOSITORY)), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_files_exist(page):
    """Paths in prose and commands, those of a recipe's own examples aside."""
    text = text_of(page)
    made = set(MADE.findall(text))
    missing = [
        name for name in FILE.findall(text) if name not in made and not (REPOSITORY / name).exists()
    ]
    assert not missing, f"{page}: {missing}"


def exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_modules_exist(page):
    text = text_of(page)
    for module in MODULE.findall(text):
        module = module.rstrip(".")
        attribute_of = module.rpartition(".")[0]
        known = module in made_in(text) or exists(module) or exists(attribute_of)
        assert known, f"{page}: {module}"


def module_file(name: str) -> pathlib.Path | None:
    """The file of a module of the repository; of a folder that is a command, its __main__.py."""
    path = REPOSITORY.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def flags_of(file: pathlib.Path) -> frozenset[str]:
    """Flags that a file defines, and those of the modules that it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value).removeprefix("--"))
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        for name in names:
            imported = module_file(name) if name.split(".")[0] in ROOTS else None
            if imported and imported != file and "DEFINE_" in imported.read_text(encoding="utf-8"):
                found |= flags_of(imported)
    return frozenset(found)


def is_field(path: str) -> bool:
    """Whether a name such as "data.path" is a field of a run's config."""
    node: object = RunConfig()
    for part in path.split("."):
        if not dataclasses.is_dataclass(node) or not hasattr(node, part):
            return False
        node = getattr(node, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_flags_of_commands_exist(page):
    text = text_of(page)
    for program, arguments in COMMAND.findall(text):
        name = program.removeprefix("-m ").removesuffix(".py").rstrip(".")
        file = module_file(name)
        if file is None and name in made_in(text):
            continue
        assert file is not None, f"{page}: python {program}"
        for flag in FLAG.findall(arguments):
            if flag.startswith("config."):
                assert is_field(flag.removeprefix("config.")), f"{page}: --{flag}"
            else:
                known = flags_of(file) | {f"no{each}" for each in flags_of(file)} | BUILT_IN
                assert flag in known, f"{page}: python {program} has no --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_compiles(page):
    for language, code in FENCE.findall(text_of(page)):
        if language == "python":
            ast.parse(code)
            assert max(map(len, code.splitlines())) <= 100, f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lines_are_short(page):
    """Of what people write: not of tables and output, nor of what a program writes."""
    prose = FENCE.sub("", GENERATED.sub("", text_of(page)))
    long = [
        line for line in prose.splitlines() if len(line) > LINE_LENGTH and not line.startswith("| ")
    ]
    assert not long, f"{page}: {long}"


def between(page: str, mark: str) -> str:
    text = text_of(pathlib.Path(page))
    return text.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0]


def test_readme_names_every_room():
    lines = between("README.md", "rooms").split("fasttta_jax/\n")[1]
    rooms = re.findall(r"^  (\w+)/? ", lines, re.MULTILINE)
    assert sorted(rooms) == sorted(room for floor in FLOORS for room in floor)


def test_design_has_the_floors_of_the_test_of_imports():
    rows = re.findall(r"^\| \d+ \| (.+) \|$", between("docs/design.md", "floors"), re.MULTILINE)
    assert tuple(tuple(re.findall(r"`(\w+)`", row)) for row in rows) == FLOORS
