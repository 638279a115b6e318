"""A folder of audio becomes a dataset that holds all of it, or says what it left out and why."""

import collections
import json
import os
import pathlib
import time

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from data import folder
from data.common import recordings
from tests.support import commands
from tests.support.sound_files import contents, kept_metadata, skipped_items, tone

RATE = 16_000


@pytest.fixture(autouse=True, scope="module")
def _quiet_tfds():
    tfds.disable_progress_bar()


def make(audio_dir: pathlib.Path, *files: str) -> pathlib.Path:
    for index, file in enumerate(files):
        (audio_dir / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio_dir / file, tone(300 + 10 * index), RATE)
    return audio_dir


def write_jsonl(path: pathlib.Path, *records: dict) -> pathlib.Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


CSV = """file,caption,split,events,place
a.wav,a dog barks,train,dog; cat,yard
b.wav,"rain, heavy rain",val,rain,roof
a.wav,собака лает,train,dog,
sub/c.wav,狗在叫,TEST,,
"""
RECORDS = (
    {"captions": ["a dog barks", "собака лает"], "split": "train", "events": ["dog", "cat"]},
    {"captions": "rain, heavy rain", "split": "validation", "events": "rain", "place": "roof"},
    {"captions": ["狗在叫"], "split": "test", "events": [], "place": ""},
)


