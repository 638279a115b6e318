"""A page of a folder of sounds: a player and a spectrogram for every clip of its manifest."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

from fasttta_jax.audio.files import read_channels
from fasttta_jax.generation.job_folder import MANIFEST_FILE
from fasttta_jax.report.page import Cell, PromptRow, Report, write_report
from fasttta_jax.storage.files import StorageError
from fasttta_jax.storage.rows import read_rows, require

PAGE_FILE = "index.html"
MOST_CLIPS = 100
"""Clips on a page, which holds its sounds and plots itself; the first of the manifest."""


def write_page(folder: str | os.PathLike[str], title: str = "Sounds") -> pathlib.Path:
    """Writes `index.html` beside the manifest: one file, which opens offline.

    Clips of one prompt stand side by side. The settings are those of the first clip.

    Args:
      folder: with manifest.jsonl and the sound files that it names.
      title: heading.

    Returns:
      Where the page is.

    Raises:
      StorageError: there is no manifest, or none of sound files.
      AudioError: a sound file cannot be read.
    """
    folder = pathlib.Path(folder)
    rows = _rows(folder / MANIFEST_FILE)
    cells: dict[str, list[Cell]] = {}
    for row in rows:
        audio, sample_rate = read_channels(folder / row["file"])
        cell = Cell(f"seed {row['seed']}", audio.mean(axis=1), sample_rate)
        cells.setdefault(row["prompt"], []).append(cell)
    prompts = [PromptRow(prompt or "(no prompt)", found) for prompt, found in cells.items()]
    model = rows[0].get("checkpoint", {})
    settings = {**rows[0].get("settings", {}), **model}
    first = "The first " if len(rows) == MOST_CLIPS else ""
    lead = f"{first}{len(rows)} clips" + (f" of {model['workdir']}" if "workdir" in model else "")
    report = Report(title, f"{lead}.", prompts=prompts, settings=settings)
    write_report(folder / PAGE_FILE, report)
    return folder / PAGE_FILE


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        found = list(itertools.islice(read_rows(path, formats=[".jsonl"]), MOST_CLIPS))
        for line, row in found:
            require(("file", "prompt", "seed"))(f"{path}:{line}", list(row))
        if not found:
            raise ValueError("it names no sound files")
        return [dict(row) for _, row in found]
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be shown as a page: {error}; allowed: the manifest of a folder of "
            "sound files"
        ) from error
