"""Tables of captions are read whole, or refused with the line and what is allowed there."""

import pytest

from data.common import recordings
from data.common import tables as metadata_lib
from data.common.audio_files import AudioFiles

MALFORMED = {
    "no file column": ("csv", "name,caption\na,b\n", r":1: .*file, file_name, path, audio.*: name"),
    "no caption column": ("csv", "file,text\na,b\n", r":1: .*caption, captions.*: file, text"),
    "two file columns": ("csv", "file,path,caption\na,b,c\n", r":1: .*exactly one"),
    "nothing at all": ("csv", "", r":1: .*found the columns: none"),
    "header only": ("csv", "file,caption\n", r"has no rows"),
    "bare comma": ("csv", "file,caption\na,b\na,dog, cat\n", r":3: has 3 fields.* 2; .*quotes"),
    "open quote": ("csv", 'file,caption\na,"b\n', r":2: malformed CSV"),
    "unknown split": (
        "csv",
        "file,caption,split\na,b,trian\n",
        r":2: split is 'trian'.*train, val",
    ),
    "blank split": ("csv", "file,caption,split\na,b,train\nc,d,\n", r":3: split is ''"),
    "blank file": ("csv", "file,caption\n ,b\n", r":2: file is ' '"),
    "out of the folder": ("csv", "file,caption\nx/../../a,b\n", r":2: .*not a file inside"),
    "absolute": ("csv", "file,caption\n/etc/passwd,b\n", r":2: .*--audio_dir"),
    "the folder": ("csv", "file,caption\n.,b\n", r":2: .*not a file inside"),
    "two splits": (
        "csv",
        "file,caption,split\na,b,train\n./a,c,dev\n",
        r":3: split of 'a' is 'validation', but 'train' on line 2",
    ),
    "Latin-1": ("csv", b"file,caption\na,caf\xe9\n", r"not UTF-8"),
    "not JSON": ("jsonl", '\n{"file": "a", "caption": "b"}\n{"file": \n', r":3: malformed JSON"),
    "not an object": ("jsonl", '["a", "b"]\n', r":1: .*not a JSON object"),
    "a key is missing": ("jsonl", '{"file": "a"}\n', r":1: .*caption, captions.*: file"),
    "number as caption": ("jsonl", '{"file": "a", "caption": 3}\n', r":1: caption is 3"),
    "number as file": ("jsonl", '{"file": 3, "caption": "b"}\n', r":1: file is 3"),
    "events": ("jsonl", '{"file": "a", "caption": "b", "events": [1]}\n', r":1: events is \[1\]"),
    "half a character": ("jsonl", '{"file": "a", "caption": "\\ud800"}\n', r":1: malformed JSON"),
    "a split for some": (
        "jsonl",
        '{"file": "a", "caption": "b", "split": "train"}\n{"file": "c", "caption": "d"}\n',
        r":2: has no split",
    ),
    "another format": ("txt", "file\tcaption\n", r"'\.txt'; allowed: \.csv, \.jsonl"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_tables_are_named_by_line(tmp_path, case):
    suffix, text, message = MALFORMED[case]
    table = tmp_path / f"metadata.{suffix}"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"{table}.*{message}|{table}{message}"):
        metadata_lib.read(table, tmp_path)


def test_the_table_must_be_there_and_be_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        metadata_lib.find(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither metadata\.csv nor metadata\.jsonl"):
        metadata_lib.find(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"other\.csv"):
        metadata_lib.read(tmp_path / "other.csv", tmp_path)
    for name in metadata_lib.NAMES:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="choose one with --metadata"):
        metadata_lib.find(tmp_path)


def test_rows_of_a_file_are_gathered(tmp_path):
    table = tmp_path / "metadata.csv"
    rows = ("./x.wav, a b ,dog;cat,1,p", "y.wav,c,,2,q", "x.wav,a b,dog,1,r", "x.wav,d,owl,1,p")
    table.write_text("\n".join(["file_name,captions,events,id,by", *rows, ""]))
    entries, left_out = metadata_lib.read(table, tmp_path)
    assert entries == [
        metadata_lib.Entry(
            file="x.wav",
            line=2,
            split=None,
            captions=["a b", "d"],
            events=["dog", "cat", "owl"],
            columns={"id": "1", "by": ["p", "r"]},
        ),
        metadata_lib.Entry("y.wav", 3, None, ["c"], [], {"id": "2", "by": "q"}),
    ]
    assert left_out == [metadata_lib.Skipped("x.wav", "repeated caption", "line 4: a b")]


@pytest.mark.parametrize(
    ("given", "split"),
    [("train", "train"), (" Test ", "test")]
    + [(alias, "validation") for alias in ("validation", "val", "valid", "DEV", "eval")],
)
def test_splits_have_aliases(tmp_path, given, split):
    table = tmp_path / "metadata.csv"
    table.write_text(f"file,caption,split\na,b,{given}\n")
    assert metadata_lib.read(table, tmp_path)[0][0].split == split


@pytest.mark.parametrize("text", ["file\n./b.wav\na.wav\n", "file,caption\nb.wav,x\na.wav, \n"])
def test_without_captions_the_column_is_optional_and_not_kept(tmp_path, text):
    table = tmp_path / "metadata.csv"
    table.write_text(text)
    entries, left_out = metadata_lib.read(table, tmp_path, with_captions=False)
    assert entries == [metadata_lib.Entry("b.wav", 2, None), metadata_lib.Entry("a.wav", 3, None)]
    assert not left_out


@pytest.mark.parametrize(("suffix", "text"), [("csv", "file\na\n"), ("jsonl", '{"file": "a"}\n')])
def test_a_missing_caption_column_names_the_flag(tmp_path, suffix, text):
    table = tmp_path / f"metadata.{suffix}"
    table.write_text(text)
    with pytest.raises(ValueError, match=r"caption, captions.*give --without_captions"):
        metadata_lib.read(table, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither .*give --without_captions"):
        metadata_lib.find(tmp_path / "empty")


def test_all_audio_below_a_folder_is_found_in_order(tmp_path):
    for name in ("b.WAV", "sub/a.flac", "a.mp3", "notes.txt", "._a.wav", ".cache/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    found = recordings.find_audio(AudioFiles(tmp_path))
    assert [entry.file for entry in found] == ["a.mp3", "b.WAV", "sub/a.flac"]
    assert all(entry.split is None and not entry.captions for entry in found)
    with pytest.raises(FileNotFoundError, match=r"no audio found .* \.wav"):
        recordings.find_audio(AudioFiles(tmp_path / "folder.wav"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        recordings.find_audio(AudioFiles(tmp_path / "nowhere"))