def test_csv_and_jsonl_make_the_same_dataset(tmp_path):
    audio_dir = make(tmp_path / "audio", "a.wav", "b.wav", "sub/c.wav")
    (audio_dir / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    from_csv = folder.build(audio_dir, tmp_path, name="from_csv")
    files = ("a.wav", str(audio_dir / "b.wav"), "./sub/../sub/c.wav")
    rows = [{"path": file, **record} for file, record in zip(files, RECORDS, strict=True)]
    rows[0]["place"] = ["yard", ""]
    table = write_jsonl(tmp_path / "table.jsonl", *rows)
    from_jsonl = folder.build(audio_dir, tmp_path, name="from_jsonl", metadata=table)

    found, other = contents(from_csv), contents(from_jsonl)
    np.testing.assert_equal(found, other)
    assert {split: list(clips) for split, clips in found.items()} == {
        "train": ["a.wav"],
        "validation": ["b.wav"],
        "test": ["sub/c.wav"],
    }
    dog = found["train"]["a.wav"]
    assert dog["captions"] == ["a dog barks", "собака лает"]
    assert dog["labels"] == {"columns": {"place": ["yard", ""]}, "events": ["dog", "cat"]}
    assert found["test"]["sub/c.wav"]["captions"] == ["狗在叫"]
    assert found["test"]["sub/c.wav"]["labels"] == {"columns": {"place": ""}}
    assert kept_metadata(from_csv)["sample_rate"] == RATE
    assert (from_csv / "skipped.jsonl").read_text() == ""


def test_levels(tmp_path):
    audio_dir = tmp_path / "audio"
    audio_dir.mkdir()
    soundfile.write(audio_dir / "quiet.wav", tone() + 0.1, RATE, "FLOAT")
    soundfile.write(audio_dir / "loud.wav", 10 * tone(), RATE, "FLOAT")
    write_jsonl(
        audio_dir / "metadata.jsonl",
        *({"file": f"{name}.wav", "caption": "x", "split": "train"} for name in ("quiet", "loud")),
    )
    for level, quiet, loud in ((True, 0.5, 0.5), (False, 0.4, 1.0)):
        dataset = folder.build(audio_dir, tmp_path, name=f"level_{level}".lower(), level=level)
        train = contents(dataset)["train"]
        for name, peak in (("quiet", quiet), ("loud", loud)):
            found = np.abs(train[f"{name}.wav"]["audio"].astype(int)).max() / 32767
            assert found == pytest.approx(peak, abs=1e-3)


def _settings(**changes) -> recordings.Settings:
    values = {
        "sample_rate": RATE,
        "min_seconds": 0.1,
        "max_seconds": 60.0,
        "validation_fraction": 0.05,
        "test_fraction": 0.1,
        "seed": 0,
        "level": True,
        "with_captions": True,
    }
    return recordings.Settings(**{**values, **changes})


def test_splits_have_the_asked_shares_and_depend_on_seed_and_name_alone():
    files = [f"sub/{index}.wav" for index in range(4000)]
    splits = [recordings.assign_split(file, _settings()) for file in files]
    counts = collections.Counter(splits)
    assert counts["test"] / 4000 == pytest.approx(0.1, abs=0.02)  # four deviations
    assert counts["validation"] / 4000 == pytest.approx(0.05, abs=0.015)
    assert splits != [recordings.assign_split(file, _settings(seed=1)) for file in files]
    wider = [recordings.assign_split(file, _settings(test_fraction=0.2)) for file in files]
    assert all(new == "test" for old, new in zip(splits, wider, strict=True) if old == "test")
    assert recordings.assign_split("sub/7.wav", _settings(seed=3)) == "train"  # on every platform


def test_added_rows_move_no_other_file(tmp_path):
    files = [f"{index}.wav" for index in range(30)]
    audio_dir = make(tmp_path / "audio", *files)
    where = []
    for count, name in ((20, "first"), (30, "second")):
        rows = ({"file": file, "caption": "x"} for file in files[:count])
        table = write_jsonl(tmp_path / f"{name}.jsonl", *rows)
        dataset = folder.build(
            audio_dir,
            tmp_path,
            name=name,
            metadata=table,
            validation_fraction=0.3,
            test_fraction=0.3,
        )
        where.append({id: split for split, clips in contents(dataset).items() for id in clips})
    assert len(where[1]) == 30
    assert where[0].items() <= where[1].items()


def test_audio_without_captions_needs_no_table(tmp_path):
    files = [f"{'sub/' if index % 2 else ''}{index:02d}.wav" for index in range(24)]
    audio_dir = make(tmp_path / "audio", *files)
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.2}
    one, other = (
        folder.build(audio_dir, tmp_path, name=name, with_captions=False, **fractions)
        for name in ("one", "other")
    )
    found = contents(one)
    np.testing.assert_equal(found, contents(other))
    expected = {file: recordings.assign_split(file, _settings(**fractions)) for file in files}
    assert {clip: split for split, clips in found.items() for clip in clips} == expected
    for clips in found.values():
        assert list(clips) == sorted(clips)
        assert all(clip["captions"] == [] for clip in clips.values())

    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "here").symlink_to(audio_dir)
    linked = folder.build(tmp_path / "linked", tmp_path, name="through", with_captions=False)
    clips = {clip for clips in contents(linked).values() for clip in clips}
    assert clips == {f"here/{file}" for file in files}

    rows = ({"file": file, "caption": "x", "split": "train", "events": "dog"} for file in files[:2])
    write_jsonl(audio_dir / "metadata.jsonl", *rows)
    with pytest.raises(ValueError, match="metadata_sha256 is None there"):
        folder.build(audio_dir, tmp_path, name="one", with_captions=False, **fractions)
    table = contents(folder.build(audio_dir, tmp_path, name="table", with_captions=False))
    assert table["train"].keys() == set(files[:2])
    for clip in table["train"].values():
        assert clip["captions"] == []
        assert clip["labels"] == {"columns": {}, "events": ["dog"]}
    with pytest.raises(ValueError, match="with_captions is False there and True here"):
        folder.build(audio_dir, tmp_path, name="table")


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_few_files_fill_as_many_splits_as_they_can(count):
    """Training has a clip first, then validation, then testing; more files move none of these."""
    for seed in range(20):
        names = [f"{index}.wav" for index in range(count)]
        splits = recordings._assign_splits(names, _settings(seed=seed))
        assert sorted(splits) == sorted(names)
        assert set(splits.values()) == set(("train", "validation", "test")[:count])
        without = _settings(seed=seed, validation_fraction=0.0, test_fraction=0.0)
        assert set(recordings._assign_splits(names, without).values()) == {"train"}


