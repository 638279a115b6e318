"""Where clips go: a sound file each, or shards of them as tar files or ArrayRecord.

    files          NAME.wav, in folders of a thousand (00000/NAME.wav) where there are more
    tar            clips-00000.tar of NAME.wav and NAME.json, as WebDataset reads it
    array_record   clips-00000.array_record, a msgpack map a record: {"__key__": NAME, "wav": the
                   sound file, "json": its row of the manifest}

Every file and every shard is whole or absent.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import io
import json
import pathlib
import tarfile
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

import msgpack
import numpy as np
from jaxtyping import Float

from fasttta_jax.audio.files import AudioFormat, Tags, check_format, encode_audio
from fasttta_jax.audio.loudness import Level, check_length
from fasttta_jax.codecs import Codec
from fasttta_jax.config.checks import check, check_choice
from fasttta_jax.generation.decoding_figure import decoding_png
from fasttta_jax.generation.names import NameTemplate
from fasttta_jax.generation.pipeline import Clip
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.storage.files import write_atomically
from fasttta_jax.storage.record_writer import RecordWriter
from fasttta_jax.storage.whole import remove_leftovers, whole

KEEP_LEVEL = Level()
DEFAULT_NAME = NameTemplate()

Store = Literal["files", "tar", "array_record"]

CLIPS_PER_SHARD = {"files": 256, "tar": 1024, "array_record": 1024}
CLIPS_PER_FOLDER = 1000
DECODING = "_decoding"
"""Behind the name of a clip, its picture of how decoding filled it in."""


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Where and how clips are written.

    Attributes:
      out: the folder; it is made where it is missing.
      store: sound files, or shards.
      format: of the sounds.
      level: that every clip is brought to.
      name: of a clip.
      pictures: beside every sound file a PNG of its mel spectrogram, and one of how decoding filled
        it in for clips with states.
      clips_per_shard: clips of a shard: what processes share, and what a kill can cost where a
        shard is a file; None for `CLIPS_PER_SHARD`.

    Raises:
      ValueError: a value is not allowed, or two do not go together.
    """

    out: str
    store: Store = "files"
    format: AudioFormat = "wav"
    level: Level = KEEP_LEVEL
    name: NameTemplate = DEFAULT_NAME
    pictures: bool = False
    clips_per_shard: int | None = None

    def __post_init__(self) -> None:
        check_choice("store", self.store, Store)
        check_choice("format", self.format, AudioFormat)
        check(self.shard_size >= 1, "clips_per_shard", self.clips_per_shard, "1 or more")
        if self.pictures and self.store != "files":
            raise ValueError(f"--pictures and --store={self.store}: pictures go with --store=files")

    @property
    def shard_size(self) -> int:
        """Clips of a shard."""
        given = self.clips_per_shard
        return CLIPS_PER_SHARD[self.store] if given is None else given

    def check_sound(self, num_samples: int, sample_rate: int) -> None:
        """Raises ValueError where sounds of this length or rate cannot be written as wanted."""
        check_format(self.format, sample_rate)
        if self.level.lufs is not None:
            check_length(num_samples, sample_rate)

    def settings(self) -> dict[str, Any]:
        """What decides the content of the folder, as JSON values."""
        return {
            "store": self.store,
            "format": self.format,
            "name": self.name.text,
            "pictures": self.pictures,
            "clips_per_shard": self.shard_size,
            **dataclasses.asdict(self.level),
        }


@dataclasses.dataclass(frozen=True)
class Finished:
    """A clip as it is written.

    Attributes:
      name: without an ending.
      sound: the sound file.
      row: of the manifest.
      pictures: PNGs by what is put behind the name.
    """

    name: str
    sound: bytes
    row: Mapping[str, Any]
    pictures: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def finish(
    clip: Clip, name: str, row: Mapping[str, Any], config: OutputConfig, codec: Codec, tags: Tags
) -> Finished:
    """The files of a clip, at its level.

    Args:
      clip: that was made.
      name: see `NameTemplate`.
      row: what the manifest says of it, beside `gain_db` where there is a gain.
      config: format, level and pictures.
      codec: renders the states of decoding.
      tags: of the sound file.
    """
    audio, gain = config.level.apply(clip.audio, clip.sample_rate)
    row = {**row, **({"gain_db": round(gain, 2)} if gain else {})}
    sound = encode_audio(audio, clip.sample_rate, config.format, tags)
    pictures = _pictures(clip, audio, codec) if config.pictures else {}
    return Finished(name, sound, row, pictures)


