"""However the work is shared, interrupted or raced for, one dataset comes out, or none."""

import functools
import hashlib
import json
import operator
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.common import shards
from data.common.moments import Moments
from data.common.shards import ShardedDataset
from data.common.tables import Skipped
from fasttta_jax.input_pipeline.records import DatasetError, Records, find_records
from fasttta_jax.storage.files import StorageError
from fasttta_jax.storage.sealed import read_sealed, sealed
from fasttta_jax.storage.shards import ShardedWork

LENGTHS = {"train": 11, "test": 3}
TOKENS = tfds.features.Tensor(shape=(None, 2, 3), dtype=np.float16, encoding="bytes")


def dataset(folder: pathlib.Path, *, shard_size: int = 4, **settings) -> ShardedDataset:
    return ShardedDataset(
        folder / "records",
        name="latents",
        description="For tests.",
        arrays={"tokens": TOKENS},
        lengths=LENGTHS,
        shard_size=shard_size,
        settings={"codec": "a", **settings},
        measure=lambda record: Moments.of(record["tokens"]).sums(),
    )


def record(split: str, index: int) -> dict:
    rng = np.random.default_rng([len(split), index])
    return {
        "id": f"{split}_{index}",
        "captions": [f"caption {index}"] * (index % 3),
        "labels": "{}",
        "tokens": rng.normal(size=(1 + index % 4, 2, 3)).astype(np.float16),
    }


def write(writer: ShardedDataset, shards, dropped=()) -> None:
    for shard in shards:
        indices = range(shard.start, shard.stop)
        kept = [index for index in indices if (shard.split, index) not in dropped]
        skipped = [
            Skipped(f"{shard.split}_{index}", "silent", "for tests")
            for index in indices
            if index not in kept
        ]
        writer.write(shard, [*(record(shard.split, index) for index in kept), *skipped])


def made(folder: pathlib.Path, num_hosts: int = 1, dropped=(), **options) -> dict:
    """Writes all of it, host by host; returns the metadata."""
    writers = [dataset(folder, **options) for _ in range(num_hosts)]
    for host, writer in enumerate(writers):
        writer.work.start()
        write(writer, writer.work.missing(host, num_hosts), dropped)
        finished = writer.finish(lambda summary: {})
        assert (finished is None) == (host < num_hosts - 1)
    return Records(folder, "train").metadata


def test_records_are_those_of_the_source_in_order(tmp_path):
    made(tmp_path)
    for split, length in LENGTHS.items():
        records = Records(tmp_path, split)
        assert len(records) == length
        for index in range(length):
            found, expected = records[index], record(split, index)
            np.testing.assert_array_equal(found.pop("tokens"), expected.pop("tokens"))
            assert found == {**expected, "labels": {}}
    assert not list(tmp_path.rglob("*.tmp"))
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 4])
def test_the_dataset_does_not_depend_on_the_hosts(tmp_path, num_hosts):
    one, other = tmp_path / "one", tmp_path / "other"
    assert made(one) == made(other, num_hosts)
    folders = [find_records(folder) for folder in (one, other)]
    names = [{path.relative_to(f): path for path in f.rglob("*.*")} for f in folders]
    assert names[0].keys() == names[1].keys()
    for name, path in names[0].items():
        if "array_record" not in name.name:  # what the map of a protocol buffer is written as may
            assert path.read_bytes() == names[1][name].read_bytes()  # differ, not what it says


def test_the_hash_is_that_of_the_content(tmp_path):
    first = made(tmp_path / "first")["sha256"]
    assert made(tmp_path / "again")["sha256"] == first
    assert made(tmp_path / "less", dropped={("train", 5)})["sha256"] != first


