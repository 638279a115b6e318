"""The parameters of a config as a table: shapes, counts, bytes and which ones decay.

    python -m fasttta_jax.tools.param_overview --config=configs/impact_base.py
    python -m fasttta_jax.tools.param_overview --config=configs/tiny.py:student --depth=4
    python -m fasttta_jax.tools.param_overview --config=configs/demo_teacher.py --all

Nothing is allocated: the model is only traced for its shapes. Blocks of a stack share a row, such
as backbone/encoder_*, be they arrays of their own or, with scan_layers, parts of one. A learned
text encoder has an embedding for each vocabulary entry: those of the tokenizer in
--config.data.path where there is one, else --vocabulary_size.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from fasttta_jax import cli
from fasttta_jax.config import RunConfig, from_config_dict
from fasttta_jax.input_pipeline.records import TEXT_FOLDER
from fasttta_jax.parallel.sharding import path_name
from fasttta_jax.report.text_table import format_table
from fasttta_jax.systems import System, build_model
from fasttta_jax.text import LearnedTextEncoder, TextEncoder, abstract_text_encoder
from fasttta_jax.text.learned import TOKENIZER_FILE
from fasttta_jax.training.optimizer import decay_mask

MIB = 2**20
STACKED = re.compile(r"(?<=encoder_|decoder_)(\d+|stack)\b|(?<=block_)\d+")
COLUMNS = ("parameters", "arrays", "shape", "count", "share", "MiB", "decays")
STATE_COPIES = 4
"""Parameters, their running average, and the two moments of Adam, all of one size."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array.

    Attributes:
      name: its path, such as "backbone/encoder_0/mlp_in/kernel".
      shape: of the array.
      num_bytes: its size in memory.
      decays: whether the optimizer's weight decay acts on it.
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int
    decays: bool

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def list_parameters(model: System) -> tuple[Parameter, ...]:
    """Every array of a model's parameters, by name, block 2 before block 10; none is allocated."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    decays = jax.tree.leaves(decay_mask(shapes))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    parameters = [
        Parameter(path_name(path), leaf.shape, leaf.size * leaf.dtype.itemsize, does)
        for (path, leaf), does in zip(leaves, decays, strict=True)
    ]
    return tuple(sorted(parameters, key=_reading_order))


def _reading_order(parameter: Parameter) -> list[tuple[str, int]]:
    # The stacked blocks come before the last one, which stands alone.
    name = parameter.name.replace("_stack/", "_0/")
    parts = (re.fullmatch(r"(.*?)(\d*)", part) for part in name.split("/"))
    return [(part[1], int(part[2] or 0)) for part in parts if part]


def group_parameters(
    parameters: Sequence[Parameter], depth: int
) -> dict[str, tuple[Parameter, ...]]:
    """Parameters by the first `depth` parts of their names, the blocks of a stack as one."""
    groups: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        parts = parameter.name.split("/")[:depth]
        groups.setdefault(STACKED.sub("*", "/".join(parts)), []).append(parameter)
    return {name: tuple(members) for name, members in groups.items()}


def _cells(name: str, members: Sequence[Parameter], total: int) -> list[str]:
    count = sum(member.count for member in members)
    shapes = {member.shape for member in members}
    decays = {member.decays for member in members}
    shape = " x ".join(map(str, shapes.pop())) if len(shapes) == 1 else ""
    verdict = "in part" if len(decays) > 1 else "yes" if decays == {True} else "no"
    size = sum(member.num_bytes for member in members) / MIB
    share = f"{count / total:.1%}"
    return [name, str(len(members)), shape, f"{count:,}", share, f"{size:,.2f}", verdict]


def overview(parameters: Sequence[Parameter], depth: int | None) -> str:
    """The table, a row for each group, each part of the model and the whole.

    Args:
      parameters: as `list_parameters` returns them.
      depth: how many parts of a name make a group; None gives every array a row.
    """
    total = sum(parameter.count for parameter in parameters)
    if depth is None:
        groups = {parameter.name: (parameter,) for parameter in parameters}
    else:
        groups = group_parameters(parameters, depth)
    rows = [_cells(name, members, total) for name, members in groups.items()]
    if depth != 1:
        parts = group_parameters(parameters, 1)
        rows += [_cells(f"all of {name}", members, total) for name, members in parts.items()]
    rows.append(_cells("all", parameters, total))
    decayed = sum(parameter.count for parameter in parameters if parameter.decays)
    size = sum(parameter.num_bytes for parameter in parameters) / MIB
    return "\n".join(
        [
            format_table(COLUMNS, rows),
            "",
            f"{total:,} parameters in {len(parameters)} arrays; weight decay acts on {decayed:,}.",
            f"{size:,.1f} MiB in float32; {STATE_COPIES * size:,.1f} MiB as a training state of "
            "parameters, running average and two moments.",
        ]
    )


def text_encoder(config: RunConfig, vocabulary_size: int) -> TextEncoder:
    """The dataset's learned text encoder where there is one, else a stand-in of the same shapes."""
    folder = pathlib.Path(config.data.path) / TEXT_FOLDER
    is_fitted = config.data.path and (folder / TOKENIZER_FILE).is_file()
    if config.model.text.encoder == "learned" and is_fitted:
        return LearnedTextEncoder.load(folder, config.model.text)
    return abstract_text_encoder(config.model.text, vocabulary_size)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command line; not done at import, where tests would define it a second time."""
    config_flags.DEFINE_config_file(
        "config", None, "A file of configs/.", lock_config=True, flag_values=values
    )
    flags.mark_flag_as_required("config", flag_values=values)
    flags.DEFINE_integer(
        "depth",
        2,
        "Parts of a parameter's name that make a row: 1 is text, backbone and head.",
        1,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "all", False, "A row for every single array, in place of --depth.", flag_values=values
    )
    flags.DEFINE_integer(
        "vocabulary_size",
        1000,
        "Entries of a learned text encoder that is not fitted yet.",
        1,
        flag_values=values,
    )


def main() -> None:
    """Prints the overview of --config."""
    values = flags.FLAGS
    config = from_config_dict(values.config)
    model = build_model(config, text_encoder(config, values.vocabulary_size))
    print(overview(list_parameters(model), None if values.all else values.depth))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
