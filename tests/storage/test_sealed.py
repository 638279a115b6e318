"""A JSON file says its own hash: whatever is changed in its values is noticed, and nothing else."""

from __future__ import annotations

import json
import pathlib

import pytest

from fasttta_jax.storage.files import StorageError, write_json
from fasttta_jax.storage.sealed import FIELD, read_sealed, sealed

VALUES = {"step": 3, "rate": 1e-4, "nothing": None, "bad": float("nan"), "é": ["雨", {"a": (1, 2)}]}
AS_JSON = json.loads(json.dumps(VALUES))


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    write_json(tmp_path / "values.json", sealed(VALUES))
    return tmp_path / "values.json"


def test_what_was_written_is_read(file: pathlib.Path) -> None:
    assert str(read_sealed(file)) == str(AS_JSON)
    assert sealed(sealed(VALUES))[FIELD] == sealed(VALUES)[FIELD]


def test_order_layout_and_escapes_are_free(file: pathlib.Path) -> None:
    values = dict(reversed(json.loads(file.read_text()).items()))
    file.write_text(json.dumps(values, indent=7, ensure_ascii=True))
    assert read_sealed(file).keys() == VALUES.keys()


@pytest.mark.parametrize(
    ("old", "new"),
    [("3", "8"), ("0.0001", "0.0002"), ("null", "false"), ("NaN", "Infinity"), ("雨", "雪"),
     ('"step"', '"steps"'), ("[", "[4, "), ('"self_sha256": "', '"self_sha256": "0')],
)  # fmt: skip
def test_a_change_is_noticed(file: pathlib.Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(StorageError, match=r"values\.json is not what was written"):
        read_sealed(file)


def test_an_earlier_file_has_no_hash_and_an_edited_one_can_do_without(file: pathlib.Path) -> None:
    values = json.loads(file.read_text())
    del values[FIELD]
    file.write_text(json.dumps({**values, "step": 4}))
    assert read_sealed(file)["step"] == 4
