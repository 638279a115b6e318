"""A resumed run leaves the metrics of an uninterrupted one; every line is JSON at every moment."""

import contextlib
import json
import math
import pathlib
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.storage.files import list_files, write_atomically
from fasttta_jax.workdir.events import EventFile
from fasttta_jax.workdir.metrics_log import METRICS_FILE, MetricsWriter, read_metrics
from tests.support import object_store
from tests.support.full_disk import limited_files
from tests.support.object_store import ObjectStore


def write_steps(workdir: pathlib.Path, steps: range, start_step: int = 0) -> None:
    with MetricsWriter(workdir, start_step=start_step) as writer:
        for step in steps:
            writer.write_scalars(step, {"loss": 1.0 / (1 + step), "rate": step * 1e-3})
            if step % 4 == 0:
                writer.write_text(step, "prompt", f"a “bell” at {step}")


def events_in(workdir: pathlib.Path) -> list[event_pb2.Event]:
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            found.append(
                event_pb2.Event.FromString(content[position + 12 : position + 12 + length])
            )
            position += length + 16
    return found


def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path: pathlib.Path) -> None:
    write_steps(tmp_path / "whole", range(1, 21))
    write_steps(tmp_path / "killed", range(1, 16))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')
    write_steps(tmp_path / "killed", range(11, 21), start_step=10)
    whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == whole
    assert not list((tmp_path / "killed").glob(".*tmp"))


