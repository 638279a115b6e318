"""What came out of a comparison of rivals: figures with influences, differences, tables, plot."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import rivals_figures
from benchmarks.rivals_figures import Kept, Shares, difference, estimate_of
from benchmarks.rivals_plan import OURS, RIVALS, SAME_STEPS, TEACHER
from benchmarks.rivals_plot import rivals_png
from benchmarks.rivals_table import DEVIATIONS, LETTERS, SYSTEMS, page_part, to_markdown, verdict
from fasttta_jax.evaluation.metric import Needs, NotMeasured, Quantity
from fasttta_jax.metrics.intervals import Estimate, Measured

QUANTITIES = (
    Quantity("recall", "recall", "a share", "higher"),
    Quantity("frechet", "Fréchet", "a distance", "lower"),
)

# -------------------------------------------------------------------------------------- figures


class Hits:
    """A share of made-up hits; a clip is (hits, observations), or () where it does not count."""

    quantity, needs = QUANTITIES[0], Needs()

    def score(self, clips, reference, sample_rate):
        pairs = [one for one in clips if one]
        if not pairs:
            raise NotMeasured("none counts")
        hits, counts = map(sum, zip(*pairs, strict=True))
        return Measured(hits / counts, None, counts)


class FewClips(list):
    def take(self, rows):
        return FewClips(self[row] for row in rows)


def test_a_share_has_the_influence_of_every_clip():
    clips = FewClips([(1, 1), (), (0, 2), (3, 4), (2, 2)])
    kept = Kept(Shares(Hits()))
    figure = kept.score(clips, None, 0)
    assert figure.value == pytest.approx(6 / 9)
    assert kept.last is not None
    assert kept.last.influence.mean() == pytest.approx(0, abs=1e-12)
    step = 1e-6  # a clip that counts more moves the figure by its influence
    for row, (hits, count) in enumerate([one or (0, 0) for one in clips]):
        moved = (6 + step * hits) / (9 + step * count)
        slope = kept.last.influence[row] / len(clips)
        assert (moved - figure.value) / step == pytest.approx(slope, abs=1e-5)
    with pytest.raises(NotMeasured, match="no clip counts for recall"):
        kept.score(FewClips([(), ()]), None, 0)


def test_differences_know_which_way_is_better():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=64)

    def figures(shift, spread):
        one = Estimate.of_mean(shift + noise + spread * rng.normal(size=64))
        return {"estimates": {q.name: rivals_figures.to_json(one) for q in QUANTITIES}}

    ours, higher, near = figures(0, 0), figures(0.5, 0.1), figures(0.0, 0.3)
    found = {one.name: difference(higher, ours, one) for one in QUANTITIES}
    assert (found["recall"]["verdict"], found["frechet"]["verdict"]) == ("better", "worse")
    low, high = found["recall"]["interval"]
    assert low < found["recall"]["value"] < high
    assert high - low < 0.2, "what the clips do to both cancels"
    assert difference(near, ours, QUANTITIES[1])["verdict"] == "cannot tell"
    assert difference(ours, ours, QUANTITIES[1])["verdict"] == "cannot tell"
    assert difference({}, ours, QUANTITIES[0]) is None
    assert estimate_of(json.loads(json.dumps(ours)), "recall").value == pytest.approx(noise.mean())


# ---------------------------------------------------------------------------------------- table


def row(system, setting, passes, frechet, outcome=None, **more):
    interval = {"value": -1.0, "interval": [-2.0, -0.5 if outcome != "cannot tell" else 0.5]}
    found = {
        "system": system,
        "setting": setting,
        "run": f"{setting}_{system}",
        "passes": passes,
        "iterations": passes,
        "sampling_steps": None,
        "scale": 1.0,
        "note": "",
        "gflop": 0.1 * passes,
        "seconds": None,
        "figures": {"recall": 0.5, "frechet": frechet, "frechet_standard_error": 1.0},
        "differences": {"frechet": interval | {"verdict": outcome}} if outcome else {},
    }
    return found | more


def results(*rows):
    training = {
        "setting": SAME_STEPS,
        "system": "meanflow",
        "parameters": 1_700_000,
        "starts_from": "flow",
        "steps": 500,
        "step_seconds": 0.25,
        "step_gflop": 10.0,
        "tflop": 5.0,
        "memory_bytes": 2**27,
        "seconds": 130.0,
    }
    machine = {
        "processor": "P",
        "usable_cores": 2,
        "platform": "cpu",
        "num_devices": 1,
        "jax": "1",
        "jaxlib": "1",
        "python": "3",
    }
    return {
        "rows": list(rows),
        "references": {"codec": {"recall": 0.9, "frechet": 5.0}},
        "quantities": [dataclasses.asdict(one) for one in QUANTITIES],
        "training": [training],
        "left_out": [{"run": "same_steps_shortcut", "passes": 3, "reason": "a divisor"}],
        "plots": {SAME_STEPS: "plot.png"},
        "clips": {"single": 8, "scenes": 4, "tuning": 4, "seed": 0},
        "machine": machine,
        "load": 0.0,
        "warnings": [],
    }


IMPACT_ROW = row(TEACHER, "teachers", 64, 8.0, "better", sampling_steps=100, iterations=32)
OUR_ROW = row(OURS, SAME_STEPS, 1, 12.0)


def test_the_page_begins_with_whether_a_rival_is_better():
    assert "No rival has been judged" in verdict(results(OUR_ROW))
    even = results(OUR_ROW, IMPACT_ROW, row("meanflow", SAME_STEPS, 1, 11.0, "cannot tell"))
    assert to_markdown(even).startswith("No rival is better than ours")
    rows = [row("meanflow", SAME_STEPS, number, 11.0, "better") for number in (1, 4)]
    page = to_markdown(results(OUR_ROW, IMPACT_ROW, *rows))
    first, blank, *who = page.splitlines()
    assert first.startswith("**Better than ours**")
    assert first.endswith("(2 of 2 differences):")
    assert (blank, who[0], who[1]) == ("", "* MeanFlow (as many steps): Fréchet at 1 and 4", "")


def test_the_page_has_every_row_and_says_what_was_left_out():
    found = results(
        OUR_ROW,
        IMPACT_ROW,
        row("meanflow", SAME_STEPS, 1, 11.0, "better", seconds=0.0125),
        row("shortcut", SAME_STEPS, 1, 14.0, "cannot tell"),
    )
    page = to_markdown(found)
    lines = page.splitlines()
    assert "| IMPACT (teacher) | 64 | 32 x 100 | 1 | 6.40 | 0.500 | 8.0 ± 1.0 |" in lines
    assert any(line.startswith("| MeanFlow (a, c, d) | 1 | 1 | 1 |") for line in lines)
    assert "| MeanFlow (a, c, d) | 1 | – | **-1.0 [-2.0, -0.5]** |" in lines
    assert "| Shortcut (a, b, c) | 1 | – | -1.0 [-2.0, +0.5] |" in lines
    assert "* `same_steps_shortcut` at 3 passes: a divisor." in lines
    assert any("| as many steps | 1,700,000 | flow | 500 | 250 |" in line for line in lines)
    assert f"* c: {DEVIATIONS['c']}." in lines
    assert page_part(found) in page.replace(
        "![quality against passes and operations, as many steps](plot.png)\n\n", ""
    )
    assert rivals_png(found, SAME_STEPS, "frechet").startswith(b"\x89PNG")


def test_every_system_has_a_name_and_letters_that_exist():
    assert list(SYSTEMS) == [TEACHER, OURS, "flow", *RIVALS]
    assert set(LETTERS) == set(RIVALS)
    assert set("".join(LETTERS.values())) == set(DEVIATIONS)
