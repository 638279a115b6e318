"""The folder of a job: what is asked for, what is there, and what is still to make.

    OUT/...                            sounds, or shards of them (`outputs`)
    OUT/job/settings.json              what decides the clips, beside the requests for them
    OUT/job/shards/clips-00000.json    rows of the manifest, and rows that made no clip
    OUT/manifest.jsonl                 all rows of the manifest, when all clips are there (`merge`)
    OUT/skipped.jsonl                  what could not be made: place and reason

The clips are cut into shards (`storage.shards`), which processes share by number. A clip is
written, whole, before the note of its shard names it; what no note names is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fasttta_jax.generation.outputs import OutputConfig, Shard, open_shard, remove_clip
from fasttta_jax.generation.prompts import BadRow, Wanted
from fasttta_jax.storage import shards
from fasttta_jax.storage.files import StorageError, damage, is_remote
from fasttta_jax.storage.locks import locked
from fasttta_jax.storage.sealed import read_sealed
from fasttta_jax.storage.shards import NOTES_FOLDER, ShardedWork, check_share
from fasttta_jax.storage.whole import remove_leftovers, whole

MANIFEST_FILE = "manifest.jsonl"
SKIPPED_FILE = "skipped.jsonl"
JOB_FOLDER = "job"
LOCK_FILE = ".job.lock"
SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the work is a process's.

    Raises:
      ValueError: there is no such process.
    """

    process_id: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        check_share(self.process_id, self.num_processes)


