"""The report is one file, opens offline, plays what it was given, escapes what it was told."""

import base64
import html.parser
import io
import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import soundfile

from fasttta_jax.report.page import (
    Cell,
    Figure,
    Gate,
    PromptRow,
    Report,
    Row,
    Table,
    write_report,
)
from fasttta_jax.report.spectrograms import (
    LOWEST_DB,
    _mel_decibels,
    curves_png,
    spectrogram_png,
)

EVIL = '<script>alert("a & b")</script>'
VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def tone(frequency: float, seconds: float = 0.5, sample_rate: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def example() -> Report:
    return Report(
        title=f"Report {EVIL}",
        lead=f"First {EVIL}.",
        results=Table(
            f"Quality {EVIL}",
            ["figure", "real", EVIL],
            [
                Row("accuracy", [1.0, 0.90123], "higher"),
                Row(EVIL, [None, 61.2]),
                Row("clips", [48, 12345]),
            ],
            caption=EVIL,
            words={"accuracy": EVIL},
            missing=[EVIL],
        ),
        gates=[
            Gate("real", "accuracy", "at least 0.85", "0.901", True),
            Gate(EVIL, "distance", EVIL, EVIL, False),
        ],
        details=[Table("Others", ["row", "x"], [Row("a", ["text"])])],
        curves=[Figure(f"Loss {EVIL}", curves_png({"a": ([1, 2], [1.0, 0.5])}), EVIL)],
        prompts=[
            PromptRow(
                f"a bell {EVIL}",
                [Cell("real", tone(440), 16_000), Cell(EVIL, tone(880) * 3, 16_000)],
            ),
            PromptRow("rain", [Cell("student", None, 16_000)]),
        ],
        settings={"b": {"x": EVIL}, EVIL: 1},
        created="2024-05-06",
        notes=[EVIL],
        about=f"{EVIL}.\n\nSecond.",
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "folder" / "report.html"
    write_report(path, example())
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_nothing_that_was_told_becomes_markup(written: str) -> None:
    page = Page(written)
    assert page.all("script") == []
    assert "<script" not in written
    assert page.text.count(EVIL) == 20
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_the_page_needs_nothing_from_outside(written: str) -> None:
    page = Page(written)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert page.all("link") == []
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]+", "", written)
    assert not re.search(r"https?:|url\(|@import|//", without_data)


def test_the_audio_is_what_was_handed_over(written: str) -> None:
    players = Page(written).all("audio")
    assert len(players) == 2
    assert all("controls" in player and player["aria-label"] for player in players)
    for player, expected in zip(players, [tone(440), np.clip(tone(880) * 3, -1, 1)], strict=True):
        media_type, content = player["src"].split(";base64,")
        assert media_type == "data:audio/flac"
        audio, sample_rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert sample_rate == 16_000
        np.testing.assert_allclose(audio, expected, atol=2**-15)


def test_every_picture_is_a_png_with_an_alternative_text(written: str) -> None:
    images = Page(written).all("img")
    assert len(images) == 3
    for image in images:
        assert len(image["alt"]) > 5
        media_type, content = image["src"].split(";base64,")
        assert media_type == "data:image/png"
        assert PIL.Image.open(io.BytesIO(base64.b64decode(content))).format == "PNG"


def test_tables_show_figures_gates_and_gaps(written: str) -> None:
    text = re.sub(r"\s+", " ", Page(written).text)
    assert "accuracy ↑ 1.000 0.901" in text
    assert "– 61.2 clips 48 12,345" in text
    assert "Gates 1 of 2 failed" in text
    assert "real accuracy at least 0.85 0.901 ✓ pass" in text
    assert text.count("Gates") == 2  # the heading and the link to it
    assert "no sound" in text
    assert "2024-05-06" in text


def test_sounds_come_first_and_prose_last(written: str) -> None:
    sections = [section["id"] for section in Page(written).all("section")]
    assert sections == ["sounds", "results", "gates", "details", "curves", "notes", "settings"]
    links = [link["href"] for link in Page(written).all("a")]
    assert links == [f"#{section}" for section in sections]


def test_equal_reports_are_equal_files_and_empty_parts_leave_no_trace(
    tmp_path: pathlib.Path,
) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_report(tmp_path / "a", Report(title="Empty"))
    page = Page((tmp_path / "a").read_text("utf-8"))
    assert page.all("h2") == []
    assert page.all("section") == []


def test_bad_parts_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"table 'T', row 'r' has 1 values; expected 2"):
        Table("T", ["row", "a", "b"], [Row("r", [1.0])])
    bad = tone(440)
    bad[3] = np.nan
    report = Report("R", prompts=[PromptRow("rain", [Cell("student", bad, 16_000)])])
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match=r"prompt 'rain', cell 'student' .* 1 non-finite"):
        write_report(path, report)
    assert not path.exists()


def test_a_full_scale_sine_is_zero_decibels_at_its_frequency() -> None:
    for sample_rate in (16_000, 44_100):
        decibels = _mel_decibels(2 * tone(1000, 0.5, sample_rate), sample_rate)
        assert abs(decibels.max()) < 2.0
        assert decibels.min() >= LOWEST_DB
        quiet = _mel_decibels(0.2 * tone(1000, 0.5, sample_rate), sample_rate)
        assert decibels.max() - quiet.max() == pytest.approx(20.0, abs=0.01)


@pytest.mark.usefixtures("unchecked")
def test_pictures_are_deterministic_and_show_the_sound() -> None:
    low, high = spectrogram_png(tone(200), 16_000), spectrogram_png(tone(4000), 16_000)
    assert spectrogram_png(tone(200), 16_000) == low
    assert spectrogram_png(tone(200), 16_000, title="low") != low

    def brightest_row(png: bytes) -> int:
        pixels = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        # Sound is warm (red above blue); axes, labels and silence are grey.
        warm = np.maximum(pixels[..., 0] - pixels[..., 2], 0).sum(axis=1)
        return int(warm.argmax())

    assert brightest_row(low) > brightest_row(high) + 50
    spectrogram_png(np.zeros(2000, np.float32), 16_000)
    with pytest.raises(ValueError, match=r"shape \(2, 10\)"):
        spectrogram_png(np.zeros((2, 10)), 16_000)


def test_curves_take_gaps_negative_values_and_many_points() -> None:
    steps = np.arange(1, 301)
    curves = {
        "long": (steps, 10.0 / steps),
        "gap": ([1, 2, 3], [1.0, float("nan"), 2.0]),
        "negative": ([1, 2], [-1.0, float("inf")]),
    }
    first = curves_png(curves, title="loss")
    assert first == curves_png(curves, title="loss")
    assert first != curves_png({"long": curves["long"]}, title="loss")
    curves_png({"nothing": ([1], [float("nan")])})
    with pytest.raises(ValueError, match="at least one run"):
        curves_png({})
    with pytest.raises(ValueError, match=r"curve 'x' has steps \(2,\) and values \(1,\)"):
        curves_png({"x": ([1, 2], [1.0])})


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_pictures_of_many_threads_keep_no_more_files_open_than_those_of_one():
    audio = np.sin(np.arange(8000) / 10).astype(np.float32)

    def draw() -> bytes:
        return spectrogram_png(audio, 16_000, "a tone")

    expected, before = draw(), set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with ThreadPoolExecutor(1) as thread:  # a new one each time
            assert thread.submit(draw).result() == expected
    assert set(os.listdir("/proc/self/fd")) == before
