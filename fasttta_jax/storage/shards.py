"""Work cut into shards: any number of processes share it, and after a kill it goes on where it was.

The items of each split are cut into ranges of one size. Shard i belongs to process
i % num_processes. What a shard makes is written first, whole, and then the note that it is done:

    FOLDER/settings.json            what decides the result, and what is to be known after a restart
    FOLDER/NOTES/SPLIT-00000.json   what a finished shard says of itself

Processes of several hosts need a file system in common. No result depends on how the work was
shared.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fasttta_jax.storage.files import StorageError, differences, write_json
from fasttta_jax.storage.sealed import read_sealed, sealed

SETTINGS_FILE = "settings.json"
NOTES_FOLDER = "shards"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A range of the items of a split, and its number among the shards of the split."""

    split: str
    index: int
    start: int
    stop: int

    @property
    def indices(self) -> range:
        """The items."""
        return range(self.start, self.stop)


def check_share(process_id: int, num_processes: int) -> None:
    """Raises ValueError where there is no process of that number."""
    if num_processes < 1:
        raise ValueError(f"num_processes is {num_processes}; allowed: 1 or more")
    if not 0 <= process_id < num_processes:
        raise ValueError(f"process_id is {process_id}; allowed: 0 to {num_processes - 1}")


MOST_SHARDS = 100_000
"""Of a split: the numbers in their names have five digits."""


class ShardedWork:
    """The plan of a piece of work, and which of its shards are done.

    Args:
      folder: of this machine; made by `start`.
      lengths: number of items of each split.
      shard_size: items of a shard: what a kill can cost, and the unit that processes share.
      settings: what decides the result, as JSON values.
      notes: folder of the notes, below `folder`.

    Raises:
      ValueError: there is no item, or a split has more than `MOST_SHARDS`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        lengths: Mapping[str, int],
        shard_size: int,
        settings: Mapping[str, Any],
        notes: str = NOTES_FOLDER,
    ) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._notes = folder / notes
        for split, length in lengths.items():
            if (count := -(-length // shard_size)) > MOST_SHARDS:
                raise ValueError(
                    f"{split} has {length} items, which are {count} shards of {shard_size}; "
                    f"allowed: {MOST_SHARDS} shards a split"
                )
        self.shards = [
            Shard(split, index, start, min(start + shard_size, length))
            for split, length in lengths.items()
            for index, start in enumerate(range(0, length, shard_size))
        ]
        if not self.shards:
            raise ValueError(f"nothing to write to {folder}: the source has no items")

    def kept(self) -> dict[str, Any] | None:
        """What `start` was given when the work began; None if it has not begun.

        Raises:
          StorageError: it began with other settings.
        """
        file = self.folder / SETTINGS_FILE
        if not file.is_file():
            return None
        found = read_sealed(file)
        self.check(found.get("made_from", {}), self.folder)
        return found.get("kept", {})

    def start(self, keep: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Begins, or goes on; `keep` are JSON values that are to be known after a restart.

        Returns:
          What is kept: `keep`, or that of the start before.

        Raises:
          StorageError: the work began with other settings.
        """
        self._notes.mkdir(parents=True, exist_ok=True)
        kept = self.kept()
        if kept is None:
            kept = dict(keep or {})
            values = {"made_from": self.settings, "kept": kept}
            write_json(self.folder / SETTINGS_FILE, sealed(values))
        return kept

    def check(self, found: Mapping[str, Any], where: pathlib.Path) -> None:
        """Raises StorageError where settings found at `where` are not these."""
        if different := differences(found, self.settings):
            raise StorageError(
                f"{where} was made from other data or with other settings: {'; '.join(different)}. "
                "Choose another folder or name, or remove it"
            )

    def of_process(self, process_id: int, num_processes: int) -> list[Shard]:
        """The shards of a process, done or not.

        Raises:
          ValueError: there is no such process.
        """
        check_share(process_id, num_processes)
        return self.shards[process_id::num_processes]

    def missing(self, process_id: int = 0, num_processes: int = 1) -> list[Shard]:
        """The shards of a process that are not done."""
        shards = self.of_process(process_id, num_processes)
        return [shard for shard in shards if not self._note(shard).is_file()]

    def note(self, shard: Shard) -> dict[str, Any] | None:
        """What a shard said of itself; None where it said nothing yet.

        Raises:
          StorageError: it was made with other settings, or is another shard's.
        """
        if not self._note(shard).is_file():
            return None
        note = read_sealed(self._note(shard))
        if note.get("made_from_sha256") != self._settings_sha256:
            raise StorageError(
                f"{self._note(shard)} was made with other settings; remove it and start again"
            )
        # Earlier versions did not say the split, and the last shard ends later where items are new.
        if (note.get("split", shard.split), note.get("start")) != (shard.split, shard.start):
            raise StorageError(
                f"{self._note(shard)} is the note of another shard; remove it and start again"
            )
        return note

    def done(self, shard: Shard, note: Mapping[str, Any]) -> None:
        """Notes that what a shard makes is written; `note` are JSON values."""
        plan = {
            "split": shard.split,
            "start": shard.start,
            "stop": shard.stop,
            "made_from_sha256": self._settings_sha256,
        }
        write_json(self._note(shard), sealed({**plan, **note}))

    def forget(self, shard: Shard) -> None:
        """Takes away the note that a shard is done, if there is one."""
        self._note(shard).unlink(missing_ok=True)

    def notes(self) -> list[dict[str, Any]] | None:
        """What all shards said, in their order; None while some are missing.

        Raises:
          StorageError: a shard was made with other settings.
        """
        if self.missing():
            return None
        found = [note for note in map(self.note, self.shards) if note is not None]
        return found if len(found) == len(self.shards) else None  # taken away meanwhile

    @functools.cached_property
    def _settings_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def _note(self, shard: Shard) -> pathlib.Path:
        return self._notes / f"{shard.split}-{shard.index:05d}.json"
