"""Published data sets are read in the layouts that they have, and what one lacks is counted."""

from __future__ import annotations

import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest
import soundfile

from data import audiocaps, audioset, clotho, wavcaps
from data.common.arguments import split_files
from data.common.provenance import captions_sha256, describe
from data.common.recordings import Files, Settings, read_clips
from data.common.records import Clip
from data.common.tables import Entry
from tests.support.sound_files import (
    contents,
    delimited,
    encoded,
    hub_rows,
    kept_metadata,
    skipped_items,
    sounds,
    tone,
)

RATE = 16_000
SETTINGS = Settings()
VALIDATION_SHA256 = "b270cb29e18d5abe0cb4c41e791945ee23ca9ecf348b3bf479a3cab115d5d820"
"""Of the captions of AudioCaps' published val.csv."""


def entries_of(files: Files) -> dict[str, Entry]:
    return {entry.id: entry for entries in files.members.values() for entry in entries}


def caption_rows(split: str) -> list[dict[str, Any]]:
    """Five captions of each of two clips in a list to test on, else one of each."""
    names = {"train": ("-aaaaaaaaaa", "bbbbbbbbbbb"), "val": ("ccccccccccc",)}[split]
    count = 1 if split == "train" else 5
    return [
        {
            "audiocap_id": str(100 * len(split) + 10 * clip + index),
            "youtube_id": name,
            "start_time": "30",
            "caption": f'sound {name}, "{index}"',
        }
        for index in range(count)
        for clip, name in enumerate(names)
    ]


def audiocaps_lists(folder: pathlib.Path) -> dict[pathlib.Path, str | None]:
    for split in ("train", "val"):
        delimited(folder / f"{split}.csv", caption_rows(split))
    return split_files("list", [f"{folder}/train.csv", f"validation={folder}/val.csv"])


@pytest.mark.parametrize(
    "name",
    [
        "{id}.wav",
        "Y{id}.flac",
        "deep/{id}_30.ogg",
        "Y{id}_30.000.wav",
        "{id}_30_40.wav",
        "{id}_30000_40000.wav",
        "{id}_30.000_40.000.wav",
        "{number}.wav",
    ],
)
def test_audiocaps_files_have_many_names(tmp_path: pathlib.Path, name: str) -> None:
    lists = audiocaps_lists(tmp_path)
    file = name.format(id="ccccccccccc", number=302)  # of the third caption
    sounds(tmp_path / "audio", file)
    found = entries_of(audiocaps.list_files(lists, tmp_path / "audio", SETTINGS))
    clip = found["ccccccccccc_30"]
    assert (clip.file, clip.split, clip.start, clip.duration) == (file, "validation", 0.0, None)
    assert clip.captions == [f'sound ccccccccccc, "{index}"' for index in range(5)]
    assert clip.columns["audiocap_id"] == [str(300 + index) for index in range(5)]
    assert found["-aaaaaaaaaa_30"].split == "train"