def test_resuming_right_after_the_last_row_changes_nothing_before_it(
    tmp_path: pathlib.Path,
) -> None:
    write_steps(tmp_path, range(1, 6))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsWriter(tmp_path, start_step=5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_new_run_starts_an_empty_file(tmp_path: pathlib.Path) -> None:
    write_steps(tmp_path, range(0, 5))
    write_steps(tmp_path, range(0, 2))
    assert [row["step"] for row in read_metrics(tmp_path) if "loss" in row] == [0, 1]


def test_tensorboard_is_told_what_a_resumed_run_overwrites(tmp_path: pathlib.Path) -> None:
    write_steps(tmp_path, range(1, 6))
    first = {event.step for event in events_in(tmp_path) if event.summary.value}
    assert first == {1, 2, 3, 4, 5}
    for path in tmp_path.glob("events*"):
        path.unlink()
    write_steps(tmp_path, range(4, 6), start_step=3)
    restarts = [event.step for event in events_in(tmp_path) if event.session_log.status]
    assert restarts == [4]


def test_tensorboard_holds_scalars_text_sounds_and_images(tmp_path: pathlib.Path) -> None:
    audio = np.sin(np.arange(4000) / 5).astype(np.float32) * 1.5
    image = np.zeros((4, 6, 3), np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.write_scalars(7, {"loss": np.float32(0.25)})
        writer.write_audio(7, "clip", audio, 8000)
        writer.write_image(7, "array", image)
        writer.write_image(7, "mel", spectrogram_png(audio / 2, 8000))
        writer.write_text(7, "prompt", "rain")
    values = {}
    for event in events_in(tmp_path):
        for value in event.summary.value:
            assert event.step == 7
            values[value.tag.split("/")[0]] = value
    assert values["loss"].simple_value == 0.25
    assert values["clip"].audio.sample_rate == 8000
    assert values["clip"].audio.length_frames == 4000
    assert (values["array"].image.height, values["array"].image.width) == (4, 6)
    assert values["mel"].image.width > 100
    assert values["prompt"].tensor.string_val == [b"rain"]


def test_every_line_is_there_at_once_and_is_strict_json(tmp_path: pathlib.Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    writer = MetricsWriter(tmp_path)
    scalars = {"a": jnp.float32(0.5), "b": np.nan, "c": -math.inf, "d": 3}
    writer.write_scalars(np.int64(1), scalars)
    line = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=refuse)
    assert row == {"step": 1, "a": 0.5, "b": None, "c": None, "d": 3.0}
    (read,) = read_metrics(tmp_path)
    assert (read["step"], read["a"], read["d"]) == (1, 0.5, 3.0)
    assert math.isnan(read["b"])
    assert math.isnan(read["c"])
    with pytest.raises(ValueError, match="step"):
        writer.write_scalars(2, {"step": 1.0})
    writer.flush()
    writer.close()
    writer.close()


def test_a_torn_last_line_is_left_out_and_another_broken_one_is_named(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert read_metrics(path) == [{"step": 1, "a": 2.0}]
    path.write_text('{"step": 1, "a": 2.0}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is b'nonsense'"):
        read_metrics(path)
    with pytest.raises(ValueError, match="line 2"):
        MetricsWriter(tmp_path, start_step=1)


def test_a_disabled_writer_touches_nothing(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path / "run", enabled=False) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        writer.write_text(1, "prompt", "rain")
        writer.write_audio(1, "clip", np.zeros(10), 8000)
        writer.write_image(1, "image", np.zeros((2, 2, 3), np.uint8))
        writer.flush()
    assert list(tmp_path.iterdir()) == []


def test_negative_start_step_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="start_step is -1"):
        MetricsWriter(tmp_path, start_step=-1)


def test_an_interrupted_atomic_write_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def write_images(writer: MetricsWriter) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for step in range(50):
        writer.write_image(step, "noise", noise)
    writer.flush()


def test_events_without_room_are_told_by_the_next_call(tmp_path: pathlib.Path) -> None:
    """tensorboardX's own thread would end, and the run wait for it forever."""
    writer = MetricsWriter(tmp_path)
    with limited_files(20_000):
        with pytest.raises(OSError, match=rf"{tmp_path}/events\.out\.tfevents"):
            write_images(writer)
        with contextlib.suppress(OSError):  # where more was waiting to be written
            writer.close()
        writer.close()


def write_until_full(writer: MetricsWriter) -> None:
    for step in range(2, 10):
        writer.write_scalars(step, {"loss": 1.0})


def test_metrics_without_room_are_told_by_name_and_the_lines_before_stay(
    tmp_path: pathlib.Path,
) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    with limited_files(100), pytest.raises(OSError, match=f"{tmp_path}/{METRICS_FILE}"):
        write_until_full(writer)
    with contextlib.suppress(OSError):
        writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)][:3] == [1, 2, 3]


def test_event_files_are_in_order_whatever_the_clock_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads them in order of name; a run may go on where the clock is behind."""
    made = []
    for now in (2e9, 1e9, 1e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        made += [EventFile(tmp_path)]
        made[-1].close()
    names = [file.path.name for file in made]
    assert names == sorted(set(names))


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a workdir in an empty object store."""
    object_store.install(monkeypatch)
    return "gs://bucket/run"


def test_a_resumed_run_in_a_store_leaves_the_file_of_an_uninterrupted_one(
    remote: str, tmp_path: pathlib.Path
) -> None:
    """The killed one had flushed at step 12 and was alone with the rest."""
    write_steps(tmp_path, range(1, 21))
    killed = MetricsWriter(remote)
    for step in range(1, 16):
        killed.write_scalars(step, {"loss": 1.0 / (1 + step), "rate": step * 1e-3})
        if step % 4 == 0:
            killed.write_text(step, "prompt", f"a “bell” at {step}")
        if step == 12:
            killed.flush()
    killed._file.close()
    assert max(row["step"] for row in read_metrics(remote)) == 12
    with MetricsWriter(remote, start_step=10) as writer:
        for step in range(11, 21):
            writer.write_scalars(step, {"loss": 1.0 / (1 + step), "rate": step * 1e-3})
            if step % 4 == 0:
                writer.write_text(step, "prompt", f"a “bell” at {step}")
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    assert ObjectStore.objects["bucket/run/metrics.jsonl"] == whole
    assert read_metrics(remote) == read_metrics(tmp_path)


def test_events_in_a_store_are_all_there_and_uploaded_once(
    remote: str, tmp_path: pathlib.Path
) -> None:
    uploads: list[str] = []
    ObjectStore.before_write = uploads.append
    with MetricsWriter(remote) as writer:
        for step in range(1, 7):
            writer.write_scalars(step, {"loss": 1.0 / step})
            if step % 2 == 0:
                writer.flush()
        folder = writer._folder
    assert not folder.exists()
    events = [name for name in uploads if "events" in name]
    assert len(events) == len(set(events)) == 4
    for name in list_files(remote):
        (tmp_path / name).write_bytes(ObjectStore.objects[f"bucket/run/{name}"])
    steps = [event.step for event in events_in(tmp_path) if event.summary.value]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_store_that_cannot_be_reached_does_not_end_the_run(
    remote: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError("gone")

    writer = MetricsWriter(remote)
    writer.write_scalars(1, {"loss": 1.0})
    ObjectStore.before_write = refuse
    writer.flush()
    assert "metrics cannot be written to gs://bucket/run and are still in" in caplog.text
    assert not ObjectStore.objects
    writer.write_scalars(2, {"loss": 0.5})
    ObjectStore.before_write = None
    writer.close()
    assert [row["step"] for row in read_metrics(remote)] == [1, 2]
    assert sum("events" in name for name in ObjectStore.objects) == 2


def test_no_other_framework_is_imported(tmp_path: pathlib.Path) -> None:
    """Not even torch, which tensorboardX takes where it finds it; it can be imported afterwards."""
    program = (
        "import sys, numpy as np\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from fasttta_jax.evaluation import tagger_training\n"
        "from fasttta_jax.report import page, spectrograms\n"
        "from fasttta_jax.workdir import metrics_log\n"
        f"with metrics_log.MetricsWriter({str(tmp_path)!r}) as w:\n"
        "    w.write_scalars(1, {'loss': 1.0})\n"
        "    w.write_audio(1, 'clip', np.zeros(100, np.float32), 8000)\n"
        "found = {'tensorflow', 'matplotlib.pyplot', 'torch'} & set(sys.modules)\n"
        "assert not found, found\n"
        "import torch\n"
        "assert torch.found\n"
    )
    (tmp_path / "torch.py").write_text("found = True\n")
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root)
