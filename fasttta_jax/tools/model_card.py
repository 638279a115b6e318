"""The model card of an exported model: README.md, in the form that the Hub reads."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import subprocess
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from fasttta_jax.input_pipeline.records import TEXT_FOLDER
from fasttta_jax.metrics.intervals import Measured
from fasttta_jax.report.values import format_value
from fasttta_jax.storage.files import as_path, read_json
from fasttta_jax.text import LearnedTextEncoder
from fasttta_jax.text.networks import SUMMARY_FILE as NETWORKS_FILE
from fasttta_jax.version import __version__
from fasttta_jax.workdir.folder import CONFIG_FILE, ORIGIN_FILE
from fasttta_jax.workdir.restore import TrainedModel

KINDS = {
    "diffusion": "a teacher: every token is the end of a diffusion chain",
    "energy": "a one-step student: every token is one evaluation of its head",
    "guided": "a one-step student that guides itself: one pass an iteration, and one of its head",
}
LINE_LENGTH = 120
LICENCE_OF_CODE = "Apache-2.0"


@dataclasses.dataclass(frozen=True)
class CardText:
    """What people say of a model.

    Attributes:
      title: heading.
      licence: of the model, as the Hub writes it; "" where nobody said.
      notes: Markdown: the data and their licence, commands, limits.
    """

    title: str
    licence: str = ""
    notes: str = ""


def described(trained: TrainedModel) -> dict[str, Any]:
    """What `config.json` says of a model: where its parameters come from."""
    origin = trained.origin()
    return {
        "step": trained.step,
        "parameters_sha256": origin["sha256"],
        "num_parameters": _count(trained.params),
        "version": __version__,
        "commit": commit(),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the code that runs, with "+" where files differ from it; None outside git."""
    folder = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not pathlib.Path(git("rev-parse", "--show-toplevel")).samefile(folder):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def model_card(
    trained: TrainedModel, dtype: str, text: CardText, metrics: Mapping[str, Any] | None = None
) -> str:
    """The card; equal arguments give equal text.

    Args:
      trained: the model.
      dtype: of the parameters on disk.
      text: what people say of it.
      metrics: contents of a metrics.json, for figures; None leaves them out.
    """
    parts = [_head(text), f"# {text.title}", _summary(trained, dtype)]
    if text.notes.strip():
        parts.append(text.notes.strip())
    parts += [_use(), _origin(trained), _limits(trained)]
    if metrics is not None:
        parts.append(_figures(metrics))
    parts.append(_licences(trained, text))
    return "\n\n".join(parts) + "\n"


def _head(text: CardText) -> str:
    lines = ["---", "library_name: fasttta_jax", "pipeline_tag: text-to-audio"]
    if text.licence:
        lines.append(f"license: {text.licence}")
    return "\n".join([*lines, "---"])


def _summary(trained: TrainedModel, dtype: str) -> str:
    config, codec = trained.config, trained.codec
    columns = config.model.num_tokens // codec.tokens_per_column
    seconds = columns * codec.samples_per_column / codec.sample_rate
    kind = KINDS.get(config.objective, f"objective {config.objective!r}")
    counts = ", ".join(
        f"{name} {_count(part):,}" for name, part in trained.params.items() if _count(part)
    )
    decode = config.decode
    tokens = f"{config.model.num_tokens} of {config.model.token_dim} channels"
    rows = {
        "kind": kind,
        "parameters": f"{_count(trained.params):,} ({counts}), stored as {dtype}",
        "sound": f"{seconds:g} s, {codec.sample_rate:,} Hz, mono",
        "tokens": f"{tokens}, {codec.tokens_per_column} a column of {seconds / columns:g} s",
        "codec": type(codec).__name__,
        "text": _text(trained),
        "decoding": f"{decode.num_iterations} iterations, guidance {decode.guidance_scale:g} "
        f"({decode.guidance_schedule}), temperature {decode.temperature:g}",
    }
    return "Text to audio with fasttta_jax.\n\n" + _table(("", ""), rows.items())


