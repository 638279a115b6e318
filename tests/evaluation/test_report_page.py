"""The report in a real Chromium: it fits, plays and needs nothing from outside, in the worst case.

The worst case: five systems, every figure of a protocol, long names, bounds that fail.
"""

import dataclasses

import numpy as np
import pytest

from fasttta_jax.evaluation import gates, tables
from fasttta_jax.evaluation.metric import Quantity
from fasttta_jax.evaluation.network_metrics import network_metrics
from fasttta_jax.evaluation.protocols import PROTOCOLS
from fasttta_jax.evaluation.rows import ENERGY_SCORE, RowResult, sampling_quantity
from fasttta_jax.evaluation.tagger_metrics import (
    AttributeAccuracy,
    EventAccuracy,
    EventCount,
    RecallAtK,
)
from fasttta_jax.evaluation.timing import SamplingTime
from fasttta_jax.metrics.intervals import Measured, proportion
from fasttta_jax.performance.timing import Timing
from fasttta_jax.report.page import Cell, Figure, PromptRow, Report, write_report
from fasttta_jax.report.spectrograms import curves_png
from tests.support import chromium

RATE = 16_000
SYSTEMS = ("real", "codec", "teacher", "student", "consistency_tta")
PROMPTS = (
    "a bell",
    "a very long prompt, " * 12,
    "rain",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 3,
)

EVENTS = [EventCount("footsteps", 16, 13, (("thunder", 3),)), EventCount("rain", 16, 16, ())]
TIME = SamplingTime(64, 2.56, Timing(12.3, (0.101, 0.102, 0.103)))
MISSING = {"recall_at_k": "no clip has several events"}


def quantities() -> list[Quantity]:
    judged = [
        metric.quantity
        for metric in network_metrics().values()
        if metric.quantity.name in PROTOCOLS["ours"].metrics
    ]
    tagger = [EventAccuracy.quantity, AttributeAccuracy.quantity, RecallAtK.quantity]
    return [*tagger, *judged, ENERGY_SCORE, sampling_quantity(64)]


def results() -> list[RowResult]:
    rows = []
    for place, name in enumerate(SYSTEMS):
        wide = Measured(1234.5 + place, interval=(1198.7, 1301.2))
        values = {one.name: wide for one in quantities()[3:]}
        values |= {one.name: proportion(97 + place, 192) for one in quantities()[:3]}
        row = RowResult(name, name, values, MISSING if place else {}, {1: 192, 2: 96}, EVENTS)
        rows.append(dataclasses.replace(row, sampling=TIME))
    return rows


def report() -> Report:
    rows, seconds = results(), np.arange(RATE // 4) / RATE
    figures = {row.name: row.values for row in rows}
    checked = gates.check(gates.GATES["demo"], figures, quantities())
    tone = (0.4 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    cells = [Cell(name, tone, RATE) for name in ("real", "teacher", "student")]
    return Report(
        title="Evaluation of teacher, student",
        lead="What was made for the captions of test clips, beside the real clips.",
        prompts=[
            *(PromptRow(prompt, cells[:1]) for prompt in PROMPTS[1:]),
            PromptRow(PROMPTS[0], [*cells, Cell("consistency_tta", None, RATE)]),
        ],
        results=tables.results_table(rows, quantities()),
        gates=[gate for found in checked.values() for gate in found],
        details=[
            tables.event_table(rows),
            tables.sampling_table(rows, quantities()),
            tables.literature_table(),
        ],
        curves=[Figure("Loss", curves_png({"student": ([1, 2], [1.0, 0.5])}))],
        notes=["two captions have no sound"],
        about=tables.about(rows),
        settings={
            "run.student.config.distillation.backbone_from_teacher": True,
            "evaluation.prompts": PROMPTS * 4,
        },
    )


@pytest.fixture(scope="module")
def page(chromium_browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, report())
    opened = chromium_browser.new_page(offline=True)
    opened.asked_for = []
    opened.on("request", lambda request: opened.asked_for.append(request.url))
    opened.goto(path.as_uri())
    yield opened
    opened.close()


@pytest.mark.parametrize("width", [1600, 1280, 390])
def test_no_row_is_high_and_nothing_overflows(page, width):
    chromium.check_layout(page, width)


def test_every_player_has_sound_and_every_image_is_there(page):
    chromium.check_sounds(page, 6)
    chromium.check_images(page, 6 + 1)


def test_the_page_asks_for_nothing_from_outside(page):
    outside = [url for url in page.asked_for if not url.startswith("data:")]
    assert outside == [page.url]


def test_the_table_follows_the_first_sounds(page):
    """Within two screens of the top, with what else is heard folded away."""
    page.reload()
    page.set_viewport_size({"width": 1280, "height": 900})
    top = page.evaluate("document.querySelector('#results').getBoundingClientRect().top")
    first = page.evaluate("document.querySelector('audio').getBoundingClientRect().top")
    assert 0 < first < 450
    assert first < top < 1800
