"""Prompts from files: lines of a .txt, or the prompt or caption column of a .csv or .jsonl."""

from __future__ import annotations

import csv
import json
import pathlib
import re
import unicodedata

COLUMNS = ("prompt", "caption")
FORMATS = (".txt", ".csv", ".jsonl")


class PromptError(ValueError):
    """A prompt file that cannot be used; names file and line."""


def read_prompts(path: str | pathlib.Path) -> list[str]:
    """The prompts of a file, in order, stripped; blank lines of a .txt are left out.

    Raises:
      PromptError: an unknown format, a missing column, a broken line, an empty file.
      FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path)
    if path.suffix not in FORMATS:
        raise PromptError(f"{path}: the ending is {path.suffix!r}; allowed: {', '.join(FORMATS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix == ".txt":
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
    elif path.suffix == ".csv":
        prompts = _from_csv(path, text)
    else:
        prompts = _from_jsonl(path, text)
    if not prompts:
        raise PromptError(f"{path} holds no prompts")
    return prompts


def _from_csv(path: pathlib.Path, text: str) -> list[str]:
    rows = csv.DictReader(text.splitlines())
    found = list(rows.fieldnames or [])
    column = next((name for name in COLUMNS if name in found), None)
    if column is None:
        raise PromptError(f"{path}: the columns are {found}; one must be {' or '.join(COLUMNS)}")
    return [(row[column] or "").strip() for row in rows]


def _from_jsonl(path: pathlib.Path, text: str) -> list[str]:
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}, line {number} is not JSON: {error}") from error
        value = next((row[name] for name in COLUMNS if isinstance(row, dict) and name in row), None)
        if not isinstance(value, str):
            raise PromptError(
                f"{path}, line {number}: a text field named {' or '.join(COLUMNS)} is missing"
            )
        prompts.append(value.strip())
    return prompts


def slug(prompt: str, max_length: int = 40) -> str:
    """A short file-name part for a prompt: ASCII letters and digits; "clip" where none are left."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    return words[:max_length].rstrip("_") or "clip"
