"""SIGTERM becomes one step at which all hosts stop, and an exit code that says: start me again."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import threading

import pytest

from fasttta_jax.multihost import exit_codes
from fasttta_jax.multihost.preemption import Preempted, Preemption
from tests.support import launch


def test_one_host_keeps_the_signal_until_the_step_is_done() -> None:
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda *_: heard.append("outer"))
    try:
        with Preemption() as preemption:
            assert not preemption.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.reached(2)
        assert not heard
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["outer"]
        with Preemption() as preemption:
            assert not preemption.reached(1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_ctrl_c_is_kept_too_and_the_second_stops_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            assert preemption.reached(1)
            assert preemption.signal == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.reached(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handler_is_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(KeyError), Preemption():
        assert signal.getsignal(signal.SIGTERM) != before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_entering_outside_the_main_thread_is_refused() -> None:
    errors = []

    def enter() -> None:
        try:
            Preemption().__enter__()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


def test_message_says_how_to_go_on() -> None:
    assert str(Preempted(12)) == (
        "stopped by SIGTERM after step 12, which is saved; start the same command to go on"
    )
    assert str(Preempted(12, "SIGINT")).startswith("stopped by SIGINT after step 12")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_signal_to_one_host_stops_all_at_the_same_step(
    num_processes: int, tmp_path: pathlib.Path
) -> None:
    host = num_processes - 1
    command = [
        "-m",
        "tests.multihost.multiprocess.host_loop",
        f"--folder={tmp_path}",
        f"--host={host}",
    ]
    with launch.start([*command, "--fault=terminate"], num_processes, 1) as job:
        results = job.wait(60)
    codes = [result.returncode for result in results]
    assert codes == [exit_codes.PREEMPTED] * num_processes, job.outputs()
    steps = [re.findall(r"saved step (\d+)", result.stdout) for result in results]
    assert len(steps[0]) == 1
    assert steps.count(steps[0]) == num_processes
    step = int(steps[0][0])
    assert step >= 20
    assert f"stopped by SIGTERM after step {step}" in results[0].stderr
    assert "Traceback" not in job.outputs()