def test_audiocaps_is_made_of_what_is_there(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = audiocaps_lists(tmp_path)
    sounds(tmp_path / "audio", "-aaaaaaaaaa.wav", "Yccccccccccc.wav")
    dataset = audiocaps.build(lists, tmp_path / "audio", tmp_path, max_skipped_fraction=0.0)
    clips = contents(dataset)
    assert {split: list(found) for split, found in clips.items()} == {
        "train": ["-aaaaaaaaaa_30"],
        "validation": ["ccccccccccc_30"],
    }
    assert clips["validation"]["ccccccccccc_30"]["labels"]["columns"]["start_time"] == 30.0
    assert [(item["file"], item["reason"]) for item in skipped_items(dataset)] == [
        ("bbbbbbbbbbb_30", "missing")
    ]
    metadata = kept_metadata(dataset)
    assert "NAACL 2019" in metadata["source"]
    assert "academic" in metadata["licence"]
    train = metadata["listed"]["train"]
    assert (train["clips"], train["found"], train["made"]) == (2, 1, 1)
    rows = [(f"{row['youtube_id']}_30", [row["caption"]]) for row in caption_rows("train")]
    assert train["captions_sha256"] == captions_sha256(rows)
    assert train["made_captions_sha256"] == captions_sha256(rows[:1])
    assert "train: 2 listed, 1 found, 1 made" in capsys.readouterr().out
    (tmp_path / "audio" / "-aaaaaaaaaa.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"(?s)split 'train' is left without.*unreadable: 1"):
        audiocaps.build(lists, tmp_path / "audio", tmp_path, name="other")


def test_audiocaps_cuts_clips_out_of_whole_videos(tmp_path: pathlib.Path) -> None:
    lists = audiocaps_lists(tmp_path)
    soundfile.write(tmp_path / "-aaaaaaaaaa.flac", tone(440, 42.0, 8000), 8000)
    files = audiocaps.list_files(lists, tmp_path, SETTINGS, recordings=True)
    (clip,) = read_clips(entries_of(files)["-aaaaaaaaaa_30"], files.audio, SETTINGS)
    assert isinstance(clip, Clip)
    assert (clip.id, clip.audio.size) == ("-aaaaaaaaaa_30", 10 * RATE)


@pytest.mark.parametrize("publisher", ["OpenSound", "jp1924"])
def test_audiocaps_of_the_hub_has_its_audio(tmp_path: pathlib.Path, publisher: str) -> None:
    rows = []
    for index, row in enumerate(caption_rows("val")):
        audio = {"bytes": encoded(tone(440)) if index == 0 else b"", "path": "x.wav"}
        row |= {"audiocap_id": int(row["audiocap_id"]), "start_time": 30, "audio": audio}
        rows.append(row | ({"audio_length": 10} if publisher == "OpenSound" else {}))
    hub_rows(tmp_path / "validation-00000-of-00001.parquet", rows)
    lists = split_files("list", [f"{tmp_path}/validation-*.parquet"])
    files = audiocaps.list_files(lists, tmp_path, SETTINGS)
    (entry,) = files.members["validation"]
    assert (entry.id, len(entry.captions)) == ("ccccccccccc_30", 5)
    (clip,) = read_clips(entry, files.audio, Settings(level=False))  # that of the first caption
    assert isinstance(clip, Clip)
    np.testing.assert_allclose(clip.audio, tone(440), atol=2**-15)


def test_audiocaps_refuses_other_lists(tmp_path: pathlib.Path) -> None:
    delimited(tmp_path / "train.csv", [{"youtube_id": "a", "caption": "b", "audiocap_id": "1"}])
    with pytest.raises(ValueError, match=r"train\.csv:1: .* columns start_time; found"):
        audiocaps.list_files({tmp_path / "train.csv": None}, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"does not begin with a split; allowed: train, .* SPLIT="):
        audiocaps.list_files({tmp_path / "mine.csv": None}, tmp_path, SETTINGS)


def test_the_published_captions_of_validation(
    datasets: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """495 clips with five captions each, none of whose audio is there."""
    path = datasets / "audiocaps_captions" / "val.csv"
    files = audiocaps.list_files({path: None}, tmp_path, SETTINGS)
    (entries,) = files.members.values()
    assert len(entries) == 495
    assert sum(len(entry.captions) for entry in entries) == 2475 - len(files.left_out)
    skipped = [item for entry in entries for item in read_clips(entry, files.audio, SETTINGS)]
    said = describe(audiocaps.ORIGIN, files.members, skipped)["listed"]["validation"]
    assert (said["clips"], said["found"], said["made"]) == (495, 0, 0)
    assert said["skipped"] == {"missing": 495}
    assert said["captions_sha256"] == VALIDATION_SHA256
    assert said["made_captions_sha256"] == captions_sha256([])
    with pytest.raises(ValueError, match=r"'validation' is left without a record\n.*: 495"):
        audiocaps.build({path: None}, tmp_path, tmp_path / "out")


SEGMENTS = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
-0xzrMun0Rs, 30.000, 40.000, "/m/01jt3m,/m/0130jx"
--PJHxphWEs, 0.500, 8.250, "/m/09x0r"
-0xzrMun0Rs, 30.000, 40.000, "/m/01jt3m,/m/0130jx"
"""
CLASSES = 'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/01jt3m,"Sink"\n2,/m/0130jx,"Tap, old"\n'


def test_audioset_segments_have_labels_and_no_captions(tmp_path: pathlib.Path) -> None:
    names = ("unbalanced_train_segments.csv", "balanced_train_segments.csv", "eval_segments.csv")
    texts = (SEGMENTS, SEGMENTS.replace("-0x", "-1x").replace("--P", "-1P"), SEGMENTS)
    for name, text in zip(names, texts, strict=True):
        if name.startswith("eval"):
            text = text.replace("-0x", "-2x").replace("--P", "-2P")
        (tmp_path / name).write_text(text.replace("\n", "\r\n"), newline="")
    (tmp_path / "classes.csv").write_text(CLASSES)
    sounds(tmp_path / "audio", "Y-0xzrMun0Rs.wav", "-2PJHxphWEs_500_8250.wav")
    segments = split_files("segments", [str(tmp_path / name) for name in names])
    half = Settings(validation_fraction=0.5, test_fraction=0.3, with_captions=False)
    files = audioset.list_files(
        segments, tmp_path / "audio", half, class_labels=tmp_path / "classes.csv"
    )
    found = entries_of(files)
    tested = ["-2xzrMun0Rs_30", "-2PJHxphWEs_0.5"]
    assert [entry.id for entry in files.members["test"]] == tested
    assert len(found) == 6
    assert [item.reason for item in files.left_out] == ["repeated segment"] * 3
    tap = found["-0xzrMun0Rs_30"]
    assert (tap.file, tap.events, tap.captions) == ("Y-0xzrMun0Rs.wav", ["Sink", "Tap, old"], [])
    assert tap.columns["positive_labels"] == ["/m/01jt3m", "/m/0130jx"]
    assert found[tested[1]].file == "-2PJHxphWEs_500_8250.wav"
    (clip,) = read_clips(tap, files.audio, half)
    assert isinstance(clip, Clip)
    assert clip.labels["events"] == ["Sink", "Tap, old"]
    videos = audioset.list_files(segments, tmp_path / "audio", half, recordings=True)
    speech = entries_of(videos)["--PJHxphWEs_0.5"]
    assert (speech.start, speech.duration, speech.events) == (0.5, 7.75, ["/m/09x0r"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no segments"),
        ("a, 1, 2\n", r":1: is \['a', '1', '2'\]; allowed: YTID, start_seconds"),
        ("# c\na, 1, x, m\n", r":2: is \['a', '1', 'x', 'm'\]"),
        ("a, 2, 1, m\n", ":1: is from 2 to 1 s; allowed: a start before an end"),
        ('a, 1, 2, "m\n', "malformed CSV"),
        ("a, 1, 2, /m/x\n", "':1: '/m/x' is not in .*classes.csv".removeprefix("'")),
    ],
)
def test_malformed_segments_are_named(tmp_path: pathlib.Path, text: str, message: str) -> None:
    (tmp_path / "balanced.csv").write_text(text)
    (tmp_path / "classes.csv").write_text(CLASSES)
    with pytest.raises(ValueError, match=message):
        audioset.list_files(
            {tmp_path / "balanced.csv": None},
            tmp_path,
            SETTINGS,
            class_labels=tmp_path / "classes.csv",
        )


def wavcaps_dir(folder: pathlib.Path) -> pathlib.Path:
    """All four lists, FLAC files of two of them and an archive of another, two blacklists."""

    def listed(path: str, *ids: str, **more: str) -> None:
        data = [
            {"id": each, "caption": f"sound {each}", "audio": "/x", "duration": 1.0, **more}
            for each in ids
        ]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps({"num_captions_per_audio": 1, "data": data}))

    listed("json_files/AudioSet_SL/as_final.json", "Yaaaaaaaaaaa.wav", "YYbbbbbbbbbb.wav")
    listed("json_files/BBC_Sound_Effects/bbc_final.json", "07", description="a long text")
    listed("json_files/FreeSound/fsd_final.json", "7", "8", title="x", author="y")
    listed("json_files/SoundBible/sb_final.json", "7")
    banned = {"AudioSet": ["Ybbbbbbbbbb"], "FreeSound": ["8.wav"]}
    for name in ("all_ac", "test_ac"):
        path = folder / "json_files" / "blacklist" / f"blacklist_exclude_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(banned if name == "all_ac" else {"AudioSet": []}))
    sounds(folder, "AudioSet_SL_flac/Yaaaaaaaaaaa.flac", "AudioSet_SL_flac/YYbbbbbbbbbb.flac")
    sounds(folder, "FreeSound_flac/7.flac", "FreeSound_flac/8.flac", seconds=0.5)
    archive = folder / "Zip_files" / "SoundBible" / "SoundBible.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("mnt/SoundBible_flac/7.flac", encoded(tone(700)))
    return folder


def test_wavcaps_leaves_out_what_is_blacklisted_and_cuts_what_is_long(
    tmp_path: pathlib.Path,
) -> None:
    folder = wavcaps_dir(tmp_path / "WavCaps")
    dataset = wavcaps.build(
        folder, tmp_path, max_seconds=0.25, validation_fraction=0.0, test_fraction=0.0
    )
    clips = contents(dataset)["train"]
    assert list(clips) == [
        "AudioSet_SL/Yaaaaaaaaaaa",
        "FreeSound/7#0",
        "FreeSound/7#1",
        "SoundBible/7",
    ]
    columns = clips["FreeSound/7#0"]["labels"]["columns"]
    assert columns == {"source": "FreeSound", "duration": 1.0, "title": "x", "author": "y"}
    assert [(item["file"], item["reason"]) for item in skipped_items(dataset)] == [
        ("BBC_Sound_Effects/07", "missing"),
        ("AudioSet_SL/YYbbbbbbbbbb", "blacklisted"),
        ("FreeSound/8", "blacklisted"),
    ]
    metadata = kept_metadata(dataset)
    assert metadata["left_out"] == {"blacklisted": 2}
    assert metadata["listed"]["train"]["clips"] == 4


def test_wavcaps_takes_the_subsets_and_blacklists_that_are_named(tmp_path: pathlib.Path) -> None:
    folder = wavcaps_dir(tmp_path)
    every = Settings(validation_fraction=0.0, test_fraction=0.0)
    files = wavcaps.list_files(folder, every, subsets=("FreeSound",), blacklists=("test_ac",))
    assert list(entries_of(files)) == ["FreeSound/7", "FreeSound/8"]
    assert not files.left_out
    with pytest.raises(FileNotFoundError, match=r"must hold one blacklist_exclude_ub8k.*: none"):
        wavcaps.list_files(folder, every, blacklists=("ub8k_esc50_vggsound",))
    with pytest.raises(ValueError, match=r"blacklist is 'all'; allowed: all_ac, test_ac, ub8k"):
        wavcaps.list_files(folder, every, blacklists=("all",))
    (folder / "json_files/blacklist/blacklist_exclude_all_ac.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"is not a blacklist: .* by AudioSet and FreeSound"):
        wavcaps.list_files(folder, every)
    with pytest.raises(FileNotFoundError, match=r"holds none of as_final\.json"):
        wavcaps.list_files(folder / "FreeSound_flac", every)


def test_clotho_has_five_captions_and_licences_by_clip(tmp_path: pathlib.Path) -> None:
    splits = {"development": "Wind — 1.wav", "validation": "b.wav", "evaluation": "c, d.wav"}
    for split, name in splits.items():
        row = {"file_name": name} | {f"caption_{i}": f"{split} {i}" for i in range(1, 6)}
        delimited(tmp_path / f"clotho_captions_{split}.csv", [row])
        sounds(tmp_path, f"{split}/{name}", rate=44_100)
    metadata = 'file_name,keywords,sound_id,license\r\nWind — 1.wav,"wind;\nbird",17,CC BY\r\n'
    path = tmp_path / "clotho_metadata_development.csv"
    path.write_bytes(metadata.encode("cp1252"))
    dataset = clotho.build(tmp_path, tmp_path / "out")
    clips = contents(dataset)
    assert {split: list(found) for split, found in clips.items()} == {
        "train": ["Wind — 1.wav"],
        "validation": ["b.wav"],
        "test": ["c, d.wav"],
    }
    wind = clips["train"]["Wind — 1.wav"]
    assert wind["captions"] == [f"development {i}" for i in range(1, 6)]
    columns = {"keywords": "wind;\nbird", "sound_id": "17", "license": "CC BY"}
    assert wind["labels"] == {"columns": columns}
    assert wind["audio"].size == pytest.approx(0.2 * RATE, abs=1)
    assert kept_metadata(dataset)["licences"] == {"CC BY": 1}
    with pytest.raises(FileNotFoundError, match=r"holds no clotho_captions_SPLIT\.csv"):
        clotho.list_files(tmp_path / "development", SETTINGS)


def clotho_of(folder: pathlib.Path, metadata: bytes) -> Files:
    """The clips of a folder with one of them and its metadata."""
    row = {"file_name": "a.wav"} | {f"caption_{i}": str(i) for i in range(1, 6)}
    delimited(folder / "clotho_captions_development.csv", [row])
    (folder / "clotho_metadata_development.csv").write_bytes(metadata)
    return clotho.list_files(folder, SETTINGS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_clotho_metadata_is_read_in_every_encoding(tmp_path: pathlib.Path, encoding: str) -> None:
    text = 'keywords , file_name\r\n"café, ""bar"";\r\nrain",a.wav\r\n\r\nwind, b.wav\r\n'
    (clip,) = clotho_of(tmp_path, text.encode(encoding)).members["train"]
    assert clip.columns == {"keywords": 'café, "bar";\r\nrain'}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"name,keywords\na.wav,wind\n", "1: needs exactly one of the columns file_name; found"),
        (b"file_name,keywords\na.wav,wind, rain\n", "2: has 3 fields, but the header has 2"),
        (b"file_name,keywords\na.wav\n", "2: has 1 fields, but the header has 2"),
        (b'file_name,keywords\na.wav,"wind\n', "2: malformed CSV"),
        (b"file_name,keywords\na.wav,wind\n ,rain\n", "3: file_name is ' '; it must name"),
        (b"file_name,keywords\na.wav,caf\xe9 \x81\n", r"2: is not cp1252 text: '\\udc81'"),
        (b"file_name,keywords\n", " has no rows"),
    ],
)
def test_malformed_clotho_metadata_is_named_by_line(
    tmp_path: pathlib.Path, metadata: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"clotho_metadata_development\.csv:{message}"):
        clotho_of(tmp_path, metadata)
