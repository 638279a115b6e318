"""A batch is a function of seed and step; hosts read their rows; reading never runs away."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import pytest
from absl import flags

from fasttta_jax.config import ConfigError, DataConfig, MeshConfig
from fasttta_jax.input_pipeline import batches as batches_lib
from fasttta_jax.input_pipeline.batches import TrainBatches, evaluation_batches, read_batches
from fasttta_jax.input_pipeline.records import DatasetError, EncodedDataset
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.parallel.rows import host_rows
from tests.support import helpers

BATCH = 8
NUM_TOKENS = helpers.NUM_TOKENS - 2  # a column less than the clips have: windows are drawn
SEED = 5
MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=2, fsdp=4),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    "tensor": MeshConfig(data=1, tensor=8),
}


@pytest.fixture
def dataset(encoded_dataset: pathlib.Path) -> EncodedDataset:
    return EncodedDataset(encoded_dataset)


def data_config(**changes: Any) -> DataConfig:
    return DataConfig(**({"batch_size": BATCH, "num_threads": 0} | changes))


def train(dataset: EncodedDataset, start: int = 0, **changes: Any) -> TrainBatches:
    return TrainBatches(
        dataset,
        helpers.tiny_text_encoder(),
        data_config(**changes),
        num_tokens=NUM_TOKENS,
        seed=SEED,
        mesh=make_mesh(MeshConfig()),
        start=start,
    )


def take(batches: TrainBatches, count: int) -> list[Any]:
    return [jax.tree.map(np.asarray, next(batches)) for _ in range(count)]


def host_batches(
    dataset: EncodedDataset, rows: np.ndarray, start: int, count: int, **changes: Any
) -> list[Any]:
    """What a host that holds these rows reads."""
    batches = read_batches(
        dataset,
        helpers.tiny_text_encoder(),
        data_config(**changes),
        num_tokens=NUM_TOKENS,
        seed=SEED,
        rows=rows,
        start=start,
    )
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def assert_equal(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


class Watched(EncodedDataset):
    """A dataset that counts the clips that are read, and calls `before` ahead of each."""

    def __init__(self, path: pathlib.Path, before: Callable[[int], None] = lambda count: None):
        super().__init__(path)
        self.count = 0
        self.before = before
        self.train = super().split("train")

    def split(self, split: str) -> Any:
        assert split == "train"
        records, watched = self.train, self

        class Records:
            metadata = records.metadata

            def __len__(self) -> int:
                return len(records)

            def __getitem__(self, index: int) -> Any:
                watched.count += 1
                watched.before(watched.count)
                return records[index]

        return Records()


def hosts_of(mesh: jax.sharding.Mesh, count: int, order: str) -> list[list[Any]]:
    """The mesh's devices dealt to hosts: neighbours by number, or every count-th one."""
    devices = sorted(mesh.devices.flat, key=lambda device: device.id)
    if order == "scattered":
        return [devices[host::count] for host in range(count)]
    size = len(devices) // count
    return [devices[host * size : (host + 1) * size] for host in range(count)]


@pytest.mark.parametrize("order", ["neighbours", "scattered"])
@pytest.mark.parametrize("name", MESHES)
def test_hosts_read_the_rows_of_one_global_batch(
    encoded_dataset: pathlib.Path, name: str, order: str
) -> None:
    """Together the same rows in the same order on 1, 2 and 4 hosts, and each no other clip.

    A host's rows need not be neighbours, and hosts that share rows read them both. Steps 3 and 4
    lie in another epoch than the first.
    """
    mesh = make_mesh(MESHES[name])
    watched = Watched(encoded_dataset)
    whole = host_batches(watched, np.arange(BATCH), 0, 5)
    for count in (1, 2, 4):
        for start in (0, 3):
            seen = set()
            for devices in hosts_of(mesh, count, order):
                watched.count = 0
                rows = host_rows(mesh, BATCH, devices)
                for step, batch in enumerate(host_batches(watched, rows, start, 2), start):
                    expected = jax.tree.map(lambda values, rows=rows: values[rows], whole[step])
                    assert_equal(batch, expected)
                assert watched.count == 2 * len(rows)
                seen |= set(rows.tolist())
            assert seen == set(range(BATCH))


