"""A web page to play with a model, on this machine.

    python -m fasttta_jax.tools.demo
    python -m fasttta_jax.tools.demo --workdir=runs/demo/student --port=7861

opens http://127.0.0.1:7860: a prompt becomes a sound that can be heard and seen; it is varied,
filled in, made a loop or put together from several texts in time. Without --workdir it is the model
that comes with the package. The first sound waits for compilation, later ones of the same settings
do not. Requests wait for each other.

The page is for this machine alone, needs nothing from the network and sends nothing there. --host
lets others in: 0.0.0.0 is everyone who can reach this machine, without a password.

It needs gradio: `pip install 'fasttta_jax[demo]'`, or `pip install -e '.[demo]'` in a checkout.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from absl import flags

from fasttta_jax import cli
from fasttta_jax.audio.files import playback_level
from fasttta_jax.generation.edits import SHARE
from fasttta_jax.generation.pipeline import Pipeline
from fasttta_jax.report.spectrograms import spectrogram_png
from fasttta_jax.tools.demo_calls import Asked, RefusedError, make
from fasttta_jax.workdir.restore import which_checkpoint

if typing.TYPE_CHECKING:
    from gradio import Audio, Blocks, Button
    from gradio.components import Component
else:  # may be absent, and takes seconds to import
    Audio = Blocks = Button = Component = Any

logger = logging.getLogger("fasttta_jax.tools.demo")

LOCAL = "127.0.0.1"
PORT = 7860
LARGEST_UPLOAD = "20mb"
MOST_WAITING = 32
CACHE_SECONDS = 3600
FAILED = "The model failed; the terminal that this page was started from says why."
MOST_EXAMPLES = 4
TIMELINE = "0-2 rain is falling; 1-3 thunder rumbles"


def check_installed() -> None:
    """Raises RuntimeError, which says what to do, where gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise RuntimeError(
            "the web page needs gradio, which is not installed: pip install 'fasttta_jax[demo]', "
            "or pip install -e '.[demo]' in a checkout"
        )


