"""A few hundred inputs of `make fuzz`, and that the campaign sees what it looks for."""

from __future__ import annotations

import pathlib
import pickle
import random
import time

import pytest

from fasttta_jax.tools.export import export
from tests.campaigns import fuzz, trying
from tests.campaigns.draws import Draw, shrink
from tests.campaigns.families import FAMILIES, Family
from tests.campaigns.fuzz_world import World

pytestmark = pytest.mark.usefixtures("unchecked")  # rubbish is given as users give it
INPUTS = 250
FIRST = 100_000
"""Numbers that the full campaign does not reach."""
SEED = 0


@pytest.fixture(scope="module")
def world(
    encoded_dataset: pathlib.Path,
    runs: dict[str, pathlib.Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    folder = tmp_path_factory.mktemp("world")
    export(str(runs["teacher"]), str(folder / "exported"))
    audio = encoded_dataset.parent / "audio"
    return World(folder, audio, encoded_dataset, runs["teacher"], folder / "exported")


def test_inputs_end_with_the_right_result_or_one_clear_error(
    world: World, tmp_path: pathlib.Path
) -> None:
    numbers = range(FIRST, FIRST + INPUTS)
    tried = list(fuzz.campaign(world, SEED, numbers, tmp_path))
    failed = [
        f"input {one.number} of {one.family}, seed {SEED}: {one.outcome.detail}"
        for one in tried
        if one.outcome.kind == trying.FAILED
    ]
    assert not failed, "\n".join(failed)
    assert {one.family for one in tried} == {family.name for family in FAMILIES}
    kinds = {one.outcome.kind for one in tried}
    assert kinds == {trying.RIGHT, trying.SKIPPED, trying.REFUSED}


def _raises() -> trying.Kind:
    raise TypeError("of a programmer")


def _unclear() -> trying.Kind:
    with trying.may_refuse("config.json"):
        raise ValueError("3 is not 4")


def _hangs() -> trying.Kind:
    with trying.limited(0.05):
        time.sleep(5)
    return "right"


def _runs() -> trying.Kind:
    with trying.nothing_runs():
        pickle.loads(pickle.dumps(random.Random))
    return "right"


@pytest.mark.parametrize(
    ("attempt", "fault"),
    [
        (_raises, "TypeError"),
        (_unclear, "names neither file nor field"),
        (_hangs, "hang"),
        (_runs, "the input ran pickle.find_class"),
    ],
)
def test_what_may_not_be_is_seen(attempt, fault: str) -> None:
    outcome = trying.outcome_of(attempt)
    assert outcome.kind == trying.FAILED
    assert fault in outcome.fault


def test_a_changed_neighbour_is_seen(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("1")
    with pytest.raises(trying.Wrong, match="a neighbour changed: mine"), trying.unchanged(tmp_path):
        (tmp_path / "mine").write_text("2")


def test_answers_make_the_same_input_again_and_become_small() -> None:
    draw = Draw("seed")
    first = [draw.below(10**6) for _ in range(20)], draw.bytes(9), draw.text(("a", "b"))
    again = Draw(given=draw.answers)
    assert (
        [again.below(10**6) for _ in range(20)],
        again.bytes(9),
        again.text(("a", "b")),
    ) == first
    small = shrink(draw.answers, lambda answers: sum(answers) > 1000)
    assert sum(small) > 1000
    assert len(small) == 1


def test_a_failure_is_kept_and_a_campaign_goes_on(
    world: World, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its third input fails, the fifth ends the process: neither is tried a second time."""
    tries = []

    def attempt(world: World, draw: Draw, folder: pathlib.Path) -> trying.Kind:
        tries.append(draw.below(1000))
        (folder / "input.txt").write_text(str(tries[-1]))
        trying.expect(len(tries) < 3 or tries[-1] < 10, "too much")
        return "right"

    family = Family("one", 1, attempt)
    monkeypatch.setattr(fuzz, "FAMILIES", (family,))
    monkeypatch.setattr(fuzz, "_open_world", lambda kept, target: world)
    log = fuzz.run(tmp_path, 5, seed=1)
    assert [row["kind"] for row in log.rows] == ["right", "right", "failed", "failed", "failed"]
    (kept,) = (tmp_path / "failures").iterdir()
    assert fuzz.repeat(kept / "input.json", world, tmp_path).kind == trying.FAILED
    assert int((kept / "files" / "input.txt").read_text()) >= 10
    (tmp_path / "current-1").write_text("6")  # as a process leaves it that was killed there
    number = len(tries)
    log = fuzz.run(tmp_path, 7, seed=1)
    assert sorted(row["number"] for row in log.rows) == list(range(7))
    assert [row["fault"] for row in log.rows if row["number"] == 6] == ["the process died"]
    assert len(tries) > number
    assert "| one | 7 |" in log.table()
