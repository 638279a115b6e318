"""Public manifests are taken as they are, and a clip is what its row says of its file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest
import soundfile

from data import manifest
from data.common import provenance
from data.common.arguments import split_files
from data.common.audio_files import AudioFiles
from data.common.recordings import Files, Settings, read_clips
from data.common.records import Clip
from data.common.tables import MANIFEST, Entry, Skipped
from fasttta_jax.audio.files import AudioError, read_audio
from tests.support.sound_files import (
    contents,
    delimited,
    encoded,
    hub_rows,
    json_lines,
    kept_metadata,
    skipped_items,
    sounds,
    tone,
)

RATE = 16_000
SETTINGS = Settings(level=False)
TWO = ("a dog barks", 'he says "no", twice')


def listed(table: pathlib.Path, audio_dir: pathlib.Path, **changes: Any) -> list[Entry]:
    files = manifest.list_files({table: "train"}, audio_dir, SETTINGS, **changes)
    return list(files.members["train"])


def audioldm_training(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"wav": "x/a.wav", "caption": text, "labels": "/m/0b", "seg_label": ""} for text in TWO]
    (folder / "list.json").write_text(json.dumps({"data": [*rows, {**rows[0], "wav": "x/b.wav"}]}))
    return folder / "list.json"


def tango(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"dataset": "audiocaps", "location": "x/a.wav", "captions": text} for text in TWO]
    json_lines(folder / "list.json", [*rows, {**rows[0], "location": "x/b.wav"}])
    return folder / "list.json"


def soundctm(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"file_name": "x/a.wav", "caption": text} for text in TWO]
    delimited(folder / "list.csv", [*rows, {"file_name": "x/b.wav", "caption": TWO[0]}])
    return folder / "list.csv"


def audiolcm(folder: pathlib.Path) -> pathlib.Path:
    rows = [
        {
            "name": f"{index}",
            "dataset": "audiocaps",
            "ori_cap": text,
            "mel_path": "x/a.npy",
            "caption": "<dog bark& start>",
            "audio_path": f"/theirs/x/{name}.wav",
        }
        for index, (name, text) in enumerate([("a", TWO[0]), ("a", TWO[1]), ("b", TWO[0])])
    ]
    delimited(folder / "list.tsv", rows, "\t")
    return folder / "list.tsv"


def meanaudio(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"id": name, "caption": text} for name, text in (("a", TWO[0]), ("a", TWO[1]))]
    delimited(folder / "list.tsv", [*rows, {"id": "b", "caption": TWO[0]}], "\t")
    return folder / "list.tsv"


def numbered(folder: pathlib.Path) -> pathlib.Path:
    row = {"file_name": "x/a.wav", "caption_1": TWO[0], "caption_2": TWO[1]}
    json_lines(folder / "list.jsonl", [row, {"file_name": "x/b.wav", "caption_1": TWO[0]}])
    return folder / "list.jsonl"


def plain_parquet(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"path": "x/a.wav", "captions": list(TWO)}, {"path": "x/b.wav", "captions": [TWO[0]]}]
    hub_rows(folder / "list.parquet", rows)
    return folder / "list.parquet"


LAYOUTS = {
    layout.__name__: layout
    for layout in (
        audioldm_training,
        tango,
        soundctm,
        audiolcm,
        meanaudio,
        numbered,
        plain_parquet,
    )
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_are_read_as_they_are(tmp_path: pathlib.Path, layout: str) -> None:
    sounds(tmp_path, "x/a.wav", "x/b.wav")
    table = LAYOUTS[layout](tmp_path)
    prefix = "/theirs" if layout == "audiolcm" else ""
    a, b = listed(table, tmp_path, path_prefix=prefix)
    assert (a.file, a.captions) == ("x/a.wav", list(TWO))
    assert (b.file, b.captions) == ("x/b.wav", [TWO[0]])
    assert (a.id, b.id) == (("a", "b") if layout == "meanaudio" else ("x/a.wav", "x/b.wav"))
    assert a.columns.get("dataset") == ("audiocaps" if layout in ("tango", "audiolcm") else None)


def test_renamed_columns_are_named_by_flags(tmp_path: pathlib.Path) -> None:
    sounds(tmp_path, "a.wav", seconds=0.6)
    row = {"clip": "a.wav", "text_en": "rain", "path": "elsewhere", "from": "0.1", "for": "0.2"}
    delimited(tmp_path / "list.csv", [row])
    columns = dataclasses.replace(
        MANIFEST, file=(("clip",),), caption=(("text_en",),), start="from", duration="for"
    )
    (entry,) = listed(tmp_path / "list.csv", tmp_path, columns=columns)
    assert (entry.id, entry.captions) == ("a.wav@0.1-0.3", ["rain"])
    assert entry.columns == {"path": "elsewhere"}
    with pytest.raises(ValueError, match=r"list\.csv:1: .* caption, captions, text; found .* clip"):
        listed(tmp_path / "list.csv", tmp_path)


def test_a_part_of_a_file_is_that_part(tmp_path: pathlib.Path) -> None:
    """In FLAC, WAV and MP3 what a slice of the whole file holds; and cut where the file ends."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(RATE)
    for suffix in ("flac", "wav"):
        soundfile.write(tmp_path / f"a.{suffix}", noise, RATE)
        whole = read_audio(tmp_path / f"a.{suffix}", RATE)
        part = read_audio(tmp_path / f"a.{suffix}", RATE, start=0.25, duration=0.5)
        np.testing.assert_array_equal(part, whole[RATE // 4 : 3 * RATE // 4])
        rest = read_audio(tmp_path / f"a.{suffix}", RATE, start=0.25)
        np.testing.assert_array_equal(rest, whole[RATE // 4 :])
    with pytest.raises(AudioError, match=r"empty: it ends at 1 s, before 1\.5 s"):
        read_audio(tmp_path / "a.wav", RATE, start=1.5)


def made(folder: pathlib.Path, table: pathlib.Path, **options: Any) -> pathlib.Path:
    return manifest.build({table: None}, folder, folder / "out", name="sounds", **options)


def test_parts_stereo_and_other_rates_become_clips(tmp_path: pathlib.Path) -> None:
    rate = 44_100
    stereo = np.stack([tone(440, 1.0, rate), tone(440, 1.0, rate)], 1)
    soundfile.write(tmp_path / "a.flac", stereo, rate)
    sounds(tmp_path, "b.wav")
    rows = [
        {"path": "a.flac", "caption": "first", "split": "train", "start": 0.0, "duration": 0.5},
        {"path": "a.flac", "caption": "second", "split": "train", "start": 0.5, "duration": 0.4},
        {"path": "a.flac", "caption": "again", "split": "train", "start": 0.5, "duration": 0.4},
        {"path": "a.flac", "caption": "the end", "split": "train", "start": 0.75, "duration": 1},
        {"path": "a.flac", "caption": "beyond", "split": "train", "start": 2, "duration": 1},
        {"path": "b.wav", "caption": "whole", "split": "train"},
        {"path": "c.wav", "caption": "absent", "split": "val"},
        {"path": "b.wav", "caption": "again", "split": "val", "start": 0.05},
    ]
    json_lines(tmp_path / "list.jsonl", rows)
    dataset = made(
        tmp_path,
        tmp_path / "list.jsonl",
        max_skipped_fraction=0.5,
        origin=provenance.Provenance("a friend", "CC0"),
    )
    clips = contents(dataset)
    lengths = {name: len(clip["audio"]) / RATE for name, clip in clips["train"].items()}
    assert lengths == {
        "a.flac@0-0.5": 0.5,
        "a.flac@0.5-0.9": 0.4,
        "a.flac@0.75-1.75": 0.25,
        "b.wav": 0.2,
    }
    assert clips["train"]["a.flac@0.5-0.9"]["captions"] == ["second", "again"]
    assert list(clips["validation"]) == ["b.wav@0.05-"]
    assert [(item["file"], item["reason"]) for item in skipped_items(dataset)] == [
        ("a.flac@0.75-1.75", "ends early"),
        ("a.flac@2-3", "empty"),
        ("c.wav", "missing"),
    ]
    metadata = kept_metadata(dataset)
    assert metadata["skipped_files"] == {"empty": 1, "missing": 1}
    assert metadata["left_out"] == {"ends early": 1}
    assert (metadata["source"], metadata["licence"]) == ("a friend", "CC0")
    train, validation = metadata["listed"]["train"], metadata["listed"]["validation"]
    assert (train["clips"], train["captions"], train["found"], train["made"]) == (5, 6, 5, 4)
    assert (validation["found"], validation["skipped"]) == (1, {"missing": 1})
    held = [(name, clip["captions"]) for name, clip in clips["train"].items()]
    assert train["made_captions_sha256"] == provenance.captions_sha256(held)
    assert train["captions_sha256"] != train["made_captions_sha256"]


def test_the_hash_of_captions_is_of_the_set_of_pairs() -> None:
    one = provenance.captions_sha256([("b", ["y", "x"]), ("a", ["z"])])
    assert one == provenance.captions_sha256([("a", ["z"]), ("b", ["x", "y", "x"])])
    assert one != provenance.captions_sha256([("a", ["x"]), ("b", ["z", "y"])])
    # Sorted JSON pairs, a line each.
    assert provenance.captions_sha256([("é", ['"'])]) == (
        hashlib.sha256('["é", "\\""]\n'.encode()).hexdigest()
    )


def clip_of(files: Files, entry: Entry) -> Clip | Skipped:
    (found,) = read_clips(entry, files.audio, SETTINGS)
    return found


def test_files_embedded_in_parquet_are_read_by_row(tmp_path: pathlib.Path) -> None:
    tones = [tone(300 + 40 * index) for index in range(5)]
    rows = [
        {"audio": {"bytes": encoded(each), "path": f"{index}.flac"}, "caption": f"tone {index}"}
        for index, each in enumerate(tones)
    ]
    hub_rows(tmp_path / "train-0.parquet", rows)
    hub_rows(tmp_path / "train-1.parquet", [{**rows[0], "audio": {"bytes": None, "path": "x"}}])
    tables = split_files("manifest", [f"train={tmp_path}/train-*.parquet"])
    assert list(tables.values()) == ["train", "train"]
    files = manifest.list_files(tables, tmp_path, SETTINGS)
    entries = files.members["train"]
    for index in (4, 0, 2, 1, 3):  # in any order, from groups of two rows
        clip = clip_of(files, entries[index])
        assert isinstance(clip, Clip)
        assert (clip.id, clip.captions) == (f"train-0.parquet::{index}", [f"tone {index}"])
        np.testing.assert_allclose(clip.audio, tones[index], atol=2**-15)
    absent = clip_of(files, entries[5])
    assert isinstance(absent, Skipped)
    assert (absent.file, absent.reason) == ("train-1.parquet::0", "missing")


def test_members_of_archives_are_files(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/in/one.flac", encoded(tone()))
        archive.writestr("__MACOSX/one.flac", b"")
        archive.writestr("notes.txt", "no audio")
    sounds(tmp_path, "two.wav", ".hidden/three.wav")
    audio = AudioFiles(tmp_path)
    assert audio.names == ["a.zip::deep/in/one.flac", "two.wav"]
    assert audio.find("one") == "a.zip::deep/in/one.flac"
    assert audio.find("three", "one.flac") is None
    np.testing.assert_allclose(audio.read(audio.names[0], RATE), tone(), atol=2**-15)
    assert audio.size(audio.names[0]) == len(encoded(tone()))
    for gone in ("a.zip::one.flac", "b.zip::one.flac", "three.wav"):
        assert audio.size(gone) is None
        with pytest.raises(AudioError, match="missing"):
            audio.read(gone, RATE)
    sounds(tmp_path, "elsewhere/one.wav")
    with pytest.raises(ValueError, match=r"more than one file for 'one': a\.zip::deep/in/one"):
        AudioFiles(tmp_path).find("one")
    (tmp_path / "parts.zip").write_bytes(b"PK half of an archive")
    with pytest.raises(ValueError, match=r"parts\.zip cannot be read .*`zip -s 0 parts\.zip"):
        AudioFiles(tmp_path).find("one")


MALFORMED = {
    "a number as start": ("start", "soon", r":2: start is 'soon'; allowed: seconds from 0"),
    "before the start": ("start", "-1", r":2: start is '-1'"),
    "nothing lasts": ("duration", "0", r":2: duration is 0; allowed: above 0"),
    "endless": ("duration", "inf", r":2: duration is 'inf'"),
    "elsewhere": ("path", "/theirs/a.wav", r":2: path '/theirs/a.wav' is not .*--path_prefix"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_rows_are_named(tmp_path: pathlib.Path, case: str) -> None:
    column, value, message = MALFORMED[case]
    row = {"path": "a.wav", "caption": "x", "start": "0", "duration": "1", column: value}
    delimited(tmp_path / "list.csv", [row])
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / "list.csv", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.json",
            '{"rows": []}',
            "allowed: a list of JSON objects, an object with",
        ),
        ("a.json", '[{"path": 1}, 2]', r"a\.json:1: needs exactly one .* caption"),
        ("a.json", "[1]", r"a\.json:1: '1' is not a JSON object"),
        ("a.json", '{"path": ', r"a\.json:1: malformed JSON"),
        ("a.json", "[" * 100_000, r"a\.json: malformed JSON: .*recursion"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: malformed JSON: .*recursion"),
        ("a.json", "[]", "has no rows"),
        ("a.parquet", "PAR1", r"a\.parquet cannot be read as parquet"),
        ("a.txt", "", r"ends in '\.txt'; allowed: \.csv, \.tsv, \.jsonl, \.json, \.parquet"),
        ("a.tsv", 'path\tcaption\na\t"b\n', r"a\.tsv:2: malformed TSV"),
    ],
)
def test_malformed_files_are_named(
    tmp_path: pathlib.Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / name, tmp_path)


def test_manifests_are_files_of_a_split(tmp_path: pathlib.Path) -> None:
    for name in ("b.csv", "a.csv", "c=d.csv"):
        (tmp_path / name).touch()
    parse = functools.partial(split_files, "manifest")
    a, b, c = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c=d.csv"
    assert parse([f"val={a}", str(b), str(c)]) == {a: "validation", b: None, c: None}
    assert list(parse([f"{tmp_path}/[ab].csv"])) == [a, b]
    with pytest.raises(ValueError, match=r"names .*a\.csv twice"):
        parse([str(a), f"train={a}"])
    with pytest.raises(ValueError, match=r"there is no such file; allowed: FILE or SPLIT=FILE"):
        parse([f"trian={a}"])


def test_a_clip_is_in_one_split(tmp_path: pathlib.Path) -> None:
    sounds(tmp_path, "a.wav")
    for name in ("one", "two"):
        delimited(tmp_path / f"{name}.csv", [{"path": "a.wav", "caption": name}])
    tables = {tmp_path / "one.csv": "train", tmp_path / "two.csv": "test"}
    with pytest.raises(ValueError, match=r"two\.csv:2: split of 'a\.wav' is 'test', but 'tr"):
        manifest.list_files(tables, tmp_path, SETTINGS)
    parts = [{"path": "a.wav", "caption": "x", "start": 0.1 * i, "duration": 1} for i in range(9)]
    json_lines(tmp_path / "parts.jsonl", parts)
    halves = Settings(validation_fraction=0.4, test_fraction=0.4)
    files = manifest.list_files({tmp_path / "parts.jsonl": None}, tmp_path, halves)
    assert [len(entries) for entries in files.members.values()] == [9]  # of one file
