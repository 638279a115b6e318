"""Writes manifest.jsonl of a job that was stopped: of all clips that are there so far.

    python -m fasttta_jax.tools.merge sounds

A job whose clips are all there has done so itself. The job may be running; what is written then
holds the clips that were whole at that moment.
"""

from __future__ import annotations

import pathlib

from fasttta_jax import cli
from fasttta_jax.generation.job_folder import MANIFEST_FILE, merge


def main(folder: str) -> None:
    """Merges the notes of `folder`, an --out of generate.py."""
    merged = merge(pathlib.Path(folder))
    assert merged is not None, "no number of clips was asked for"
    manifest = pathlib.Path(folder) / MANIFEST_FILE
    print(f"{manifest}: {merged.clips} clips; {merged.skipped} rows made none")


if __name__ == "__main__":
    cli.run(main, "FOLDER")