@dataclasses.dataclass(eq=False)
class Part:
    """A shard that is worked on.

    Attributes:
      shard: its clips.
      rows: of the manifest, by index.
      skipped: rows that make no clip, by index.
      todo: requests without a row.
    """

    shard: shards.Shard
    rows: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    skipped: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    todo: list[Wanted] = dataclasses.field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every clip is there, or cannot be."""
        return all(index in self.rows or index in self.skipped for index in self.shard.indices)


class Plan(NamedTuple):
    """What a process has to do.

    Attributes:
      unfinished: numbers of its shards with something to make or to note.
      todo: clips to make.
      found: clips that are there.
      skipped: rows that cannot be used.
      faults: what is wrong with the first `SHOWN` of them, each with its place.
    """

    unfinished: frozenset[int]
    todo: int
    found: int
    skipped: int
    faults: tuple[str, ...]


class JobFolder:
    """The folder of a job.

    Args:
      output: where it is, and how clips are kept there.
      num_clips: of the job.
      settings: what decides the clips beside requests and output, as JSON values.
      overwrite: whether what was made with other settings, or of other requests, is replaced.
    """

    def __init__(
        self, output: OutputConfig, num_clips: int, settings: Mapping[str, Any], overwrite: bool
    ) -> None:
        self.path = pathlib.Path(output.out)
        self.output = output
        self.overwrite = overwrite
        self.num_clips = num_clips
        self.work = ShardedWork(
            self.path / JOB_FOLDER,
            lengths={"clips": num_clips},
            shard_size=output.shard_size,
            settings={**output.settings(), **settings},
        )

    def begin(self) -> None:
        """Begins, or goes on.

        Raises:
          StorageError: the folder was made with other settings, or by something else.
          OSError: it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / MANIFEST_FILE
        if self.overwrite:
            with locked(self.path / LOCK_FILE):
                self._replace()
                self.work.start()
            return
        if manifest.exists() and not (self.path / JOB_FOLDER).exists():
            raise StorageError(
                f"{manifest} was not written by this command, or by an earlier version of it; "
                "allowed: another --out, or --overwrite to replace it"
            )
        try:
            self.work.start()
        except StorageError as error:
            raise StorageError(f"{error}; --overwrite does that") from error

    def _replace(self) -> None:
        """Removes what other settings made; another process may have done so before."""
        with contextlib.suppress(StorageError):
            if self.work.kept() is not None:
                return
        for note in _notes(self.path):
            for row in note["rows"]:
                remove_clip(self.path, row)
        shutil.rmtree(self.path / JOB_FOLDER, ignore_errors=True)
        for name in (MANIFEST_FILE, SKIPPED_FILE):
            (self.path / name).unlink(missing_ok=True)

    def parts(
        self, requests: Iterable[Wanted | BadRow], share: Share, only: Plan | None = None
    ) -> Iterator[Part]:
        """The shards of a process in order, read as they are needed.

        Args:
          requests: all of the job, in order.
          share: the process.
          only: what is finished by this plan is left out.

        Raises:
          StorageError: a clip that is there was made of another request.
        """
        own = {
            shard.index: shard
            for shard in self.work.of_process(share.process_id, share.num_processes)
            if only is None or shard.index in only.unfinished
        }
        size = self.output.shard_size
        for index, items in itertools.groupby(requests, lambda one: one.index // size):
            if index in own:
                yield self._part(own[index], items)

    def _part(self, shard: shards.Shard, items: Iterable[Wanted | BadRow]) -> Part:
        note = self.work.note(shard) or {"rows": (), "skipped": ()}
        part = Part(shard, {row["index"]: row for row in note["rows"]})
        skipped = {row["index"]: row for row in note["skipped"]}
        wanted = []
        for item in items:
            row = part.rows.get(item.index)
            if row is not None and (isinstance(item, BadRow) or row["request"] != item.key):
                self._check_replaced(row, item)
                remove_clip(self.path, part.rows.pop(item.index))
                row = None
            if isinstance(item, BadRow):
                part.skipped[item.index] = dataclasses.asdict(item)
                continue
            wanted.append(item)
            if row is not None and not (self.path / row.get("shard", row["file"])).is_file():
                del part.rows[item.index]
            fault = skipped.get(item.index)
            if fault is not None and fault.get("request") == item.key:
                part.skipped[item.index] = fault
        done = part.rows.keys() | part.skipped.keys()
        part.todo = [request for request in wanted if request.index not in done]
        if part.todo and self.output.store != "files":  # a shard is written as a whole
            part.rows.clear()
            part.todo = [request for request in wanted if request.index not in part.skipped]
        return part

    def _check_replaced(self, row: Mapping[str, Any], item: Wanted | BadRow) -> None:
        if self.overwrite:
            return
        place = f"{item.place} asks for "
        wanted = (
            f"nothing that can be made ({item.reason})"
            if isinstance(item, BadRow)
            else f"{item.prompt!r} with seed {item.seed}"
        )
        raise StorageError(
            f"{self.path} holds {row['file']}, made for {row['prompt']!r} with seed {row['seed']}, "
            f"where {place}{wanted}. Allowed: another --out, the earlier rows with new ones behind "
            "them, or --overwrite to replace it"
        )

    def plan(self, requests: Iterable[Wanted | BadRow], share: Share) -> Plan:
        """What a process has to do; see `parts`."""
        unfinished, todo, found, skipped = set(), 0, 0, 0
        faults: list[str] = []
        for part in self.parts(requests, share):
            todo, found = todo + len(part.todo), found + len(part.rows)
            skipped += len(part.skipped)
            shown = itertools.islice(part.skipped.values(), SHOWN - len(faults))
            faults += [f"{row['place']}: {row['reason']}" for row in shown]
            if part.todo or not self._is_noted(part):
                unfinished.add(part.shard.index)
        return Plan(frozenset(unfinished), todo, found, skipped, tuple(faults))

    def _is_noted(self, part: Part) -> bool:
        note = self.work.note(part.shard)
        return note is not None and note["skipped"] == _in_order(part.skipped)

    def open(self, part: Part) -> Shard:
        """What takes the clips of a part."""
        return open_shard(self.output, part.shard.index, self.num_clips)

    def save(self, part: Part) -> None:
        """Notes what is there of a part."""
        note = {"rows": _in_order(part.rows), "skipped": _in_order(part.skipped)}
        self.work.done(part.shard, note)

    def finish(self) -> bool:
        """Writes the manifest where all clips are there; says whether they are."""
        if self.work.missing() or merge(self.path, self.num_clips) is None:
            return False
        remove_leftovers(self.path)
        (self.path / LOCK_FILE).unlink(missing_ok=True)
        return True


class Merged(NamedTuple):
    """Rows of a manifest, and rows that made no clip."""

    clips: int
    skipped: int


class _Incomplete(Exception):
    """Some clips are missing."""


def merge(out: pathlib.Path, num_clips: int = 0) -> Merged | None:
    """Writes the manifest of a job's folder, and the list of what was skipped, from its notes.

    Several processes may do so at the same time.

    Args:
      out: the folder; its job may still be running.
      num_clips: the first so many clips must be there, or nothing is written.

    Returns:
      What was found, or None where clips are missing.

    Raises:
      StorageError: there is no job in the folder.
      OSError: the files cannot be written.
    """
    if not (out / JOB_FOLDER).is_dir():
        raise StorageError(f"{out} holds no job; allowed: an --out of generate.py")
    clips, skipped, first = 0, 0, 0
    try:
        with (
            whole(out / MANIFEST_FILE) as manifest_path,
            whole(out / SKIPPED_FILE) as skipped_path,
            open(manifest_path, "w", encoding="utf-8") as manifest,
            open(skipped_path, "w", encoding="utf-8") as faults,
        ):
            for note in _notes(out):
                for rows, file in ((note["rows"], manifest), (note["skipped"], faults)):
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    first += sum(row["index"] < num_clips for row in rows)
                clips, skipped = clips + len(note["rows"]), skipped + len(note["skipped"])
            if first < num_clips:
                raise _Incomplete
    except _Incomplete:
        return None
    if not skipped:
        (out / SKIPPED_FILE).unlink(missing_ok=True)
    return Merged(clips, skipped)


def _notes(out: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted((out / JOB_FOLDER / NOTES_FOLDER).glob("*.json")):
        note = read_sealed(path)
        with damage(path):
            yield {"rows": note["rows"], "skipped": note["skipped"]}


def _in_order(rows: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[index] for index in sorted(rows)]


def check_folder(out: str) -> None:
    """Raises StorageError where no folder can be at `out`, or it cannot be written; makes none."""
    if is_remote(out):
        raise StorageError(
            f"--out is {out}; allowed: a folder of this machine, or of a file system that is "
            "mounted here"
        )
    path = pathlib.Path(out)
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise StorageError(f"--out is {out}, and {there} is a file; allowed: a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"--out is {out}, and {there} may not be written; allowed: another")
