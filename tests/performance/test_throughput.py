"""What a run says of its speed: means over windows, MFU by formula, compilations, traces."""

from __future__ import annotations

import contextlib
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from fasttta_jax.performance import compilations, throughput
from fasttta_jax.performance.accelerators import peak_flops
from fasttta_jax.performance.flops import training_step_flops
from fasttta_jax.performance.profiler import (
    Profiler,
    ProfileWindow,
    parse_window,
)
from fasttta_jax.performance.throughput import Meter
from tests.support import helpers


class Clock:
    """Stands in for time.perf_counter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)


def test_a_window_is_a_mean_over_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of half a second; an hour of evaluation between them does not count."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(throughput, "peak_flops", lambda kind, dtype: 1e9)
    config = helpers.tiny_teacher_config("unused")
    meter = Meter(config, clip_seconds=2.0)
    meter.resume()
    for step in range(4):
        clock.now += 0.5
        meter.step()
        if step == 1:
            meter.pause()
            clock.now += 3600
            meter.resume()
    found = meter.window(waited=0.2)
    assert found is not None
    assert found.step_seconds == pytest.approx(0.5)
    assert found.clips_per_second == pytest.approx(16.0)
    assert found.audio_seconds_per_second == pytest.approx(32.0)
    assert found.data_wait == pytest.approx(0.1)
    flops = 8 * training_step_flops(config).total
    assert found.mfu == pytest.approx(flops / 0.5 / (1e9 * jax.device_count()))
    assert 0.01 < found.memory_gib < 100
    assert set(found.scalars()) == {
        f"throughput/{name}" for name in throughput.Throughput.__dataclass_fields__
    }
    assert "0.5 s/step, 16 clips/s, 32 s of audio/s, data wait 10.0%, MFU" in str(found)

    assert meter.window(waited=0.2) is None  # no step since
    clock.now += 2.0
    meter.step()
    second = meter.window(waited=1.2)
    assert second is not None
    assert second.step_seconds == pytest.approx(2.0)
    assert second.data_wait == pytest.approx(0.5)


def test_an_unknown_device_has_no_mfu() -> None:
    meter = Meter(helpers.tiny_teacher_config("unused"), clip_seconds=2.0)
    meter.resume()
    meter.step()
    found = meter.window(0.0)
    assert found is not None
    assert found.mfu is None
    assert "throughput/mfu" not in found.scalars()
    assert "MFU" not in str(found)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v4", 275e12, 275e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
        ("NVIDIA H200", 989e12, 494e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
        ("cpu", None, None),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, bfloat16, float32) -> None:
    for dtype, expected in (("bfloat16", bfloat16), ("float32", float32)):
        found = peak_flops(kind, dtype)
        assert found == expected or math.isclose(found or 0.0, expected or 1.0, rel_tol=0.01)


def test_compilations_are_counted() -> None:
    before = compilations.count()
    function = jax.jit(lambda x: jnp.sin(x) * 3.25)
    function(jnp.ones(7))
    once = compilations.count().since(before)
    function(jnp.ones(7))
    assert compilations.count().since(before) == once
    assert once.programs >= 1
    assert once.seconds > 0
    assert "compilation cache: " in once.describe_cache()


@pytest.mark.parametrize("text", ["10", "a:b", "0:3", "5:4", "-1:4", ""])
def test_windows_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: FIRST:LAST"):
        parse_window(text)


def test_a_trace_holds_the_steps_of_its_window(tmp_path: pathlib.Path) -> None:
    opened = []

    @contextlib.contextmanager
    def folder():
        opened.append("open")
        yield tmp_path
        opened.append("closed")

    profiler = Profiler(parse_window("3:4"), folder)
    assert parse_window("3:4") == ProfileWindow(3, 4)
    for step in range(1, 7):
        with profiler.step(step):
            value = jnp.ones(()) * step
        profiler.after(step, value.block_until_ready)
        assert opened == ([] if step < 3 else ["open"] if step == 3 else ["open", "closed"])
    profiler.close()
    assert opened == ["open", "closed"]
    (trace,) = tmp_path.glob("**/*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(dict(event.stats)["step_num"] for event in events) == [3, 4]
