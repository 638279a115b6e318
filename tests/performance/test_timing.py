"""Calls are timed in turns, warm."""

from __future__ import annotations

import pytest

from fasttta_jax.performance.timing import time_in_turns


def test_cases_take_turns_after_all_are_warm():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = time_in_turns(cases, 3)
    assert "".join(calls) == "ab" + "ab" * 3
    assert all(len(timing.calls) == 3 for timing in timings.values())
    assert all(timing.first >= 0 for timing in timings.values())
    with pytest.raises(ValueError, match="repeats is 2; allowed: 3 or more"):
        time_in_turns(cases, 2)
