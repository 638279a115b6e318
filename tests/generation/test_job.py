"""However a job is shared, killed and started again: every clip once, and the same bytes."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
import soundfile

from fasttta_jax.audio.loudness import Level
from fasttta_jax.generation import outputs
from fasttta_jax.generation.job_folder import merge
from fasttta_jax.generation.names import NameTemplate
from fasttta_jax.generation.prompts import Prompts
from fasttta_jax.multihost.startup import SHARES, find_share
from fasttta_jax.storage.files import StorageError
from tests.support import commands
from tests.support.stand_in_pipeline import BROKEN, StandInPipeline, contents, job, sound
from tests.support.type_checks import unchecked

pytestmark = pytest.mark.usefixtures("unchecked")  # the pipeline is a stand-in
NUMBER = 40


def prompts(number: int = NUMBER, **options) -> Prompts:
    return Prompts(tuple(f"prompt {index}" for index in range(number)), **options)


def manifest(folder: pathlib.Path, name: str = "manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).open()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with unchecked():
        assert job(folder, prompts()).run().complete
    return folder


def test_a_clip_for_each_prompt_and_its_row(undisturbed):
    rows = manifest(undisturbed)
    assert [row["index"] for row in rows] == list(range(NUMBER))
    assert {row["file"] for row in rows} == {path.name for path in undisturbed.glob("*.wav")}
    for row in rows:
        assert (row["prompt"], row["seed"]) == (f"prompt {row['index']}", row["index"])
        audio, _ = soundfile.read(undisturbed / row["file"], dtype="float32")
        wanted = sound(row["prompt"], row["seed"])
        np.testing.assert_allclose(audio, wanted, rtol=0, atol=2.0**-16)
        with soundfile.SoundFile(undisturbed / row["file"]) as file:
            tags = file.copy_metadata()
        assert tags["title"] == row["prompt"]
        said = json.loads(tags["comment"])
        assert (said["seed"], said["model_sha256"]) == (row["seed"], row["checkpoint"]["sha256"])
    assert not (undisturbed / "skipped.jsonl").exists()


@pytest.mark.parametrize("store", ["files", "tar"])
@pytest.mark.parametrize("num_processes", [2, 3])
def test_clips_do_not_depend_on_the_hosts(tmp_path, store, num_processes):
    one, many = tmp_path / "one", tmp_path / "many"
    job(one, prompts(), store=store).run()
    for process in range(num_processes):
        result = job(many, prompts(), store=store, share=(process, num_processes)).run()
        assert result.complete == (process == num_processes - 1)
        assert (many / "manifest.jsonl").exists() == result.complete
    assert contents(many) == contents(one)


def test_batches_are_full_and_finished_work_is_not_done_again(tmp_path):
    pipeline = StandInPipeline()
    assert job(tmp_path, prompts(), pipeline=pipeline).run().made == NUMBER
    assert pipeline.batches == [4] * 10  # across shards of 6
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    again = job(tmp_path, prompts(), pipeline=pipeline).run()
    assert (again.made, again.found, again.complete) == (0, NUMBER, True)
    (tmp_path / "00007_prompt_7.wav").unlink()
    assert job(tmp_path, prompts(), pipeline=pipeline).run().made == 1
    assert pipeline.batches == [4] * 10 + [1]
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    assert [path.name for path in before if before[path] != after[path]] == ["00007_prompt_7.wav"]


@pytest.mark.parametrize("store", ["files", "tar", "array_record"])
def test_more_rows_add_clips(tmp_path, store, undisturbed):
    assert job(tmp_path, prompts(20), store=store).run().made == 20
    grown = job(tmp_path, prompts(), store=store).run()
    kept = 20 if store == "files" else 18  # a shard that is a file is written as a whole
    assert (grown.found, grown.made) == (kept, NUMBER - kept)
    assert [row["prompt"] for row in manifest(tmp_path)] == [
        row["prompt"] for row in manifest(undisturbed)
    ]
    if store == "files":
        assert contents(tmp_path) == contents(undisturbed)


def test_a_folder_of_something_else_is_refused(tmp_path):
    job(tmp_path, prompts(8)).run()
    before = contents(tmp_path)
    with pytest.raises(StorageError, match=r"seed is 0 there and 1 here.*--overwrite does that"):
        job(tmp_path, prompts(8, seed=1)).run()
    with pytest.raises(StorageError, match="format is 'wav' there and 'flac' here"):
        job(tmp_path, prompts(8), format="flac").run()
    with pytest.raises(StorageError, match=r"checkpoint_sha256 is 'a+' there and 'b+' here"):
        job(tmp_path, prompts(8), pipeline=StandInPipeline(sha256="b" * 64)).run()
    other = Prompts(("prompt 0", "another"))
    with pytest.raises(StorageError, match=r"00001_prompt_1.wav, made for 'prompt 1' .* 'another'"):
        job(tmp_path, other).run()
    assert contents(tmp_path) == before
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(StorageError, match="was not written by this command"):
        job(plain, prompts(8)).run()


def test_what_is_to_be_replaced_is_gone(tmp_path):
    other = Prompts(("prompt 0", "another", *(f"prompt {index}" for index in range(2, 8))))
    fresh, folder = tmp_path / "fresh", tmp_path / "folder"
    job(folder, prompts(8)).run()
    assert job(folder, other, overwrite=True).run().made == 1
    job(fresh, other).run()
    assert contents(folder) == contents(fresh)
    for process in (0, 1):
        job(folder, other, overwrite=True, format="flac", share=(process, 2)).run()
    assert {path.suffix for path in folder.glob("0*")} == {".flac"}
    assert len(manifest(folder)) == 8


def test_rows_that_make_no_clip_are_listed_and_can_be_mended(tmp_path, undisturbed, caplog):
    table, out = tmp_path / "table.csv", tmp_path / "out"
    lines = [f"prompt {index}" for index in range(NUMBER)]

    def write(changed: dict[int, str]) -> None:
        rows = [changed.get(index, line) for index, line in enumerate(lines)]
        table.write_text("prompt\n" + "\n".join(rows) + "\n")

    write({5: "x,y", 11: BROKEN})
    result = job(out, Prompts(table=str(table))).run()
    assert (result.made, result.skipped, result.complete) == (NUMBER - 2, 2, True)
    assert f"skipped: {table}:7: has 2 fields" in caplog.text
    assert {row["place"]: row["reason"][:22] for row in manifest(out, "skipped.jsonl")} == {
        f"{table}:7": "has 2 fields, but the ",
        f"{table}:13": "the sound is not finit",
    }
    write({11: BROKEN})
    mended = job(out, Prompts(table=str(table))).run()
    assert (mended.made, mended.skipped) == (1, 1)
    wanted = contents(undisturbed)
    found = contents(out)
    assert found.keys() - wanted.keys() == {"skipped.jsonl"}
    assert wanted.keys() - found.keys() == {"00011_prompt_11.wav"}
    assert all(found[name] == wanted[name] for name in found if name.endswith(".wav"))
    with pytest.raises(ValueError, match=r"none of 1 clips could be made; .*skipped.jsonl says"):
        job(tmp_path / "none", Prompts((BROKEN,))).run()


def test_many_clips_are_in_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "CLIPS_PER_FOLDER", 15)
    job(tmp_path, prompts(), name=NameTemplate("{index}")).run()
    files = [row["file"] for row in manifest(tmp_path)]
    assert files == [f"{index // 15:05d}/{index}.wav" for index in range(NUMBER)]
    assert all((tmp_path / file).is_file() for file in files)


def test_rows_with_settings_of_their_own(tmp_path):
    """What they leave empty is as for all; what cannot be is a bad row before anything is made."""
    table, pipeline = tmp_path / "table.csv", StandInPipeline()
    table.write_text(
        "prompt,negative,guidance,seconds\nrain,wind,3,\nrain,,,2\nrain,wind,1,\nrain,,,0.1\n"
    )
    wanted = Prompts(table=str(table))
    made = job(tmp_path / "out", wanted, pipeline=pipeline, level=Level(lufs=-30.0))
    made = dataclasses.replace(
        made,
        decoding=dataclasses.replace(made.decoding, guidance_scale=2.0),
        arguments={"negative": "hum", "seconds": None},
    )
    made.run()
    assert pipeline.columns == {
        "negative": ["wind", "hum"],
        "guidance_scale": [3.0, 2.0],
        "seconds": [None, 2.0],
    }
    settings = [row["settings"] for row in manifest(tmp_path / "out")]
    assert [one["negative"] for one in settings] == ["wind", "hum"]
    assert [one["guidance_scale"] for one in settings] == [3.0, 2.0]
    reasons = [row["reason"] for row in manifest(tmp_path / "out", "skipped.jsonl")]
    assert "'wind' is for guidance to lead away from, and guidance is 1" in reasons[0]
    assert "the sound has 0.1 s; loudness in LUFS needs 0.4 s or more" in reasons[1]
    varied = dataclasses.replace(made, arguments={"vary": "a.wav"}, overwrite=True)
    with pytest.raises(ValueError, match="a column seconds, and vary says how long clips are"):
        varied.run()


class Loudest:
    """Ranks sounds by their peak."""

    @property
    def settings(self) -> dict[str, str]:
        return {"by": "peak"}

    def check(self, prompt: str) -> None:
        if prompt == "prompt 3":
            raise ValueError("prompt 3 cannot be ranked")

    def score(self, sounds, sample_rate, prompts) -> list[float]:
        return [float(np.max(np.abs(one))) for one in sounds]


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_the_best_candidate_of_each_prompt_is_kept(tmp_path, batch_size):
    wanted = prompts(5, candidates=3, seed=10)
    job(tmp_path, wanted, ranker=Loudest(), batch_size=batch_size).run()
    rows = manifest(tmp_path)
    assert [row["index"] for row in rows] == [0, 1, 2, 4]
    assert manifest(tmp_path, "skipped.jsonl")[0]["reason"] == "prompt 3 cannot be ranked"
    for row in rows:
        seeds = [10 + 3 * row["index"] + take for take in range(3)]
        peaks = [float(np.max(np.abs(sound(row["prompt"], seed)))) for seed in seeds]
        assert row["candidates"] == 3
        assert row["scores"] == [
            {"seed": seed, "score": peak} for seed, peak in zip(seeds, peaks, strict=True)
        ]
        assert row["seed"] == seeds[int(np.argmax(peaks))]
        assert row["score"] == max(peaks)


def test_a_full_disk_leaves_whole_files_and_the_job_goes_on(tmp_path, undisturbed, monkeypatch):
    written = itertools.count()
    write = pathlib.Path.write_bytes

    def full(self: pathlib.Path, data: bytes) -> int:
        if self.name.startswith(".0") and next(written) >= 9:
            write(self, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, data)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        job(tmp_path, prompts()).run()
    wanted = contents(undisturbed)
    found = contents(tmp_path)
    rows = manifest(tmp_path)
    assert len(rows) == 8  # two batches
    assert {row["file"] for row in rows} <= found.keys()
    assert all(found[name] == wanted[name] for name in found if name.endswith(".wav"))
    monkeypatch.setattr(pathlib.Path, "write_bytes", write)
    assert job(tmp_path, prompts()).run().found == 8
    assert contents(tmp_path) == wanted


CHILD = """
import sys
from tests.support.stand_in_pipeline import StandInPipeline, job
from tests.generation.test_job import prompts
out, process, count, store = sys.argv[1:]
pipeline = StandInPipeline(delay=0.02)
job(out, prompts(), pipeline=pipeline, share=(int(process), int(count)), store=store).run()
"""


@pytest.mark.parametrize("store", ["files", "tar"])
def test_hosts_that_are_killed_lose_a_batch_or_a_shard(tmp_path, store):
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    job(whole, prompts(), store=store).run()
    notes = folder / "job" / "shards"
    started = [
        commands.start(["-c", CHILD, folder, process, 2, store], tmp_path, f"_{process}")
        for process in range(2)
    ]
    deadline = time.monotonic() + 60
    while len(list(notes.glob("*.json"))) < 3:
        assert time.monotonic() < deadline, (tmp_path / "stderr_0").read_text()
        time.sleep(0.01)
    for process in started:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    assert not (folder / "manifest.jsonl").exists()
    merged = merge(folder)
    assert merged is not None
    assert 0 < merged.clips < NUMBER
    for count in (1, 3):
        again = tmp_path / f"again_{count}"
        shutil.copytree(folder, again)
        results = [job(again, prompts(), store=store, share=(i, count)).run() for i in range(count)]
        assert results[-1].complete
        assert sum(result.made for result in results) == NUMBER - merged.clips
        assert contents(again) == contents(whole)


def test_the_place_of_a_process_is_that_of_its_launcher(monkeypatch):
    for name in itertools.chain(*SHARES):
        monkeypatch.delenv(name, raising=False)
    assert find_share() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert find_share() == (0, 1)  # in the script of sbatch, outside srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert find_share() == (3, 8)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    assert find_share() == (2, 4)
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID is 'one'; allowed: a whole number"):
        find_share()


@pytest.mark.long
def test_five_hundred_clips_survive_kills_of_their_hosts(tmp_path, runs):
    """generate.py on 2 processes, killed at random moments, goes on as 1 and as 3."""
    table = tmp_path / "table.txt"
    table.write_text("".join(f"a loud tone {index}\n" for index in range(500)))
    command = ["generate.py", f"--workdir={runs['student']}", f"--prompts={table}"]
    command += ["--num_iterations=2", "--clips_per_shard=32"]

    def start(out: pathlib.Path, process: int, count: int):
        share = [f"--process_id={process}", f"--num_processes={count}"]
        (tmp_path / out.name).mkdir(exist_ok=True)
        return commands.start(
            [*command, f"--out={out}", *share], tmp_path / out.name, f"_{process}"
        )

    def finish(out: pathlib.Path, count: int) -> None:
        for process in [start(out, index, count) for index in range(count)]:
            process.join(1200)
            assert process.exitcode == 0, (tmp_path / out.name / "stderr_0").read_text()

    whole, folder = tmp_path / "sounds" / "whole", tmp_path / "sounds" / "folder"
    finish(whole, 1)
    rng = np.random.default_rng(0)
    for _ in range(4):
        made = len(list(folder.glob("*.wav")))
        hosts = [start(folder, index, 2) for index in range(2)]
        for process in hosts:
            while process.exitcode is None and len(list(folder.glob("*.wav"))) < made + 8:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 1))
            assert process.pid is not None
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
            process.join(60)
    wanted = contents(whole)
    assert len(wanted) == 501
    for count in (1, 3):
        again = tmp_path / "sounds" / f"again_{count}"
        shutil.copytree(folder, again)
        finish(again, count)
        assert contents(again) == wanted
