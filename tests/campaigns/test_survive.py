"""The survival campaign in small, and that it finds what does not survive."""

from __future__ import annotations

import pathlib
import random

import pytest

from tests.campaigns import disk, struck
from tests.campaigns.survive import Campaign, describe
from tests.campaigns.survive_blows import ENDS, Blow, End, Fault, Life, check_end
from tests.campaigns.survive_jobs import ALONE, Job, all_jobs, files_left, files_of
from tests.campaigns.world import World, write_sounds

SEED = 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("world"))
    write_sounds(found.sounds)
    return found


def test_a_dataset_survives(world: World, tmp_path: pathlib.Path) -> None:
    jobs = [job for job in all_jobs() if job.name.startswith("folder")]
    results = Campaign(tmp_path, SEED, jobs, small_disk=False, world=world).run(4)
    assert not [result for result in results if result["fault"]], describe(results)
    again = Campaign(tmp_path, SEED, jobs, small_disk=False, world=world).run(4)
    assert again == results, "a finished campaign begins anew"


PROGRAM = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1])
path.with_suffix(".begun").touch()
with open(path, "a") as file:
    for line in range(30):
        print(line, file=file, flush=True)
        time.sleep(0.002)
"""


def test_a_job_that_does_not_survive_is_a_fault_and_is_kept(
    world: World, tmp_path: pathlib.Path
) -> None:
    """One that adds to what it had written before it was killed."""
    job = Job(
        "adds",
        lambda world, folder: [["-c", PROGRAM, str(folder / "lines.txt")]],
        1.0,
        files_left,
        inputs=(),
        parts=(),
        begun="none",
    )
    results = Campaign(tmp_path, SEED, [job], small_disk=False, world=world).run(3)
    faults = [result for result in results if result["fault"]]
    assert faults
    assert all("lines.txt differs" in result["fault"] for result in faults), describe(results)
    kept = tmp_path / "failures" / str(faults[0]["trial"])
    assert (kept / "job" / "lines.txt").exists()
    assert (kept / "logs" / "stderr_0").exists()
    assert "FAULT in trial" in describe(results)


@pytest.mark.parametrize(
    ("kind", "code", "text", "fault"),
    [
        ("fill", 1, "error: no room", None),
        ("fill", 1, "", "says no reason"),
        ("fill", 1, "Traceback (most recent call last):\n...\nerror: no", "traceback"),
        ("fill", -11, "", "ended with -11"),
        ("kill", -9, "", None),
        ("kill", 1, "error: no room", "ended with 1"),
        (None, 1, "error: no room", "ended with 1"),
        ("terminate", 75, "", None),
    ],
)
def test_ends_that_a_blow_allows(kind, code: int, text: str, fault: str | None) -> None:
    job, end = all_jobs()[0], End((code,), (text,), 1.0, (0,))
    if fault is None:
        check_end(job, end, kind, 0)
    else:
        with pytest.raises(Fault, match=fault):
            check_end(job, end, kind, 0)


def test_blows_are_of_every_kind_and_within_the_life_of_a_job() -> None:
    job = all_jobs()[0]
    rng = random.Random(SEED)
    blows = [Blow.draw(job, {ALONE: Life(2.0, (30,))}, rng) for _ in range(500)]
    assert {blow.kind for blow in blows} >= set(ENDS)
    assert all((blow.after is None) == (blow.touch > 0) for blow in blows)
    assert all(1 <= blow.touch <= 30 for blow in blows if blow.after is None)
    assert all(0 <= blow.after <= 2.2 for blow in blows if blow.after is not None)


def test_parts_and_inputs_are_found(world: World, tmp_path: pathlib.Path) -> None:
    for step in (3, 6):
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / str(step) / "file").touch()
    rng = random.Random(SEED)
    found = files_of(("run/checkpoints/NEWEST/**/*",), world, tmp_path, rng)
    assert found == [tmp_path / "run" / "checkpoints" / "6" / "file"]
    assert len(files_of(("world/sounds/*",), world, tmp_path, rng)) == 13


def test_only_a_disk_of_its_own_is_filled(tmp_path: pathlib.Path) -> None:
    with disk.mounted(tmp_path / "disk", 2**20) as is_disk:
        if not is_disk:
            pytest.skip("no tmpfs may be mounted here")
        disk.fill(tmp_path / "disk" / "job", slack=0)
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_bytes(bytes(2**16))
        disk.empty(tmp_path / "disk" / "job")
        (tmp_path / "disk" / "more").write_bytes(bytes(2**16))


def test_what_is_unfinished_is_known_by_its_name(tmp_path: pathlib.Path) -> None:
    for name in (".clip.wav.0a1b.tmp", "6.orbax-checkpoint-tmp", "clip.wav", "records.incomplete"):
        (tmp_path / name).mkdir()
    names = [path.name for path in struck.unfinished(tmp_path)]
    assert names == [".clip.wav.0a1b.tmp", "6.orbax-checkpoint-tmp"]