def test_batches_are_those_of_the_plain_pipeline(dataset: EncodedDataset) -> None:
    """Clips shuffled each epoch, then cut into batches in order."""
    example = batches_lib._Example(dataset, helpers.tiny_text_encoder(), NUM_TOKENS, False)
    clips = grain.MapDataset.source(dataset.split("train")).seed(SEED).shuffle().repeat(None)
    batches = clips.random_map(example).batch(BATCH, drop_remainder=True)
    with train(dataset, start=2) as found:
        for step, batch in enumerate(take(found, 4), 2):
            assert_equal(batch, batches[step])
    assert not np.array_equal(batches[0]["tokens"], batches[3]["tokens"])  # the epochs' first


@pytest.mark.slow
def test_threads_and_processes_change_nothing(dataset: EncodedDataset) -> None:
    """Neither the order nor a bit, also from a step on."""
    with train(dataset) as batches:
        whole = take(batches, 9)
    for changes in ({"num_threads": 3}, {"num_workers": 2, "num_threads": 2}):
        for start in (0, 4) if "num_workers" not in changes else (4,):
            with train(dataset, start, **changes) as batches:
                for step, batch in enumerate(take(batches, 5), start):
                    assert_equal(batch, whole[step])


def test_the_state_is_what_has_been_taken(dataset: EncodedDataset) -> None:
    """However far reading is ahead, a run goes on with the next batch."""
    with train(dataset, prefetch=4) as batches:
        assert batches.state() == {"next_batch": 0}
        whole = take(batches, 6)
        assert batches.state() == {"next_batch": 6}
    with train(dataset, prefetch=4) as batches:
        take(batches, 4)
        state = batches.state()
    with train(dataset, start=state["next_batch"], prefetch=1) as batches:
        assert_equal(take(batches, 2), whole[4:])
        assert batches.state() == {"next_batch": 6}


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_batches_are_made_than_may_wait(
    encoded_dataset: pathlib.Path, prefetch: int
) -> None:
    watched = Watched(encoded_dataset)
    with train(watched, prefetch=prefetch) as batches:
        for taken in range(3):
            made = (taken + prefetch) * BATCH
            wait_until(lambda made=made: watched.count == made)
            time.sleep(0.1)
            assert watched.count == made
            next(batches)


def test_waiting_is_counted_only_where_it_happens(encoded_dataset: pathlib.Path) -> None:
    gate = threading.Event()
    watched = Watched(encoded_dataset, lambda count: gate.wait(30) and None)
    with train(watched, prefetch=2) as batches:
        threading.Timer(0.3, gate.set).start()
        next(batches)
        first = batches.waited
        assert first >= 0.25
        wait_until(lambda: watched.count == 3 * BATCH)
        wait_until(lambda: len(batches._batches._shared.items) == 2)
        next(batches)
        next(batches)
        assert batches.waited - first < first / 2


def test_an_error_in_reading_comes_out_with_its_traceback(encoded_dataset: pathlib.Path) -> None:
    """After the batches that were good, and again whenever one is asked for."""

    def torn_shard(count: int) -> None:
        if count > 2 * BATCH:
            raise OSError("torn shard")

    with train(Watched(encoded_dataset, torn_shard)) as batches:
        take(batches, 2)
        for _ in range(2):
            with pytest.raises(OSError, match="torn shard") as caught:
                next(batches)
            names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert "torn_shard" in names
        assert batches.state() == {"next_batch": 2}


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_reading_ends_with_its_consumer(dataset: EncodedDataset) -> None:
    """Closed, left by an exception, or forgotten."""
    batches = train(dataset, num_threads=2)
    next(batches)
    batches.close()
    batches.close()
    assert not prefetch_threads()
    with pytest.raises(ValueError, match="the iterator is closed; make a new one"):
        next(batches)
    with pytest.raises(KeyboardInterrupt), train(dataset):
        raise KeyboardInterrupt
    assert not prefetch_threads()
    batches = train(dataset)
    next(batches)
    del batches
    gc.collect()
    assert not prefetch_threads()


