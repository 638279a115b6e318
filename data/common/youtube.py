"""Clips of YouTube videos, as AudioSet and AudioCaps list them, and what their files are called.

The audio is not distributed, so everybody's files have other names: the video's id, "Y" and the id,
and the start, or start and end, of the clip behind it, in seconds or milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from data.common.audio_files import AudioFiles
from data.common.tables import Entry


def clip_name(youtube_id: str, start: float) -> str:
    """What a clip is called in a dataset: "ID_SECONDS"."""
    return f"{youtube_id}_{start:g}"


def file_stems(youtube_id: str, start: float, end: float) -> list[str]:
    """Names without suffix that the file of a clip may have."""
    times = (
        (f"{start:g}", f"{end:g}"),
        (f"{start:.3f}", f"{end:.3f}"),
        (f"{1000 * start:.0f}", f"{1000 * end:.0f}"),
    )
    endings = ["", *(f"_{first}" for first, _ in times)]
    endings += [f"_{first}_{last}" for first, last in times]
    return [name + ending for name in (youtube_id, f"Y{youtube_id}") for ending in endings]


def locate(
    entry: Entry,
    audio: AudioFiles,
    youtube_id: str,
    start: float,
    end: float,
    *,
    also: Sequence[str] = (),
    recordings: bool = False,
) -> Entry:
    """The entry with its file put in; one that is nowhere keeps the name that it should have.

    Args:
      entry: the clip.
      audio: where to look.
      youtube_id: of the video.
      start: seconds into the video where the clip begins.
      end: and where it ends.
      also: further names that the file may have.
      recordings: files are whole videos, which the clip is to be cut out of.

    Raises:
      ValueError: several files could be meant.
    """
    entry.file = audio.find(*file_stems(youtube_id, start, end), *also) or f"{youtube_id}.wav"
    if recordings:
        entry.start, entry.duration = start, end - start
    return entry


def define_recordings_flag(values: flags.FlagValues) -> None:
    """--recordings, of the commands whose clips are parts of videos."""
    flags.DEFINE_bool(
        "recordings",
        False,
        "Files are the sound of whole videos; the clips are cut out of them. Otherwise they hold a "
        "clip each.",
        flag_values=values,
    )
