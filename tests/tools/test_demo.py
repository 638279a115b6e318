"""The web page in a real Chromium: what is typed is heard, what cannot be made is said."""

import importlib.util
import pathlib
import socket

import jax
import numpy as np
import pytest

from fasttta_jax.audio.files import write_audio
from fasttta_jax.config import MeshConfig
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.parallel.mesh import make_mesh
from fasttta_jax.tools import demo

# Of the last sound that the page has fetched: its length and its peak.
HEAR = """async (url) => {
  const bytes = await (await fetch(url)).arrayBuffer();
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
  return [sound.duration, Math.max(...sound.getChannelData(0).map(Math.abs))];
}"""
TIMEOUT = 120_000  # milliseconds; programs are compiled


def test_without_gradio_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'fasttta_jax\[demo\]'"):
        demo.check_installed()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as found:
        found.bind((demo.LOCAL, 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def pipeline(runs) -> Pipeline:
    return Pipeline.open(str(runs["student"]), mesh=make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def address(pipeline, port):
    pytest.importorskip("gradio", reason="gradio is not installed")
    page = demo.build(pipeline, "a test")
    limits = {one.concurrency_id: one.concurrency_limit for one in page.fns.values()}
    assert limits["model"] == 1, "requests wait for each other"
    yield demo.serve(page, demo.LOCAL, port, wait=False)
    page.close()


class Visitor:
    """Someone at the page."""

    def __init__(self, page, address: str) -> None:
        self.page, self.urls = page, []
        page.on("request", lambda request: self.urls.append(request.url))
        page.goto(address)
        page.wait_for_selector("#prompt textarea", timeout=TIMEOUT)

    def ask(self, button: str, **fields: str) -> str:
        """Fills fields by their ids, presses a button, and waits for another message."""
        before = self.message
        for name, text in fields.items():
            self.page.fill(f"#{name} textarea, #{name} input", text)
        self.page.get_by_role("button", name=button).click()
        self.page.wait_for_function(
            "before => document.querySelector('#message textarea').value != before",
            arg=before,
            timeout=TIMEOUT,
        )
        return self.message

    def upload(self, name: str, path: pathlib.Path) -> None:
        """Hands a file to a field, and waits until the page has it."""
        with self.page.expect_response(lambda response: "/upload" in response.url):
            self.page.locator(f"#{name} input[type=file]").set_input_files(path)
        self.page.wait_for_timeout(500)  # in which the field takes it over

    @property
    def message(self) -> str:
        return self.page.input_value("#message textarea")

    def heard(self) -> tuple[float, float]:
        """Length and peak of the sound in the player."""
        self.page.wait_for_selector(
            "#sound audio, #sound [data-testid^=waveform]", state="attached"
        )
        self.page.wait_for_selector("#picture img")
        url = [url for url in self.urls if url.endswith("audio.wav")][-1]
        return self.page.evaluate(HEAR, url)


@pytest.fixture(scope="module")
def visitor(address, chromium_browser):
    page = chromium_browser.new_page()
    yield Visitor(page, address)
    page.close()


@pytest.mark.long
def test_a_prompt_is_heard_and_seen(visitor):
    message = visitor.ask("Make a sound", prompt="a loud tone, meow")
    assert "s of sound from seed 0, made in" in message
    assert "The model knows no 'meow'" in message
    seconds, peak = visitor.heard()
    assert f"{seconds:.2f} s of sound" in message
    assert peak > 0.01
    assert visitor.page.evaluate("document.querySelector('#picture img').naturalWidth") > 100


@pytest.mark.long
def test_what_cannot_be_made_is_said_in_the_page(visitor, tmp_path):
    assert visitor.ask("Make a sound", seed="seven").startswith("Seed is seven; allowed")
    assert visitor.ask("Make a sound", seed="3", prompt="x" * 10_000).startswith("The prompt has")
    evil = "<img src=x onerror=alert(1)>"
    assert "s of sound" in visitor.ask("Make a sound", prompt=evil)
    assert visitor.page.query_selector("img[src=x]") is None
    visitor.page.get_by_role("tab", name="Vary").click()
    assert visitor.ask("Make a take", prompt="a loud tone") == "Give a sound to vary."
    (tmp_path / "rubbish.wav").write_text("no sound")
    visitor.upload("vary", tmp_path / "rubbish.wav")
    assert "rubbish.wav" in visitor.ask("Make a take")


@pytest.mark.long
def test_every_tab_makes_a_sound(visitor, tmp_path, pipeline):
    codec = pipeline.trained.codec
    columns = pipeline.trained.config.model.num_tokens // codec.tokens_per_column
    noise = np.random.default_rng(0).normal(0, 0.1, columns * codec.samples_per_column)
    write_audio(tmp_path / "noise.wav", noise.astype(np.float32), codec.sample_rate, "wav")
    visitor.page.reload()
    visitor.page.wait_for_selector("#prompt textarea", timeout=TIMEOUT)
    half = columns // 2 * codec.samples_per_column / codec.sample_rate
    tabs = {
        "Vary": "Make a take",
        "Fill": "Fill in",
        "Loop": "Make a loop",
        "Timeline": "Follow the timeline",
    }
    for seed, (tab, button) in enumerate(tabs.items(), start=10):
        visitor.page.get_by_role("tab", name=tab).click()
        fields = {"prompt": "a loud tone", "seed": str(seed)}
        if tab == "Timeline":
            fields["timeline"] = f"0-{half} a loud tone; {half}-{2 * half} a quiet noise"
        if tab == "Fill":
            visitor.upload("audio", tmp_path / "noise.wav")
            fields["keep"] = f"0-{half}"
        if tab == "Vary":
            visitor.upload("vary", tmp_path / "noise.wav")
        assert f"s of sound from seed {seed}" in visitor.ask(button, **fields), tab
        assert visitor.heard()[1] > 0.01


@pytest.mark.long
def test_the_page_asks_nobody_else_and_fits_a_telephone(visitor, address):
    outside = [url for url in visitor.urls if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
    visitor.page.set_viewport_size({"width": 390, "height": 900})
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
