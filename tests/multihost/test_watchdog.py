"""A host that hangs, stops or dies is named by the others, which end within seconds."""

from __future__ import annotations

import json
import pathlib
import time

import jax
import pytest

from fasttta_jax.multihost import exit_codes
from fasttta_jax.multihost.watchdog import (
    PHASES,
    HostLost,
    Progress,
    Watchdog,
    diagnose,
    find_lost,
    find_slowest,
)
from tests.support import launch


def alive(step: int, phase: str, **fields: float | str | None) -> tuple[Progress, Progress]:
    """A host's progress at two looks, between which it has written."""
    return (
        Progress(step, phase, since=1.0, written=10.0),
        Progress(step, phase, since=1.0, **{"written": 12.0, **fields}),  # type: ignore[arg-type]
    )


def looks(*hosts: tuple[Progress, Progress]) -> tuple[dict[int, Progress], dict[int, Progress]]:
    return (
        {host: before for host, (before, _) in enumerate(hosts)},
        {host: now for host, (_, now) in enumerate(hosts)},
    )


class TestDiagnosis:
    @pytest.mark.parametrize("behind", PHASES[:-1])
    def test_an_earlier_phase_is_waited_for(self, behind: str) -> None:
        later = PHASES[PHASES.index(behind) + 1]
        before, now = looks(alive(7, later), alive(7, later), alive(7, behind))
        text = diagnose(before, now, 3, 0)
        assert f"host 2 of 3 has been in phase {behind!r} of step 7 since" in text
        assert f"this host, 0, waits in phase {later!r} of step 7" in text

    def test_an_earlier_step_is_waited_for_whatever_its_phase(self) -> None:
        before, now = looks(alive(7, "samples"), alive(8, "data"))
        assert "host 0 of 2 has been in phase 'samples' of step 7" in diagnose(before, now, 2, 1)
        assert "(host 0 is this one); the others wait" in diagnose(before, now, 2, 0)

    def test_silence_comes_before_slowness(self) -> None:
        silent = Progress(9, "step", since=1.0, written=10.0)
        before, now = looks(alive(7, "data"), (silent, silent))
        text = diagnose(before, now, 2, 0)
        assert text.startswith("host 1 of 2 shows no sign of life since")
        assert "phase 'step' of step 9" in text
        assert "host 0" not in text

    def test_absent_and_ended_hosts(self) -> None:
        before, now = looks(
            alive(7, "step"), alive(3, "step", ended="OSError: full"), alive(9, "save", ended="")
        )
        assert find_lost(before, now, 4) == {
            1: "has ended: OSError: full",
            3: "has not written its progress: it never began, or sees another folder",
        }
        assert find_slowest({0: now[0], 2: now[2]}) == [0]

    def test_all_alike_is_said(self) -> None:
        before, now = looks(alive(7, "step"), alive(7, "step"))
        assert find_slowest(now) == []
        assert "all 2 hosts have been in phase 'step' of step 7" in diagnose(before, now, 2, 0)
        before, now = looks(alive(7, "data"))
        assert diagnose(before, now, 1, 0).startswith("in phase 'data' of step 7 since")