def test_a_split_that_stays_empty_is_told_by_the_first_command(tmp_path, capsys):
    audio_dir = make(tmp_path / "audio", "a.wav")
    folder.build(audio_dir, tmp_path, name="sounds", with_captions=False)
    said = capsys.readouterr().out
    assert "made from 1 of 1 files (1 train)" in said
    assert "the validation split is empty, and train.py needs one: add clips" in said
    assert "the test split is empty, and eval.py needs one" in said


def test_a_name_in_an_old_encoding_is_skipped_and_named(tmp_path):
    files = [f"{index:02d}.wav" for index in range(12)]
    audio_dir = make(tmp_path / "audio", *files)
    (audio_dir / "03.wav").rename(audio_dir / os.fsdecode(b"caf\xe9.wav"))
    dataset = folder.build(audio_dir, tmp_path, name="sounds", with_captions=False)
    assert {clip for clips in contents(dataset).values() for clip in clips} == {
        file for file in files if file != "03.wav"
    }
    (skipped,) = skipped_items(dataset)
    assert (skipped["file"], skipped["reason"]) == ("caf\\xe9.wav", "name is not UTF-8")


def test_long_clips_are_cut_into_pieces_that_join_again(tmp_path):
    audio_dir = tmp_path / "audio"
    audio_dir.mkdir()
    noise = 0.2 * np.random.default_rng(0).standard_normal(RATE * 5 // 2)
    gap = np.concatenate([noise[:RATE], np.zeros(RATE), noise[:RATE]])
    for name, audio in (("long", noise), ("exact", noise[:RATE]), ("gap", gap)):
        soundfile.write(audio_dir / f"{name}.flac", audio, RATE)
    write_jsonl(
        audio_dir / "metadata.jsonl",
        *(
            {"file": f"{name}.flac", "caption": name, "split": "train"}
            for name in ("long", "exact", "gap")
        ),
    )
    pieces = contents(folder.build(audio_dir, tmp_path, name="cut", max_seconds=1.0))["train"]
    whole = contents(folder.build(audio_dir, tmp_path, name="whole"))["train"]
    assert set(whole) == {"long.flac", "exact.flac", "gap.flac"}
    assert set(pieces) == {
        *(f"long.flac#{index}" for index in range(3)),
        *("exact.flac", "gap.flac#0", "gap.flac#2"),
    }
    long = [pieces[f"long.flac#{index}"]["audio"] for index in range(3)]
    np.testing.assert_array_equal(np.concatenate(long), whole["long.flac"]["audio"])
    assert max(map(len, long)) - min(map(len, long)) <= 1
    assert pieces["long.flac#2"]["captions"] == ["long"]
    skipped = skipped_items(tmp_path / "cut" / "1.0.0")
    assert [(item["file"], item["reason"]) for item in skipped] == [("gap.flac#1", "silent piece")]


def rubbish_folder(audio_dir: pathlib.Path) -> dict[str, str]:
    """A folder of good files and one of each kind of bad ones; returns the reasons by file."""
    make(audio_dir, *(f"good{index}.wav" for index in range(6)))
    soundfile.write(audio_dir / "three.wav", np.stack([tone(440), tone(550), tone(660)], 1), RATE)
    soundfile.write(audio_dir / "stereo.wav", np.stack([tone(440), tone(550)], 1), RATE)
    soundfile.write(audio_dir / "empty.wav", np.zeros(0), RATE)
    soundfile.write(audio_dir / "nan.wav", np.append(tone(), np.nan), RATE, "FLOAT")
    soundfile.write(audio_dir / "zeros.wav", np.zeros(RATE), RATE)
    soundfile.write(audio_dir / "click.wav", tone(seconds=0.05), RATE)
    soundfile.write(audio_dir / "mute.wav", tone(), RATE)
    (audio_dir / "text.mp3").write_text("not audio")
    reasons = {
        "gone.wav": "missing",
        "empty.wav": "empty",
        "nan.wav": "not finite",
        "zeros.wav": "silent",
        "click.wav": "too short",
        "text.mp3": "unreadable",
        "three.wav": "channels",
        "mute.wav": "no caption",
    }
    rows = [{"file": file, "caption": f" caption of {file} "} for file in reasons]
    rows[-1]["caption"] = " \t"
    rows += [{"file": f"good{index}.wav", "caption": "good"} for index in range(6)]
    rows += [{"file": "stereo.wav", "captions": ["good", "", "good", "more"]}]
    rows += [{"file": "good0.wav", "caption": "good"}]
    write_jsonl(audio_dir / "metadata.jsonl", *({**row, "split": "train"} for row in rows))
    return reasons


def test_rubbish_is_skipped_counted_and_listed(tmp_path, capsys):
    reasons = rubbish_folder(tmp_path / "audio")
    datasets = [
        folder.build(
            tmp_path / "audio",
            tmp_path / str(workers),
            name="sounds",
            workers=workers,
            max_skipped_fraction=0.6,
        )
        for workers in (1, 5)
    ]
    one, five = (contents(dataset) for dataset in datasets)
    np.testing.assert_equal(one, five)
    assert list(one["train"]) == list(five["train"])
    assert skipped_items(datasets[0]) == skipped_items(datasets[1])

    clips = contents(datasets[0])["train"]
    assert set(clips) == {*(f"good{index}.wav" for index in range(6)), "stereo.wav"}
    assert clips["stereo.wav"]["captions"] == ["good", "more"]
    listed = skipped_items(datasets[0])
    files = {item["file"]: item["reason"] for item in listed[: len(reasons)]}
    assert files == reasons
    assert [(item["file"], item["reason"]) for item in listed[len(reasons) :]] == [
        ("mute.wav", "blank caption"),
        ("stereo.wav", "blank caption"),
        ("stereo.wav", "repeated caption"),
        ("good0.wav", "repeated caption"),
    ]
    metadata = kept_metadata(datasets[0])
    assert metadata["skipped_files"] == dict.fromkeys(reasons.values(), 1)
    assert metadata["left_out"] == {"blank caption": 2, "repeated caption": 2}
    printed = capsys.readouterr().out
    assert "made from 7 of 15 files" in printed
    assert all(text in printed for item in reasons.items() for text in item)


def test_too_much_rubbish_leaves_no_dataset(tmp_path):
    rubbish_folder(tmp_path / "audio")
    with pytest.raises(ValueError, match=r"(?s)8 of 15 files cannot be used.* is 0\.49.*gone\.wav"):
        folder.build(tmp_path / "audio", tmp_path, name="sounds", max_skipped_fraction=0.49)
    assert not list((tmp_path / "sounds").rglob("*.*"))


def test_a_split_without_clips_is_an_error(tmp_path):
    audio_dir = make(tmp_path / "audio", "a.wav")
    rows = [{"file": "a.wav", "caption": "x", "split": "train"}]
    rows += [{"file": "b.wav", "caption": "x", "split": "test"}]
    write_jsonl(audio_dir / "metadata.jsonl", *rows)
    with pytest.raises(ValueError, match=r"(?s)'test' is left without .*missing: 1.*b\.wav"):
        folder.build(audio_dir, tmp_path, name="sounds", max_skipped_fraction=1.0)
    assert not list((tmp_path / "sounds").rglob("*.*"))


def test_an_existing_dataset_is_kept_or_refused(tmp_path, capsys):
    audio_dir = make(tmp_path / "audio", "a.wav")
    row = {"file": "a.wav", "caption": "x", "split": "train"}
    table = write_jsonl(audio_dir / "metadata.jsonl", row)
    dataset = folder.build(audio_dir, tmp_path, name="sounds")
    before = {path: path.stat().st_mtime_ns for path in dataset.iterdir()}
    assert folder.build(audio_dir, tmp_path, name="sounds", workers=1) == dataset
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="settings: seed is 0 there and 1 here"):
        folder.build(audio_dir, tmp_path, name="sounds", seed=1)
    edited = tone(440)  # as long as the one before, which it replaces
    soundfile.write(audio_dir / "a.wav", edited, RATE)
    with pytest.raises(ValueError, match="settings: contents_sha256"):
        folder.build(audio_dir, tmp_path, name="sounds")
    assert folder.build(audio_dir, tmp_path, name="edited") != dataset
    os.utime(audio_dir / "a.wav", (0, 0))  # a copy, or a touch, is no edit
    folder.build(audio_dir, tmp_path, name="edited")
    assert "nothing to do" in capsys.readouterr().out
    soundfile.write(audio_dir / "a.wav", tone(seconds=1), RATE)
    with pytest.raises(ValueError, match=r"settings: contents_sha256 .* files_sha256"):
        folder.build(audio_dir, tmp_path, name="sounds")
    write_jsonl(table, {**row, "caption": "y"})
    with pytest.raises(ValueError, match=r"metadata_sha256 is '.*' there and '.*' here"):
        folder.build(audio_dir, tmp_path, name="sounds")
    assert {path: path.stat().st_mtime_ns for path in dataset.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "My Sounds"}, "name is 'My Sounds'; allowed: snake case"),
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"min_seconds": 0.0}, "min_seconds is 0.0; allowed: above 0"),
        ({"max_seconds": float("inf")}, "max_seconds is inf; allowed: at most 86400, a day"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
        ({"max_seconds": 0.15}, "max_seconds is 0.15; allowed: at least 2 min_seconds"),
        ({"test_fraction": 0.97}, "test_fraction is 0.97; allowed: below 1 together"),
        ({"validation_fraction": -0.1}, "validation_fraction is -0.1"),
        ({"workers": 0}, "workers is 0"),
        ({"max_skipped_fraction": 10}, "max_skipped_fraction is 10; allowed: 0 to 1"),
    ],
)
def test_settings_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        folder.build(tmp_path, tmp_path, **{"name": "sounds", **changes})