def test_nothing_is_there_until_all_is(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start({"note": 1})
    shards = writer.work.missing()
    assert [(s.split, s.start, s.stop) for s in shards] == [
        ("train", 0, 4),
        ("train", 4, 8),
        ("train", 8, 11),
        ("test", 0, 3),
    ]
    write(writer, shards[1:])
    notes = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shards/*.json")}
    assert len(notes) == 3

    again = dataset(tmp_path)
    assert again.work.kept() == {"note": 1}
    again.work.start({"note": 2})
    assert again.work.kept() == {"note": 1}
    assert again.work.missing() == shards[:1]
    assert again.finish(lambda summary: {}) is None
    assert not again.is_complete
    with pytest.raises(DatasetError, match="found: none"):
        find_records(tmp_path)
    left_by_a_kill = tmp_path / "records.incomplete/latents/1.0.0/.half.tmp"
    left_by_a_kill.write_text("half")
    write(again, again.work.missing())
    assert {path: path.stat().st_mtime_ns for path in notes} == notes
    assert again.finish(lambda summary: {}) is not None
    assert dataset(tmp_path).is_complete
    assert not list(tmp_path.rglob("*.tmp"))
    expected = made(tmp_path / "uninterrupted")["sha256"]
    assert Records(tmp_path / "records", "train").metadata["sha256"] == expected


def test_more_shards_than_names_can_count_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"train has 10{20} items, .* allowed: 100000 shards"):
        ShardedWork(tmp_path, lengths={"train": 10**20}, shard_size=1000, settings={})


def test_the_note_of_another_shard_is_refused(tmp_path):
    work = ShardedWork(tmp_path, lengths={"train": 4, "test": 2}, shard_size=2, settings={})
    work.start()
    for shard in work.shards:
        work.done(shard, {"rows": [shard.start]})
    assert len(work.notes()) == 3
    for other in ("train-00001", "test-00000"):
        content = (tmp_path / "shards" / f"{other}.json").read_bytes()
        (tmp_path / "shards" / "train-00000.json").write_bytes(content)
        with pytest.raises(StorageError, match=r"train-00000\.json is the note of another shard"):
            work.notes()


def test_a_shard_whose_file_is_removed_is_made_again(tmp_path):
    """Before the dataset is complete; its note alone is not the shard."""
    expected = made(tmp_path / "whole")
    writer = dataset(tmp_path / "lost")
    writer.work.start()
    write(writer, writer.work.missing())
    (lost,) = tmp_path.glob("lost/**/latents-train.array_record-00001")
    lost.unlink()
    assert writer.finish(lambda summary: {}) is None
    assert [(shard.split, shard.index) for shard in writer.work.missing()] == [("train", 1)]
    again = dataset(tmp_path / "lost")
    write(again, again.work.missing())
    half = tmp_path / "lost" / ".records.incomplete.0a1b2c3d.tmp"  # of a killed process
    half.mkdir()
    assert again.finish(lambda summary: {}) is not None
    assert Records(tmp_path / "lost", "train").metadata == expected
    assert not half.exists()
    half.mkdir()  # of one that was killed while another completed the dataset
    again.make(None, None, None)
    assert not half.exists()


def test_descriptions_that_are_removed_while_they_are_written_complete_nothing(
    tmp_path, monkeypatch
):
    writer = dataset(tmp_path)
    writer.work.start()
    write(writer, writer.work.missing())
    with monkeypatch.context() as patch:
        patch.setattr(
            shards, "seal_descriptions", lambda path: (path / "dataset_info.json").unlink()
        )
        with pytest.raises(StorageError, match=r"dataset_info\.json was removed"):
            writer.finish(lambda summary: {})
    assert not (tmp_path / "records").exists()
    assert writer.finish(lambda summary: {}) is not None


def test_hosts_may_finish_at_the_same_moment(tmp_path):
    """The slower one is overtaken after it has read the notes, before it writes anything."""
    slow, fast = dataset(tmp_path), dataset(tmp_path)
    slow.work.start()
    write(slow, slow.work.missing())

    def overtaken(summary):
        assert fast.finish(lambda summary: {}) is not None
        return {}

    assert slow.finish(overtaken) is None
    assert slow.is_complete
    assert slow.finish(overtaken) is None
    assert len(Records(tmp_path, "train")) == LENGTHS["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_host_may_be_overtaken_while_it_reads_the_notes(tmp_path, monkeypatch):
    slow, fast = dataset(tmp_path), dataset(tmp_path)
    slow.work.start()
    write(slow, slow.work.missing())
    missing = slow.work.missing

    def all_there():  # and gone a moment later
        found = missing()
        assert fast.finish(lambda summary: {}) is not None
        return found

    monkeypatch.setattr(slow.work, "missing", all_there)
    assert slow.finish(lambda summary: {}) is None
    assert slow.is_complete
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_other_settings_are_refused_by_name(tmp_path):
    dataset(tmp_path).work.start()
    with pytest.raises(ValueError, match="other settings: codec is 'a' there and 'b' here"):
        dataset(tmp_path, codec="b").work.kept()
    with pytest.raises(ValueError, match="clips_per_shard is 4 there and 5 here"):
        dataset(tmp_path, shard_size=5).work.start()
    made(tmp_path)
    with pytest.raises(ValueError, match="source is None there and 'x' here"):
        _ = dataset(tmp_path, source="x").is_complete
    with pytest.raises(ValueError, match="clips_per_shard is 0; allowed: 1 or more"):
        dataset(tmp_path, shard_size=0)
    (tmp_path / "other/records").mkdir(parents=True)
    assert not dataset(tmp_path / "other").is_complete
    (tmp_path / "other/records/file").touch()
    with pytest.raises(ValueError, match="holds other data than latents"):
        _ = dataset(tmp_path / "other").is_complete


def test_a_shard_that_was_made_with_other_settings_is_found(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start()
    write(writer, writer.work.missing())
    note = next(tmp_path.rglob("shards/train-00001.json"))
    wrong = hashlib.sha256(b"").hexdigest()
    note.write_text(json.dumps(sealed({**read_sealed(note), "made_from_sha256": wrong})))
    with pytest.raises(ValueError, match=r"train-00001\.json was made with other settings"):
        writer.finish(lambda summary: {})


def test_what_is_skipped_is_counted_and_listed(tmp_path):
    dropped = {("train", index) for index in (1, 4, 5, 6, 7)}
    writer = dataset(tmp_path)
    writer.work.start()
    write(writer, writer.work.missing(), dropped)
    summary = writer.finish(lambda summary: {"skipped": len(summary.skipped)})
    assert summary.num_records == {"train": 6, "test": 3}
    listed = (find_records(tmp_path) / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in listed] == [f"train_{i}" for i in (1, 4, 5, 6, 7)]
    records = Records(tmp_path, "train")  # one of its shards is empty
    assert [records[i]["id"] for i in range(6)] == [f"train_{i}" for i in (0, 2, 3, 8, 9, 10)]
    assert records.metadata["skipped"] == 5


def test_a_split_without_records_is_an_error(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start()
    write(writer, writer.work.missing(), {("test", index) for index in range(3)})
    with pytest.raises(ValueError, match=r"(?s)'test' is left without a record.*silent: 3"):
        writer.finish(lambda summary: {})


def test_tokens_that_are_not_finite_are_refused(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start()
    shard = writer.work.missing()[0]
    bad = record("train", 0)
    bad["tokens"][0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="clip 'train_0' of train: tokens are not finite"):
        writer.write(shard, [bad])
    assert shard in writer.work.missing()
    assert not list(tmp_path.rglob("*.tmp"))


def write_ids(writer: ShardedDataset, shards, ids) -> None:
    """Shards whose records have other ids, by (split, index)."""
    for shard in shards:
        items = [(shard.split, index) for index in shard.indices]
        writer.write(shard, [{**record(*item), "id": ids.get(item, f"{item}")} for item in items])


@pytest.mark.parametrize(
    ("second", "places"), [(3, "items 0 to 3"), (9, "items 0 to 3 and in items 8 to 10")]
)
def test_an_id_that_comes_twice_is_refused_when_it_is_met(tmp_path, second, places):
    writer = dataset(tmp_path)
    writer.work.start()
    shards = writer.work.missing()
    message = f"split 'train' has two clips with the id 'dog', in {places} of the source; allowed"
    with pytest.raises(ValueError, match=message):
        write_ids(writer, shards, {("train", 1): "dog", ("train", second): "dog"})
    (failed,) = [shard for shard in shards if second in shard.indices and shard.split == "train"]
    assert failed in writer.work.missing()


def test_an_id_that_two_processes_write_is_refused_at_the_end(tmp_path):
    """By whichever completes the dataset, and again by the next to try."""
    ids = {("train", 1): "dog", ("train", 5): "dog"}
    for process in range(2):
        writer = dataset(tmp_path)
        writer.work.start()
        write_ids(writer, writer.work.missing(process, 2), ids)
    for _ in range(2):
        with pytest.raises(ValueError, match="id 'dog', in items 0 to 3 and in items 4 to 7 of"):
            dataset(tmp_path).finish(lambda summary: {})
    assert not dataset(tmp_path).is_complete


def test_an_id_may_come_in_two_splits(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start()
    write_ids(writer, writer.work.missing(), {("train", 1): "dog", ("test", 1): "dog"})
    assert writer.finish(lambda summary: {}) is not None


def test_shards_that_an_earlier_version_wrote_are_completed(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start()
    write(writer, writer.work.missing())
    for file in tmp_path.rglob("shards/*.json"):
        note = json.loads(file.read_text())
        del note["ids"], note["self_sha256"]
        file.write_text(json.dumps(note))
    assert dataset(tmp_path).finish(lambda summary: {}) is not None


def test_moments_are_those_of_all_tokens(tmp_path):
    writer = dataset(tmp_path)
    writer.work.start()
    write(writer, writer.work.missing())
    notes = writer.finish(lambda summary: {}).notes["train"]
    moments = functools.reduce(operator.add, map(Moments.from_note, notes))
    tokens = np.concatenate(
        [record("train", i)["tokens"].reshape(-1, 3) for i in range(LENGTHS["train"])]
    ).astype(np.float64)
    found = moments.statistics()
    assert found["num_tokens"] == len(tokens)
    assert found["mean"] == pytest.approx(tokens.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(tokens.std(), rel=1e-12)
    assert found["scaling"] == pytest.approx(1 / tokens.std(), rel=1e-12)
    np.testing.assert_allclose(found["channel_mean"], tokens.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["channel_std"], tokens.std(axis=0), rtol=1e-12)
