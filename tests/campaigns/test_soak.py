"""The soak in small, and that its limits are passed by what grows."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.campaigns.soak import (
    GUIDANCE,
    NEGATIVE,
    SECONDS,
    Sample,
    Setting,
    allocated_by_glibc,
    judge,
    soak,
)

KEPT = 90.0
RNG = np.random.default_rng(5)


def samples(
    bytes_a_clip: float = 0.0,
    descriptors: float = 0.0,
    threads: float = 0.0,
    blocks_a_clip: float = 0.0,
):
    """A thousand jobs of 30 clips: memory with .4 MiB of noise behind the same job, 40 behind
    others, and 300 MiB of warming up; resident memory says nothing.
    """
    return [
        Sample(
            same=n % 5 == 0,
            seconds=2.0 * n,
            clips=30 * n,
            allocated=round(
                700e6
                + min(n, 200) * 1.5e6
                + RNG.normal(0, 4e5 if n % 5 == 0 else 4e7)
                + bytes_a_clip * 30 * n
            ),
            blocks=round(1e6 + min(n, 200) * 1e3 + RNG.normal(0, 1e3) + blocks_a_clip * 30 * n),
            resident=10**9 * n,
            descriptors=8 + int(descriptors * n),
            threads=16 + int(threads * n) + n % 2,
        )
        for n in range(1, 1000)
    ]


def test_what_stays_level_is_no_fault() -> None:
    verdict = judge(samples(), KEPT)
    assert not verdict.faults
    assert abs(verdict.growth) < KEPT / 2


@pytest.mark.skipif(not allocated_by_glibc(), reason="no glibc")
def test_what_is_allocated_counts_until_it_is_freed() -> None:
    before = allocated_by_glibc()
    array = np.ones(2**24, np.uint8)
    assert 2**24 <= allocated_by_glibc() - before < 2**24 + 2**20
    del array
    assert abs(allocated_by_glibc() - before) < 2**20


def test_what_all_settings_have_taken_is_no_growth() -> None:
    """They may take longer than the share of the time that is for warming up."""
    rising = samples()[:200]
    assert judge(rising, KEPT).faults
    assert not judge(rising + samples()[200:400], KEPT, num_settings=200).faults


@pytest.mark.parametrize(
    ("grows", "fault"),
    [
        ({"bytes_a_clip": 3 * KEPT}, "memory grows"),
        ({"blocks_a_clip": 2.0}, "objects grow"),
        ({"descriptors": 0.01}, "descriptors grow"),
        ({"threads": 0.01}, "threads grow"),
    ],
)
def test_what_grows_is_a_fault(grows: dict[str, float], fault: str) -> None:
    (found,) = judge(samples(**grows), KEPT).faults
    assert fault in found


def test_a_job_of_it(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    setting = Setting("files", "wav", False, None, 1, None)
    verdict = soak(runs["student"], tmp_path, seconds=0.01, seed=0, settings=[setting])
    assert verdict.last.clips == len(SECONDS) * len(GUIDANCE) + len(NEGATIVE)
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == 1