def test_command_line(tmp_path):
    audio_dir = make(tmp_path / "audio", "a.wav")
    command = ["-m", "data.folder", "--audio_dir", audio_dir]
    command += ["--out", tmp_path, "--name", "sounds", "--nolevel"]
    run = commands.run(*command)
    assert run.returncode == 1
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith(f"error: {audio_dir}: holds neither")
    assert "--without_captions" in message
    (audio_dir / "metadata.csv").write_text("file,caption,split\na.wav,x,train\n")
    run = commands.run(*command)
    assert run.returncode == 0, run.stderr
    assert "1/1" in run.stderr
    assert kept_metadata(tmp_path / "sounds" / "1.0.0")["made_from"]["level"] is False


def many(audio_dir: pathlib.Path, count: int = 24) -> pathlib.Path:
    """A folder of `count` files with captions, the fourth of which cannot be read."""
    make(audio_dir, *(f"{index:02d}.wav" for index in range(count)))
    (audio_dir / "03.wav").write_text("not audio")
    splits = ("train", "train", "train", "test")
    write_jsonl(
        audio_dir / "metadata.jsonl",
        *(
            {"file": f"{index:02d}.wav", "caption": f"sound {index}", "split": splits[index % 4]}
            for index in range(count)
        ),
    )
    return audio_dir


