"""ESC-10 with captions: held-out wordings, and no recording in two splits."""

import collections
import json
import os
import pathlib

import pytest
import tensorflow_datasets as tfds

from data import esc10

RATE = 16_000
REPOSITORY = pathlib.Path(__file__).parents[2]
ESC10 = (
    pathlib.Path(os.environ.get("FASTTTA_DATASETS", REPOSITORY / ".." / "shared" / "datasets"))
    / "esc10"
)

needs_esc10 = pytest.mark.skipif(
    not ESC10.is_dir(), reason=f"ESC-10 is not at {ESC10}; FASTTTA_DATASETS names its parent"
)


def test_esc10_wordings_are_held_out():
    assert set(esc10.WORDINGS) == set(esc10.HELD_OUT_WORDINGS)
    seen = [wording for wordings in esc10.WORDINGS.values() for wording in wordings]
    held_out = [wording for wordings in esc10.HELD_OUT_WORDINGS.values() for wording in wordings]
    assert len({*seen, *held_out}) == len(seen) + len(held_out)
    assert min(map(len, esc10.WORDINGS.values())) >= 5
    assert min(map(len, esc10.HELD_OUT_WORDINGS.values())) >= 3


@needs_esc10
def test_esc10_splits_part_no_recording():
    clips = esc10.read_clips(ESC10 / "metadata.csv")
    records = esc10.captioned(clips)
    assert records == esc10.captioned(clips[::-1])[::-1]
    splits_of = collections.defaultdict(set)
    counts = collections.Counter()
    for record in records:
        splits_of[record["freesound_id"]].add(record["split"])
        counts[record["split"], record["category"]] += 1
        allowed = esc10.HELD_OUT_WORDINGS if record["split"] == "test" else esc10.WORDINGS
        assert set(record["captions"]) <= set(allowed[record["category"]])
        assert len(set(record["captions"])) == len(record["captions"]) in (2, 3)
    assert all(len(splits) == 1 for splits in splits_of.values())
    for category in esc10.WORDINGS:
        assert counts["train", category] == 24
        assert abs(counts["validation", category] - counts["test", category]) <= 2
        assert counts["validation", category] + counts["test", category] == 8


@needs_esc10
def test_esc10_builds(tmp_path):
    rows = (ESC10 / "metadata.csv").read_text().splitlines()
    chosen = [row for row in rows[1:] if row.split(",")[2] in ("rain", "rooster")][::3]
    (tmp_path / "esc10").mkdir()
    (tmp_path / "esc10" / "audio").symlink_to((ESC10 / "audio").resolve())
    (tmp_path / "esc10" / "metadata.csv").write_text("\n".join([rows[0], *chosen]) + "\n")
    dataset = esc10.build(tmp_path / "esc10", tmp_path / "out")
    found = tfds.builder_from_directory(str(dataset)).as_data_source()
    assert sum(map(len, found.values())) == len(chosen)
    for clips in found.values():
        for clip in clips:
            labels = json.loads(clip["labels"])
            assert 5 * RATE <= clip["audio"].size < 5.01 * RATE
            assert labels["events"] == [labels["columns"]["category"]]


def test_esc10_refuses_other_tables(tmp_path):
    table = tmp_path / "metadata.csv"
    header = ",".join(esc10.COLUMNS)
    for text, message in (
        ("filename,fold\na,1\n", ":1: lacks the columns file_name, category, freesound_id"),
        (f"{header}\na.ogg,1,rain,1\nb.ogg,1\n", ":3: has 2 fields, but the header has 4"),
        (f'{header}\n"a.ogg,1,rain,1\n', ":2: malformed CSV"),
        (f"{header}\na.ogg,9,rain,1\n", ":2: fold is '9'; allowed: 1, 2, 3, 4"),
        (f"{header}\na.ogg,1,snow,1\n", ":2: category is 'snow'"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            esc10.read_clips(table)
    table.write_text(f"{header}\na.ogg,1,rain,7\nb.ogg,4,rain,7\n")
    with pytest.raises(ValueError, match=r"b\.ogg: freesound_id 7 is in fold 4 and in a training"):
        esc10.assign_splits(esc10.read_clips(table))