def _pictures(clip: Clip, audio: Float[np.ndarray, " S"], codec: Codec) -> dict[str, bytes]:
    title = textwrap.shorten(clip.prompt, 60, placeholder=" ...")
    found = {"": spectrogram_png(audio, clip.sample_rate, title)}
    if clip.states is not None:
        found[DECODING] = decoding_png(clip.states, clip.known, codec, title)
    return found


class Shard(contextlib.AbstractContextManager["Shard"]):
    """Takes the clips of a shard; on leaving it without an error, all of it is written.

    Attributes:
      keeps: whether what was added is there to stay, before the end of the shard.
    """

    keeps = True

    @abc.abstractmethod
    def add(self, clip: Finished) -> dict[str, Any]:
        """Writes a clip; returns what the manifest says of where it is.

        Raises:
          OSError: it cannot be written.
        """

    def __exit__(self, *error: object) -> None:
        return None


class FilesShard(Shard):
    """Clips as files of their own.

    Args:
      out: the folder.
      ending: of the sound files.
      in_folders: whether they are in folders of `CLIPS_PER_FOLDER`.
    """

    def __init__(self, out: pathlib.Path, ending: str, in_folders: bool) -> None:
        self.out, self.ending, self.in_folders = out, ending, in_folders

    def add(self, clip: Finished) -> dict[str, Any]:
        """See `Shard`; may be called by several threads."""
        folder = f"{clip.row['index'] // CLIPS_PER_FOLDER:05d}/" if self.in_folders else ""
        file = f"{folder}{clip.name}.{self.ending}"
        for suffix, picture in clip.pictures.items():
            write_atomically(self.out / f"{folder}{clip.name}{suffix}.png", picture)
        write_atomically(self.out / file, clip.sound)
        return {"file": file}


class FileShard(Shard):
    """A shard that is one file."""

    keeps = False

    def __init__(self, path: pathlib.Path, ending: str) -> None:
        self.path, self.ending = path, ending
        remove_leftovers(path.parent, path.name)
        self._stack = contextlib.ExitStack()
        self._open(self._stack.enter_context(whole(path)))

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @abc.abstractmethod
    def _open(self, temporary: pathlib.Path) -> None:
        """Opens the file, and leaves to `_stack` to close it."""


class TarShard(FileShard):
    """Two members a clip, the sound and its row; equal clips give equal bytes."""

    def _open(self, temporary: pathlib.Path) -> None:
        tar = tarfile.TarFile(temporary, "w", format=tarfile.GNU_FORMAT)
        self._tar = self._stack.enter_context(tar)

    def add(self, clip: Finished) -> dict[str, Any]:
        """See `Shard`."""
        row = json.dumps(dict(clip.row), ensure_ascii=False).encode()
        for ending, content in ((self.ending, clip.sound), ("json", row)):
            member = tarfile.TarInfo(f"{clip.name}.{ending}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        return {"file": f"{clip.name}.{self.ending}", "shard": self.path.name}


class ArrayRecordShard(FileShard):
    """A record a clip."""

    def _open(self, temporary: pathlib.Path) -> None:
        self._writer = self._stack.enter_context(RecordWriter(temporary))

    def add(self, clip: Finished) -> dict[str, Any]:
        """See `Shard`."""
        record = {"__key__": clip.name, self.ending: clip.sound, "json": dict(clip.row)}
        packed: Any = msgpack.packb(record)
        self._writer.write(packed)
        return {"file": f"{clip.name}.{self.ending}", "shard": self.path.name}


def open_shard(config: OutputConfig, index: int, num_clips: int) -> Shard:
    """What takes the clips of shard `index`; a file of it that is there is replaced."""
    out = pathlib.Path(config.out)
    if config.store == "files":
        return FilesShard(out, config.format, num_clips > CLIPS_PER_FOLDER)
    kind = TarShard if config.store == "tar" else ArrayRecordShard
    return kind(out / f"clips-{index:05d}.{config.store}", config.format)


def remove_clip(out: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Removes what a row of the manifest names: its files, or the shard that holds it."""
    file = out / row.get("shard", row["file"])
    file.unlink(missing_ok=True)
    for suffix in ("", DECODING):
        file.with_name(f"{file.stem}{suffix}.png").unlink(missing_ok=True)