def test_a_killed_build_goes_on_where_it_was(tmp_path, capsys):
    """Killed for good in the middle: the next start decodes what is missing and nothing else."""
    audio_dir = many(tmp_path / "audio", 400)
    flags = [f"--audio_dir={audio_dir}", f"--out={tmp_path / 'out'}", "--name=sounds"]
    flags += ["--clips_per_shard=2", "--workers=1"]
    process = commands.start(["-m", "data.folder", *flags], tmp_path)
    notes = tmp_path / "out" / "sounds.incomplete" / "1.0.0" / "shards"
    deadline = time.monotonic() + 120
    while len(list(notes.glob("*.json"))) < 5 and time.monotonic() < deadline:
        assert process.exitcode is None
        time.sleep(0.001)
    process.kill()
    process.join()
    done = {path.name: path.stat().st_mtime_ns for path in notes.glob("*.json")}
    assert 5 <= len(done) < 200
    assert not (tmp_path / "out" / "sounds").exists()

    dataset = folder.build(audio_dir, tmp_path / "out", name="sounds", clips_per_shard=2)
    again = {path.name: path.stat().st_mtime_ns for path in (dataset / "shards").glob("*.json")}
    assert len(again) == 200
    assert done.items() <= again.items()
    assert "made from 399 of 400 files" in capsys.readouterr().out
    whole = folder.build(audio_dir, tmp_path / "whole", name="sounds", clips_per_shard=2)
    np.testing.assert_equal(contents(dataset), contents(whole))
    assert kept_metadata(dataset) == kept_metadata(whole)
    assert not list(dataset.rglob("*.tmp"))


