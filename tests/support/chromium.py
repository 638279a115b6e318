"""Pages in a real Chromium without a window: how they are laid out, and what they play."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
HIGHEST_ROW = 100
"""In pixels; a row of a table that is higher holds prose, or is squeezed."""

# In pixels; borders of cells may be drawn half a pixel wide.
LAYOUT = """() => {
  document.querySelectorAll("details").forEach(each => each.open = true);
  const name = each => each.tagName.toLowerCase() + ": " + each.textContent.trim().slice(0, 60);
  const boxes = [...document.body.querySelectorAll("*")];
  return {
    rows: [...document.querySelectorAll("tr")].map(row => [row.offsetHeight, name(row)]),
    beyond: boxes.filter(each => each.getBoundingClientRect().right > innerWidth + 1).map(name),
    cut: boxes.filter(each => each.scrollWidth > each.clientWidth + 1 && each.clientWidth > 0 &&
      getComputedStyle(each).display !== "inline").map(name),
    page: [document.documentElement.scrollWidth, innerWidth],
  };
}"""
SOUNDS = """() => Promise.all([...document.querySelectorAll("audio")].map(async player => {
  player.load();
  while (!(player.duration > 0) && !player.error) await new Promise(done => setTimeout(done, 5));
  const bytes = await (await fetch(player.currentSrc)).arrayBuffer();
  const decoded = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
  const peak = Math.max(...decoded.getChannelData(0).map(Math.abs));
  return [player.ariaLabel ?? player.currentSrc, player.duration, decoded.duration, peak];
}))"""
IMAGES = """() => Promise.all([...document.querySelectorAll("img")].map(async image => {
  await image.decode();
  return [image.alt, image.naturalWidth];
}))"""


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A browser of Playwright's; skips where Chromium or Playwright is missing."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium on the PATH: looked for {', '.join(NAMES)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def check_layout(page: Any, width: int) -> None:
    """Opens all that is folded; no row is high, and nothing runs out of the page or its card."""
    page.set_viewport_size({"width": width, "height": 900})
    found = page.evaluate(LAYOUT)
    high = [row for row in found["rows"] if row[0] > HIGHEST_ROW]
    assert not high, f"at {width} px: rows {high}"
    assert not found["beyond"], f"at {width} px, beyond the right edge: {found['beyond']}"
    assert not found["cut"], f"at {width} px, wider than their place: {found['cut']}"
    assert found["page"][0] <= found["page"][1]


def check_sounds(page: Any, number: int) -> None:
    """So many players, each of which plays something that can be heard."""
    sounds = page.evaluate(SOUNDS)
    assert len(sounds) == number
    for label, duration, decoded, peak in sounds:
        assert duration > 0, label
        assert abs(duration - decoded) < 0.05, label
        assert peak > 0.01, f"{label} is silent"


def check_images(page: Any, number: int) -> None:
    """So many images, all of which are shown."""
    images = page.evaluate(IMAGES)
    assert len(images) == number
    assert all(width > 0 for _, width in images)
