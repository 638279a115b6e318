"""Where a disk is full, what benchmarks write is whole or absent, and the error names the file."""

from __future__ import annotations

import ast
import errno
import pathlib
import re
from collections.abc import Callable, Iterator

import pytest

import benchmarks
from benchmarks import accelerator, measure, scaling_tables
from benchmarks.accelerator_parts import Part
from tests.support.full_disk import limited_files

FILES = sorted(pathlib.Path(benchmarks.__file__).parent.glob("*.py"))
WRITES = {"write_text", "write_bytes", "save", "savez", "savefig", "dump", "to_csv", "imwrite"}
"""What else writes files, and leaves a part of one where there is no room."""
LONG = {"text": "x" * 20_000}
ROOM = 2000


def written_in_place(file: pathlib.Path) -> Iterator[str]:
    """Calls of a program that write a file where it stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        modes = [one.value for one in node.args if isinstance(one, ast.Constant)]
        opens = name == "open" and any(str(mode)[:1] in ("w", "a", "x") for mode in modes)
        if name in WRITES or opens:
            yield f"{file.name}:{node.lineno}: {name}"


def test_results_are_written_by_the_functions_that_leave_no_part() -> None:
    found = [call for file in FILES for call in written_in_place(file)]
    # The log of a compiler's process, which that process writes.
    assert [call for call in found if not call.startswith("scaling_cells.py")] == []
    assert len(found) == 1


def finish(out: pathlib.Path) -> None:
    measure.finish(LONG, "", str(out))


def measure_part(out: pathlib.Path) -> None:
    part = Part(out.stem, "training", lambda seconds: LONG)
    accelerator.measure_parts([part], out.parent.parent)


def write_tables(out: pathlib.Path) -> None:
    accelerator.write_results({"machine": None, "rows": [], **LONG}, out.parent)


def write_page(out: pathlib.Path) -> None:
    scaling_tables.write_page(out, {"study": LONG["text"]})


WRITERS: dict[str, Callable[[pathlib.Path], None]] = {
    "out.json": finish,
    f"{accelerator.PARTS_FOLDER}/part.json": measure_part,
    accelerator.RESULT_FILE: write_tables,
    "scaling.md": write_page,
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_room_leaves_what_was_there_and_names_the_file(
    name: str, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / name
    out.parent.mkdir(exist_ok=True)
    before = "<!-- study -->\nof an earlier time\n<!-- end of study -->\n"
    out.write_text(before)
    with limited_files(ROOM), pytest.raises(OSError, match=re.escape(str(out))) as caught:
        WRITERS[name](out)
    assert caught.value.errno == errno.EFBIG
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [out]
    assert out.read_text() == before
    WRITERS[name](out)
    assert LONG["text"] in out.read_text()