def test_processes_share_the_files(tmp_path, capsys, monkeypatch):
    audio_dir = many(tmp_path / "audio")
    options = {"name": "sounds", "clips_per_shard": 4}
    whole = folder.build(audio_dir, tmp_path / "whole", **options)
    read, seen = recordings.read_clips, []
    monkeypatch.setattr(
        recordings, "read_clips", lambda entry, *more: seen.append(entry.file) or read(entry, *more)
    )
    for process_id in (2, 0, 1):
        assert not (tmp_path / "shared" / "sounds").exists()
        capsys.readouterr()
        shared = folder.build(
            audio_dir, tmp_path / "shared", process_id=process_id, num_processes=3, **options
        )
        printed = capsys.readouterr().out
        assert ("missing" in printed) == (process_id != 1)
    assert len(seen) == len(set(seen)) == 24
    assert "made from 23 of 24 files" in printed
    np.testing.assert_equal(contents(shared), contents(whole))
    assert kept_metadata(shared) == kept_metadata(whole)
    assert skipped_items(shared) == skipped_items(whole)
    with pytest.raises(ValueError, match="process_id is 3; allowed: 0 to 2"):
        folder.build(audio_dir, tmp_path, process_id=3, num_processes=3, **options)


def test_a_raised_limit_decodes_nothing_again(tmp_path, monkeypatch):
    audio_dir = many(tmp_path / "audio")
    with pytest.raises(ValueError, match=r"1 of 24 files cannot be used, .* raise the limit"):
        folder.build(audio_dir, tmp_path, name="sounds", max_skipped_fraction=0.0)
    monkeypatch.setattr(recordings, "read_clips", lambda *_: 1 / 0)
    dataset = folder.build(audio_dir, tmp_path, name="sounds")
    assert [item["file"] for item in skipped_items(dataset)] == ["03.wav"]


def test_a_file_named_like_a_piece_of_another_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(seconds=0.6), RATE)
    soundfile.write(tmp_path / "a.wav#1", tone(), RATE, format="WAV")
    files = ("a.wav", "a.wav#1")
    rows = [{"file": file, "caption": "a tone", "split": "train"} for file in files]
    write_jsonl(tmp_path / "metadata.jsonl", *rows)
    with pytest.raises(ValueError, match=r"two clips with the id 'a\.wav#1', in items 0"):
        folder.build(tmp_path, tmp_path / "out", name="sounds", max_seconds=0.4)
