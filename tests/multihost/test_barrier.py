"""The barrier of background threads: all come, or all know who failed; threads stand for hosts."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fasttta_jax.multihost import barrier, coordination
from fasttta_jax.multihost.barrier import FailingBarrier, OtherHostFailed

NUM_HOSTS = 3


class Service:
    """Texts in memory; every thread is a host."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.host = threading.local()

    def put(self, key: str, text: str) -> None:
        assert key not in self.texts, f"{key} is left twice"
        self.texts[key] = text

    def remove(self, key: str) -> None:
        del self.texts[key]

    def found(self, folder: str) -> dict[int, str]:
        start = f"{folder}/"
        items = list(self.texts.items())
        return {int(k[len(start) :]): text for k, text in items if k.startswith(start)}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """In place of jax.distributed's."""
    service = Service()
    monkeypatch.setattr(coordination, "put", service.put)
    monkeypatch.setattr(coordination, "remove", service.remove)
    monkeypatch.setattr(coordination, "texts", service.found)
    monkeypatch.setattr(coordination, "count", lambda: NUM_HOSTS)
    monkeypatch.setattr(coordination, "index", lambda: service.host.index)
    monkeypatch.setattr(barrier, "LONGEST_PAUSE", 0.01)
    return service


def on_hosts(service: Service, function: Callable[[FailingBarrier, int], Any]) -> list[Any]:
    """What the function returns or raises on every host, each with its own barrier."""
    barriers = [FailingBarrier() for _ in range(NUM_HOSTS)]
    for each in barriers:
        each._folder = barriers[0]._folder  # in one process each has a number of its own

    def run(index: int) -> Any:
        service.host.index = index
        try:
            return function(barriers[index], index)
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(NUM_HOSTS) as pool:
        return list(pool.map(run, range(NUM_HOSTS)))


def test_nobody_passes_before_all_have_come(service: Service) -> None:
    came: list[int] = []

    def visit(barrier: FailingBarrier, index: int) -> list[int]:
        seen = []
        for turn in range(3):
            barrier.begin()
            for _ in range(2):
                time.sleep(0.02 * ((index + turn) % NUM_HOSTS))
                came.append(index)
                barrier(key="done", timeout_ms=10_000)
                seen.append(len(came))
        return seen

    for seen in on_hosts(service, visit):
        assert all(count >= NUM_HOSTS * (visit + 1) for visit, count in enumerate(seen))
    assert len(service.texts) == 2 * 2 * NUM_HOSTS  # of the last two rounds


@pytest.mark.parametrize("failing", range(NUM_HOSTS))
@pytest.mark.parametrize("passed", [0, 1])
def test_a_failure_opens_the_barrier(service: Service, failing: int, passed: int) -> None:
    def visit(barrier: FailingBarrier, index: int) -> str:
        barrier.begin()
        for _ in range(passed):
            barrier(key="written", timeout_ms=10_000)
        if index == failing:
            error = OSError("no space left")
            barrier.fail(error)
            raise error
        try:
            barrier(key="committed", timeout_ms=10_000)
        except OtherHostFailed as error:
            barrier.fail(error)  # tells nothing: it is another's failure
            raise
        return "passed"

    began = time.monotonic()
    found = on_hosts(service, visit)
    assert time.monotonic() - began < 5.0
    for host, error in enumerate(found):
        expected = "no space left" if host == failing else f"host {failing}: OSError: no space left"
        assert str(error) == expected
    assert len(service.texts) == NUM_HOSTS * (passed + 1)


def test_a_missing_host_is_named_after_the_timeout(service: Service) -> None:
    def visit(barrier: FailingBarrier, index: int) -> None:
        barrier.begin()
        if index != 1:
            barrier(key="written", timeout_ms=200)

    first, second, third = on_hosts(service, visit)
    assert second is None
    for error in (first, third):
        assert isinstance(error, TimeoutError)
        assert str(error) == "hosts [1] did not come to written in 200 ms"


def test_one_host_waits_for_nobody() -> None:
    alone = FailingBarrier()
    alone.begin()
    alone(key="written", timeout_ms=1)
    alone.fail(OSError("no space left"))
    alone.begin()