def test_reading_processes_need_flags_that_are_parsed(dataset: EncodedDataset) -> None:
    flags.FLAGS.unparse_flags()
    try:
        with pytest.raises(
            RuntimeError, match=r"data\.num_workers is 2; allowed: 0, or absl's flags"
        ):
            train(dataset, num_workers=2)
    finally:
        flags.FLAGS.mark_as_parsed()


PROGRAM = """
import multiprocessing, pathlib, sys, time
from absl import flags
from fasttta_jax.config import DataConfig, MeshConfig
from fasttta_jax.input_pipeline.batches import TrainBatches
from fasttta_jax.input_pipeline.records import (EncodedDataset)
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.text import load_text_encoder
from tests.support import helpers

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    path = pathlib.Path(sys.argv[1])
    batches = TrainBatches(
        EncodedDataset(path),
        load_text_encoder(path / "text", helpers.tiny_model_config().text),
        DataConfig(batch_size=8, num_workers=2),
        num_tokens=helpers.NUM_TOKENS,
        seed=0,
        mesh=make_mesh(MeshConfig()),
    )
    for _ in range(2):  # one of each process: both have begun
        next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for line in sys.stdin:
        for _ in range(8):
            next(batches)
        print("read", flush=True)
"""


def is_running(process: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_reading_processes_outlive_a_warning_but_not_their_parent(
    encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A scheduler's SIGTERM to all processes leaves them to the run, which has still to save."""
    (tmp_path / "program.py").write_text(PROGRAM)
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(encoded_dataset)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        readers = [int(number) for number in process.stdout.readline().split()]
        assert len(readers) == 2
        for reader in readers:
            os.kill(reader, signal.SIGTERM)
            os.kill(reader, signal.SIGINT)
        process.stdin.write("more\n")
        process.stdin.flush()
        assert process.stdout.readline() == "read\n"
        assert all(map(is_running, readers))
    finally:
        process.kill()
        process.wait(30)
    wait_until(lambda: not any(map(is_running, readers)))


def test_a_batch_that_cannot_be_split_says_what_could(dataset: EncodedDataset) -> None:
    message = r"data\.batch_size is 12; allowed: multiples of .* = 8, such as 8 or 16"
    with pytest.raises(ConfigError, match=message):
        train(dataset, batch_size=12)
    with pytest.raises(ConfigError, match=message):
        next(evaluate(dataset, 12))


def evaluate(dataset: EncodedDataset, batch_size: int, max_clips: int | None = None) -> Any:
    return evaluation_batches(
        dataset,
        helpers.tiny_text_encoder(),
        "validation",
        batch_size=batch_size,
        num_tokens=NUM_TOKENS,
        mesh=make_mesh(MeshConfig()),
        max_clips=max_clips,
    )


@pytest.mark.parametrize(("max_clips", "expected"), [(None, 10), (9, 9), (3, 3), (99, 10)])
def test_every_clip_is_evaluated_once(
    dataset: EncodedDataset, max_clips: int | None, expected: int
) -> None:
    """In order, whatever the batch; what pads the last one has no weight."""
    found = {}
    for batch_size in (8, 16):
        batches = [jax.tree.map(np.asarray, b) for b in evaluate(dataset, batch_size, max_clips)]
        assert len(batches) == -(-expected // batch_size)
        weight = np.concatenate([batch["weight"] for batch in batches])
        np.testing.assert_array_equal(weight, np.arange(len(weight)) < expected)
        tokens = np.concatenate([batch["tokens"] for batch in batches])
        found[batch_size] = tokens[:expected]
    np.testing.assert_array_equal(found[8], found[16])
    records = dataset.split("validation")
    for index, tokens in enumerate(found[8]):
        clip = records[index]["tokens"].reshape(-1, helpers.TOKEN_DIM)[:NUM_TOKENS]
        np.testing.assert_array_equal(tokens, clip.astype(np.float32))


def test_a_split_without_clips_is_refused(
    dataset: EncodedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "split", lambda split: [])
    with pytest.raises(DatasetError, match="has no training clips"):
        train(dataset)
