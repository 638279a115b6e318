"""Exports a trained model as one folder that `fasttta_jax.load` reads anywhere.

    python -m fasttta_jax.tools.export runs/demo/student bells
    python -m fasttta_jax.tools.export runs/demo/student bells --checkpoint=best --dtype=float16 \\
        --metrics=runs/demo/report/metrics.json --notes=about.md --licence=cc-by-4.0

The folder holds parameters, config, codec, text encoder and a model card, with their hashes; it is
written whole or not at all, and twice the same command gives the same bytes. Put it on the Hub with
`hf upload OWNER/NAME bells`. --notes is Markdown that stands in the card as it is: the data and
their licence, the commands that made them and the run, what the model is not good at.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, get_args

from absl import flags

from fasttta_jax import cli
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.files import list_files
from fasttta_jax.tools.model_card import CardText, described, model_card
from fasttta_jax.workdir.exported import ExportedError, StoredDtype, check_target, write_exported
from fasttta_jax.workdir.restore import load_trained, which_checkpoint


def export(
    workdir: str,
    out: str,
    *,
    which: str | int = "last",
    dtype: StoredDtype = "float32",
    text: CardText | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Writes the model of a run, or an exported one in another dtype, to a new folder.

    Args:
      workdir: what `load_trained` takes.
      out: see `check_target`.
      which: checkpoint.
      dtype: of the parameters on disk.
      text: what people say of it.
      metrics: contents of a metrics.json of `eval.py`, for the card's figures.

    Raises:
      WorkdirError: see `load_trained` and `write_exported`.
      CheckpointError: the checkpoint cannot be read.
      OSError: the folder cannot be written.
    """
    check_target(out)
    trained = load_trained(workdir, local_mesh(), which=which)
    text = text or CardText(title=pathlib.Path(out).resolve().name)
    write_exported(
        out,
        config=trained.config,
        params=trained.params,
        origin=trained.workdir,
        described=described(trained),
        card=model_card(trained, dtype, text, metrics),
        dtype=dtype,
    )


def read_metrics_file(path: str) -> dict[str, Any]:
    """The rows of a metrics.json.

    Raises:
      ExportedError: it is no such file.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if not all(isinstance(row, dict) for row in found["rows"].values()):
            raise TypeError("its rows are no figures by name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportedError(
            f"--metrics={path} cannot be read ({type(error).__name__}: {error}); allowed: a "
            "metrics.json that eval.py wrote"
        ) from error
    return found


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command in `values`."""

    def string(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    string("checkpoint", "last", "Which one: last, best (lowest validation loss) or a step.")
    flags.DEFINE_enum(
        "dtype", "float32", get_args(StoredDtype), "Of the parameters on disk.", flag_values=values
    )
    string("metrics", None, "A metrics.json of eval.py, whose figures stand in the card.")
    string("title", None, "Heading of the card. Default: the name of the folder.")
    string("licence", "", "Of the model, as the Hub writes it, such as cc-by-4.0.")
    string("notes", None, "File of Markdown for the card: data, commands, limits.")


def main(workdir: str, out: str) -> None:
    """Exports WORKDIR to OUT as the flags say."""
    values = flags.FLAGS
    metrics = None if values.metrics is None else read_metrics_file(values.metrics)
    notes = "" if values.notes is None else pathlib.Path(values.notes).read_text(encoding="utf-8")
    export(
        workdir,
        out,
        which=which_checkpoint(values.checkpoint),
        dtype=values.dtype,
        text=CardText(values.title or pathlib.Path(out).resolve().name, values.licence, notes),
        metrics=metrics,
    )
    size = sum(list_files(out).values())
    print(f"{out}: {size / 1e6:.1f} MB. Hear it: python generate.py --workdir={out} --prompt=...")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.run(main, "WORKDIR OUT")
