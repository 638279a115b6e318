"""Sounds of any folder are found, with their captions, and paired by name or caption."""

import json

import numpy as np
import pytest
import soundfile

from fasttta_jax.evaluation.sound_sets import open_folder, open_split, pair
from fasttta_jax.evaluation.sound_tables import SoundsError

RATE = 16_000


def write(path, level: float = 0.1, seconds: float = 0.1) -> None:
    soundfile.write(path, np.full(int(RATE * seconds), level), RATE, subtype="FLOAT")


def test_a_folder_without_a_table_holds_its_audio_files_by_name(tmp_path):
    for name in ("b.wav", "a.FLAC", "10.wav"):
        write(tmp_path / name) if name.endswith("wav") else soundfile.write(
            tmp_path / name, np.full(100, 0.1), RATE, format="FLAC"
        )
    (tmp_path / "notes.txt").write_text("x")
    found = open_folder(tmp_path)
    assert [sound.name for sound in found.sounds] == ["10.wav", "a.FLAC", "b.wav"]
    assert not found.has_captions
    samples, rate = found.sounds[0].load()
    assert (samples.shape, rate) == ((1600, 1), RATE)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "manifest.jsonl",
            '{"file": "a.wav", "prompt": "rain, wind"}\r\n{"file": "b.wav", "prompt": "a dog"}',
        ),
        ("metadata.csv", '\ufeffname,caption\r\na,"rain, wind"\r\nb,a dog\r\n'),
        ("captions.tsv", "id\tcaption\taudio_path\n1\train, wind\ta.wav\n2\ta dog \tb.wav\n"),
        (
            "list.jsonl",
            '{"location": "a.wav", "captions": "rain, wind"}\n\n'
            '{"location": "b.wav", "captions": "a dog"}',
        ),
    ],
)
def test_tables_of_other_projects_are_read(tmp_path, name, text):
    for file in ("a.wav", "b.wav"):
        write(tmp_path / file)
    (tmp_path / name).write_text(text, "utf-8")
    found = open_folder(tmp_path if name != "list.jsonl" else tmp_path / name)
    assert [(sound.name, sound.caption) for sound in found.sounds] == [
        ("a.wav", "rain, wind"),
        ("b.wav", "a dog"),
    ]
    assert (found.generated, found.candidates) == (False, None)


def test_a_manifest_of_generate_says_so_and_how_many_candidates_there_were(tmp_path):
    write(tmp_path / "a.wav")
    row = {"file": "a.wav", "prompt": "x", "checkpoint": {}, "candidates": 3}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    found = open_folder(tmp_path)
    assert (found.generated, found.candidates) == (True, 3)


def test_folders_that_cannot_be_judged_say_why(tmp_path):
    with pytest.raises(SoundsError, match="there is no such folder"):
        open_folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SoundsError, match=r"holds no audio file .* found: notes.txt"):
        open_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file,caption\n../a.wav,x\nc.wav,y\n")
    with pytest.raises(SoundsError, match=r"names 2 files, and none of them lies in .*'../a.wav'"):
        open_folder(tmp_path)
    (tmp_path / "captions.tsv").write_text("x")
    with pytest.raises(SoundsError, match=r"several tables .*metadata.csv, captions.tsv"):
        open_folder(tmp_path)
    (tmp_path / "list.txt").write_text("x")
    with pytest.raises(SoundsError, match=r"ends in '.txt'; allowed"):
        open_folder(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.csv", 'file,caption\na.wav,"rain\nb.wav,wind\n', "unexpected end"),
        (
            "metadata.csv",
            "file,caption\na.wav,rain, wind\n",
            "csv:2: has 3 fields, but the header has 2; .* double quotes",
        ),
        ("captions.tsv", 'file\tcaption\na.wav\t"rain" falls\n', "tsv:2: malformed TSV"),
        ("metadata.csv", "file,caption\na.wav," + "x" * 200_000, "field larger than field limit"),
        ("metadata.csv", "file\na.wav\n", "csv:2: .* one named prompt or caption or captions"),
        ("metadata.csv", "file,caption\na.wav\n", "csv:2: has 1 fields, but the header has 2"),
        ("metadata.csv", "file,caption\n", "has no rows"),
        ("manifest.jsonl", '{"file": "a.wav", "prompt": "x"', "jsonl:1: malformed JSON"),
        (
            "manifest.jsonl",
            '{"file": "a.wav", "prompt": "\\ud800"}',
            "jsonl:1: malformed JSON: half a character",
        ),
        ("manifest.jsonl", "[" * 100_000, "jsonl:1: malformed JSON: .*recursion"),
        ("metadata.csv", "file,caption\n/,rain\n", "none of them lies in .* first is '/'"),
        ("manifest.jsonl", "[1]", "jsonl:1: .* is not a JSON object"),
    ],
)
def test_rows_that_would_lose_something_are_refused(tmp_path, name, text, words):
    write(tmp_path / "a.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(SoundsError, match=words):
        open_folder(tmp_path)


def test_files_of_one_name_in_two_folders_are_two_sounds(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.wav")
    table = tmp_path / "LIST.CSV"
    table.write_text("file,caption\nx/a.wav,rain\ny/a.wav,wind\nx/a.wav,water\n")
    assert [sound.name for sound in open_folder(table).sounds] == ["x/a.wav", "y/a.wav", "x/a.wav"]
    table.write_text("file,caption\nx/a.wav,rain\nx/a.wav,water\n")
    assert [sound.name for sound in open_folder(table).sounds] == ["a.wav", "a.wav"]


def test_candidates_of_any_kind_are_no_number(tmp_path):
    write(tmp_path / "a.wav")
    row = {"file": "a.wav", "prompt": "x", "candidates": [1, 2]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    assert open_folder(tmp_path).candidates is None


def test_names_pair_first_with_or_without_their_ending():
    by_name = pair(["b.wav", "a.wav"], ["x", "y"], ["a.wav", "b.wav"], ["x", "y"], "name")
    assert (by_name.rows, by_name.reference_rows, by_name.by) == ((1, 0), (0, 1), "name")
    assert by_name.complete
    endings = pair(["a.flac"], [""], ["a.wav"], [""], "name")
    assert (endings.rows, endings.missing, endings.unused) == ((), ("a.wav",), ("a.flac",))
    assert not endings.complete
    assert pair(["a.flac"], [""], ["a.wav"], [""], "stem").complete


def test_captions_pair_where_names_do_not_and_equal_ones_in_order():
    found = pair(
        ["0.wav", "1.wav", "2.wav", "3.wav"],
        ["rain", "a dog", "rain", "wind"],
        ["r0.wav", "r1.wav", "r2.wav"],
        ["a dog", "rain", "rain"],
        "name",
    )
    assert (found.rows, found.reference_rows, found.by) == ((1, 0, 2), (0, 1, 2), "caption")
    assert (found.missing, found.unused) == ((), ("3.wav",))
    assert not found.complete
    assert "3 pairs by caption; 1 have no real one, such as '3.wav'" in str(found)


def test_more_than_one_in_a_hundred_without_a_counterpart_is_not_complete():
    names = [f"{index}.wav" for index in range(200)]
    blank = [""] * 200
    assert pair(names[1:], blank[1:], names, blank, "name").complete
    assert not pair(names[2:], blank[2:], names, blank, "name").complete


def test_a_split_gives_its_clips_with_captions(labelled_dataset):
    found = open_split(labelled_dataset / "audio")
    assert found.has_captions
    samples, _ = found.sounds[0].load()
    assert samples.dtype == np.float32
    assert 0 < np.abs(samples).max() <= 1