class TestFiles:
    def test_progress_is_written_while_the_main_thread_works(self, tmp_path: pathlib.Path) -> None:
        with Watchdog(tmp_path / "hosts", 0, index=1, count=2, interval=0.05) as watchdog:
            file = tmp_path / "hosts" / "host_00001.json"
            assert json.loads(file.read_text())["phase"] == "start"
            watchdog.heartbeat(3, "data")
            deadline = time.monotonic() + 10
            while json.loads(file.read_text())["step"] != 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            first = json.loads(file.read_text())
            assert (first["step"], first["phase"], first["ended"]) == (3, "data", None)
            while json.loads(file.read_text()) == first and time.monotonic() < deadline:
                time.sleep(0.02)
            assert json.loads(file.read_text())["written"] > first["written"]
        assert json.loads(file.read_text())["ended"] == ""

    def test_an_error_is_kept_in_the_file(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(OSError, match="full"), Watchdog(tmp_path, 0, index=0, count=2):
            raise OSError("disk full")
        assert json.loads((tmp_path / "host_00000.json").read_text())["ended"] == (
            "OSError: disk full"
        )

    def test_one_host_without_a_timeout_needs_no_thread_and_no_folder(
        self, tmp_path: pathlib.Path
    ) -> None:
        with Watchdog(tmp_path / "hosts", 0, index=0, count=1) as watchdog:
            watchdog.heartbeat(1, "step")
            assert watchdog._thread is None
        assert not (tmp_path / "hosts").exists()

    def test_a_folder_that_cannot_be_written_is_a_warning(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        with Watchdog(tmp_path / "file", 0, index=0, count=2, interval=0.02):
            time.sleep(0.2)
        assert caplog.text.count("cannot write its progress") == 1

    def test_unknown_phases_are_refused(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ValueError, match=r"phase is 'lunch'; allowed: one of \('start'"):
            Watchdog(tmp_path, 0, index=0, count=1).heartbeat(1, "lunch")

    @pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
    def test_an_error_of_jax_is_laid_to_the_host_that_is_gone(
        self, tmp_path: pathlib.Path, kind: type[Exception]
    ) -> None:
        error = kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
        gone = Watchdog(tmp_path, 0, index=1, count=2, interval=100)
        gone.__enter__()  # writes once, and never again
        with (
            pytest.raises(HostLost, match="host 1 of 2 shows no sign of life") as caught,
            Watchdog(tmp_path, 0, index=0, count=2, interval=0.05),
        ):
            raise error
        assert caught.value.hosts == (1,)
        assert caught.value.__cause__ is error
        gone.__exit__(None, None, None)

    def test_an_error_of_jax_stays_where_all_hosts_live(self, tmp_path: pathlib.Path) -> None:
        with Watchdog(tmp_path, 0, index=1, count=2, interval=0.01):
            watchdog = Watchdog(tmp_path, 0, index=0, count=2, interval=0.05)
            with pytest.raises(jax.errors.JaxRuntimeError, match="a device failed"), watchdog:
                raise jax.errors.JaxRuntimeError("INTERNAL: a device failed")

    def test_this_hosts_own_errors_are_not_looked_into(self, tmp_path: pathlib.Path) -> None:
        watchdog = Watchdog(tmp_path, 0, index=0, count=2, interval=100)
        started = time.monotonic()
        with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"), watchdog:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        with pytest.raises(ValueError, match="seed"), watchdog:
            raise ValueError("seed: UNKNOWN: this only looks so")
        assert time.monotonic() - started < 50


def run_loop(
    folder: pathlib.Path, num_processes: int, *flags: str
) -> tuple[launch.Job, list[launch.Result]]:
    command = ["-m", "tests.multihost.multiprocess.host_loop", f"--folder={folder}", *flags]
    with launch.start(command, num_processes, 1) as job:
        return job, job.wait(60)


def test_a_single_host_that_hangs_shows_where(tmp_path: pathlib.Path) -> None:
    flags = ("--fault=hang", "--host=0", "--timeout=1")
    job, (result,) = run_loop(tmp_path, 1, *flags)
    assert result.returncode == exit_codes.HUNG, job.outputs()
    assert "in phase 'data' of step 20 since" in result.stderr
    assert "forget_to_come_back" in result.stderr


def test_a_hung_host_is_named_by_all(tmp_path: pathlib.Path) -> None:
    host = 1
    job, results = run_loop(tmp_path, 2, "--fault=hang", f"--host={host}", "--timeout=2")
    assert [result.returncode for result in results] == [exit_codes.HUNG] * 2, job.outputs()
    named = f"host {host} of 2 has been in phase 'data' of step 20"
    assert named in results[1 - host].stderr
    assert named in results[host].stderr
    assert "forget_to_come_back" in results[host].stderr


def test_a_stopped_host_is_named(tmp_path: pathlib.Path) -> None:
    command = [
        "-m",
        "tests.multihost.multiprocess.host_loop",
        f"--folder={tmp_path}",
        "--timeout=2",
    ]
    with launch.start([*command, "--fault=stop", "--host=0"], 2, 1) as job:
        job.wait_for(1, "no step for")
        job.processes[1].join(30)
        assert job.processes[1].exitcode == exit_codes.HUNG, job.outputs()
        assert "host 0 of 2 shows no sign of life since" in job.stderr(1)


def test_a_killed_host_is_named(tmp_path: pathlib.Path) -> None:
    job, results = run_loop(tmp_path, 2, "--fault=kill")
    assert [result.returncode for result in results] == [exit_codes.LOST, -9], job.outputs()
    assert "error on host 0 of 2: host 1 of 2 shows no sign of life since" in results[0].stderr