def _text(trained: TrainedModel) -> str:
    config = trained.config.model.text
    if config.encoder == "learned":
        return f"a tokenizer and embeddings of its own, {config.num_positions} positions"
    if config.encoder == "none":
        return "none: it makes sounds without a prompt"
    path = as_path(trained.workdir) / TEXT_FOLDER / NETWORKS_FILE
    summary = read_json(path) if path.is_file() else {}
    hashes = summary.get("sha256", {})
    networks = ", ".join(f"{name} (SHA-256 {value})" for name, value in hashes.items())
    return f"frozen networks, which are in {TEXT_FOLDER}/networks: {networks}"


def _use() -> str:
    return """\
## Use

```python
import fasttta_jax

pipeline = fasttta_jax.load("FOLDER")  # or its OWNER/NAME on the Hub
for clip in pipeline.generate(["rain"]):
    clip.save("rain.wav")
```

or `python generate.py --workdir=FOLDER --prompt="rain" --out=sounds`. `hashes.json` has the SHA-256
of every file, which `load` compares; no file is a pickle."""


def _origin(trained: TrainedModel) -> str:
    config, origin = trained.config, trained.origin()
    found = read_json(as_path(trained.workdir) / CONFIG_FILE)
    rows: dict[str, Any] = {
        "seed": config.seed,
        "steps": f"{trained.step:,} of {config.num_steps:,}, {config.data.batch_size} clips each",
        "data (SHA-256)": found.get("data_hash", "unknown"),
        "parameters (SHA-256)": origin["sha256"],
        "code": f"fasttta_jax {__version__}, commit {commit() or 'unknown'}",
    }
    start = as_path(trained.workdir) / ORIGIN_FILE
    if start.is_file():
        first = read_json(start)
        rows["began with"] = f"parameters {first['sha256']}, step {first.get('step', 'unknown')}"
    return (
        "## Training\n\n"
        f"{_table(('', ''), rows.items())}\n\n"
        f"`{CONFIG_FILE}` has every setting of the run. The same code, settings, seed and data\n"
        "train the same model, on the same kind and number of devices bit for bit."
    )


def _limits(trained: TrainedModel) -> str:
    lines = ["## Limits", "", "It makes what its training data hold, and nothing else."]
    text = trained.model.text
    if isinstance(text, LearnedTextEncoder):
        words = text.words
        lines += [
            f"It knows {len(words)} words; every other one is read as a blank, and `generate.py` "
            "says so."
        ]
        if len(words) <= 200:
            lines += ["", textwrap.fill(" ".join(words), LINE_LENGTH)]
    return "\n".join(lines)


def _figures(metrics: Mapping[str, Any]) -> str:
    rows = metrics["rows"]
    names = list(dict.fromkeys(name for row in rows.values() for name in _measured(row)))
    cells = [
        (name, *(format_value(_measured(row).get(name)) for row in rows.values())) for name in names
    ]
    seed = metrics.get("settings", {}).get("evaluation", {}).get("seed", "unknown")
    return (
        f"## Figures\n\nOf `eval.py`, seed {seed}; ± is one standard error, [] a 95 % interval.\n\n"
        + _table(("", *rows), cells)
    )


def _measured(row: Mapping[str, Any]) -> dict[str, Measured]:
    """The figures of a row that have a number of clips behind them."""
    found = {}
    for name, value in row.items():
        if not isinstance(value, int | float) or f"{name}_count" not in row:
            continue
        if math.isfinite(value):
            error = row.get(f"{name}_standard_error")
            found[name.replace("_", " ")] = Measured(value, error, row[f"{name}_count"])
    return found


def _licences(trained: TrainedModel, text: CardText) -> str:
    lines = [
        "## Licences",
        "",
        f"Code: {LICENCE_OF_CODE}. Model: {text.licence or 'not stated; ask who trained it'}.",
    ]
    if trained.config.model.text.encoder == "frozen":
        lines.append("The frozen networks in text/networks keep the licences of their authors.")
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Any) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *_lines(rows, line)])


def _lines(rows: Any, line: Any) -> Iterator[str]:
    for row in rows:
        yield line(row)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