def build(pipeline: Pipeline, name: str) -> Blocks:
    """The page of a model.

    Args:
      pipeline: the model.
      name: what the page calls it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    import gradio as gr

    trained = pipeline.trained
    decode, codec = trained.config.decode, trained.codec
    columns = trained.config.model.num_tokens // codec.tokens_per_column
    seconds = columns * codec.samples_per_column / codec.sample_rate
    with gr.Blocks(title=name, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as page:
        gr.Markdown(f"## Text to audio\nModel: `{name}`")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", autofocus=True, elem_id="prompt")
                if trained.config.sample_prompts:
                    gr.Examples(list(trained.config.sample_prompts[:MOST_EXAMPLES]), prompt)
                negative = gr.Textbox(label="Negative prompt: what is not to be heard")
                with gr.Row():
                    common = [
                        prompt,
                        negative,
                        gr.Textbox("0", label="Seed", elem_id="seed", min_width=80),
                        *(
                            gr.Textbox(label=label, placeholder=f"{default:g}", min_width=80)
                            for label, default in (
                                ("Seconds", seconds),
                                ("Iterations", decode.num_iterations),
                                ("Guidance", decode.guidance_scale),
                            )
                        ),
                    ]
                tabs = _tabs(gr)
            with gr.Column():
                player = gr.Audio(
                    label="Sound",
                    interactive=False,
                    format="wav",
                    buttons=["download"],
                    elem_id="sound",
                )
                picture = gr.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    elem_id="picture",
                )
                message = gr.Textbox(
                    label="Message", interactive=False, lines=2, max_lines=8, elem_id="message"
                )
        for tab in tabs:
            gr.on(
                [tab.button.click, prompt.submit] if tab is tabs[0] else [tab.button.click],
                functools.partial(answer, pipeline, list(tab.inputs), tab.fixed),
                [*common, *tab.inputs.values()],
                [player, picture, message],
                concurrency_id="model",
                concurrency_limit=1,
                api_visibility="private",
            )
    return page.queue(max_size=MOST_WAITING)


class Tab(NamedTuple):
    """A way to make a sound.

    Attributes:
      button: starts it.
      inputs: fields, by the names of the edits.
      fixed: edits that all its sounds have.
    """

    button: Button
    inputs: Mapping[str, Component]
    fixed: Mapping[str, Any]


def _tabs(gr: Any) -> list[Tab]:
    """The tabs of the page, which is being built."""

    def button(words: str) -> Button:
        return gr.Button(words, variant="primary")

    def sound(name: str, words: str) -> Audio:
        return gr.Audio(label=words, type="filepath", sources=["upload"], elem_id=name)

    with gr.Tabs():
        with gr.Tab("New"):
            tabs = [Tab(button("Make a sound"), {}, {})]
        with gr.Tab("Vary"):
            gr.Markdown("New takes of a sound: a share of it is made anew, by the prompt.")
            fields = {
                "vary": sound("vary", "Sound to vary"),
                "share": gr.Slider(0.05, 1.0, SHARE, step=0.05, label="Share that is made anew"),
            }
            tabs.append(Tab(button("Make a take"), fields, {}))
        with gr.Tab("Fill"):
            gr.Markdown("What is kept stays; all else is made by the prompt.")
            fields = {
                "audio": sound("audio", "Sound to fill in or to continue"),
                "keep": gr.Textbox(
                    "0-1", label="Seconds to keep, such as 0-1 or 0-1,2-2.56", elem_id="keep"
                ),
            }
            tabs.append(Tab(button("Fill in"), fields, {}))
        with gr.Tab("Loop"):
            gr.Markdown("A sound whose end leads to its beginning; the player repeats it.")
            tabs.append(Tab(button("Make a loop"), {}, {"loop": True}))
        with gr.Tab("Timeline"):
            gr.Markdown("What is to be heard when; the prompt holds where it says nothing.")
            fields = {
                "timeline": gr.Textbox(
                    TIMELINE, label="START-END TEXT; ...", lines=2, elem_id="timeline"
                )
            }
            tabs.append(Tab(button("Follow the timeline"), fields, {}))
    return tabs


def answer(
    pipeline: Pipeline, names: Sequence[str], fixed: Mapping[str, Any], *values: Any
) -> tuple[Any, Any, str]:
    """What a button of the page does; nothing that a visitor can do makes it raise an error.

    Args:
      pipeline: the model.
      names: of the edits whose values stand behind those of the common fields.
      fixed: edits that all sounds of the tab have.
      *values: of the fields.

    Returns:
      The sound and whether it repeats, as an update of the player; its spectrogram; the message.
    """
    import gradio as gr

    given = dict(zip(names, values[len(values) - len(names) :], strict=True))
    asked = Asked(*values[: len(values) - len(names)])
    try:
        clip, note = make(pipeline, asked, **given, **fixed)
        audio = playback_level(clip.audio)
        picture = PIL.Image.open(io.BytesIO(spectrogram_png(audio, clip.sample_rate)))
    except RefusedError as refused:
        return None, None, str(refused)
    except Exception:
        logger.exception("a request from the page failed")
        return None, None, FAILED
    samples = np.round(audio * np.iinfo(np.int16).max).astype(np.int16)
    return gr.Audio((clip.sample_rate, samples), loop="loop" in fixed), picture, note


def serve(page: Blocks, host: str, port: int, *, wait: bool = True) -> str:
    """Serves the page, until Ctrl-C where `wait` is set; returns its address.

    Raises:
      OSError: the port is taken, or the host is none of this machine.
    """
    from gradio.themes import Default

    fonts = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the visitor's machine
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            max_file_size=LARGEST_UPLOAD,
            theme=Default(font=fonts[0], font_mono=fonts[1]),
        )
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}; --port and --host name another") from error
    if wait:
        logger.info("open %s; Ctrl-C ends it", address)
        page.block_thread()
    return address


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command in `values`."""

    def string(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    string(
        "workdir",
        None,
        "Folder of a trained model, or of an exported one, or OWNER/NAME on the Hub. Default: the "
        "model that comes with the package.",
    )
    string("checkpoint", "last", "Which one: last, best (lowest validation loss) or a step.")
    string("host", LOCAL, "Address to listen at; 0.0.0.0 lets in everyone who can reach it.")
    flags.DEFINE_integer(
        "port", PORT, "To listen at.", lower_bound=1, upper_bound=65_535, flag_values=values
    )


def main() -> None:
    """Serves a page of the model that the flags name."""
    values = flags.FLAGS
    check_installed()
    which = which_checkpoint(values.checkpoint)
    pipeline = Pipeline.open(values.workdir, which)
    name = values.workdir or "the model that comes with fasttta_jax"
    if values.host != LOCAL:
        logger.warning("everyone who can reach %s:%d can use this page", values.host, values.port)
    serve(build(pipeline, name), values.host, values.port)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.run(main)
