"""The overview counts every parameter once, and allocates none."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from fasttta_jax.config import BackboneConfig, RunConfig, TextConfig
from fasttta_jax.report.text_table import format_table
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.text.learned import LearnedTextEncoder
from fasttta_jax.tools import param_overview
from fasttta_jax.tools.param_overview import group_parameters, list_parameters, overview
from fasttta_jax.training.optimizer import decay_mask
from tests.support import commands, helpers


def model_of(run: RunConfig, vocabulary_size: int = 300):
    return build_model(run, abstract_text_encoder(run.model.text, vocabulary_size))


@pytest.mark.parametrize("objective", ["diffusion", "energy"])
def test_every_parameter_is_listed_once_with_its_decay(objective):
    model = model_of(helpers.tiny_teacher_config("unused", objective=objective))
    params = jax.eval_shape(model.init, jax.random.key(0))
    listed = list_parameters(model)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(one.count for one in listed) == count
    assert sum(one.num_bytes for one in listed) == 4 * count  # float32
    assert len({one.name for one in listed}) == len(listed) == len(jax.tree.leaves(params))
    decayed = sum(
        x.size
        for x, does in zip(
            jax.tree.leaves(params), jax.tree.leaves(decay_mask(params)), strict=True
        )
        if does
    )
    assert 0 < sum(one.count for one in listed if one.decays) == decayed
    assert not any(one.decays for one in listed if one.name.startswith("head/"))


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_groups_divide_the_parameters_and_stacks_share_a_row(depth):
    backbone = BackboneConfig(width=32, encoder_depth=11, decoder_depth=2, num_heads=2)
    model = helpers.tiny_model_config(backbone=backbone)
    listed = list_parameters(model_of(helpers.tiny_teacher_config("unused", model=model)))
    groups = group_parameters(listed, depth)
    assert sorted(one.name for members in groups.values() for one in members) == sorted(
        one.name for one in listed
    )
    assert not any("encoder_1" in name or "encoder_0" in name for name in groups)
    if depth == 1:
        assert set(groups) == {"text", "backbone", "head"}
    if depth == 9:
        kernel = groups["backbone/encoder_*/mlp_in/kernel"]
        assert [one.shape for one in kernel] == [(32, 128)] * 11
        # in the order of the blocks, not of the letters
        assert [one.name.split("/")[1] for one in kernel][9:] == ["encoder_9", "encoder_10"]
        assert "backbone/decoder_*/norm_1/scale" in groups  # norm_1 and norm_2 are not a stack


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_stacked_blocks_have_the_rows_of_blocks_apart(depth):
    """Fewer arrays, but the same names of rows in the same order, counts and decays."""
    backbone = BackboneConfig(width=32, encoder_depth=3, decoder_depth=11, num_heads=2)
    listed = {}
    for scan_layers in (False, True):
        model = helpers.tiny_model_config(
            backbone=dataclasses.replace(backbone, scan_layers=scan_layers)
        )
        listed[scan_layers] = list_parameters(
            model_of(helpers.tiny_teacher_config("unused", model=model))
        )
    rows = {
        scan_layers: [
            (name, sum(one.count for one in members), {one.decays for one in members})
            for name, members in group_parameters(parameters, depth).items()
        ]
        for scan_layers, parameters in listed.items()
    }
    assert rows[True] == rows[False]
    assert len(listed[True]) == len(listed[False]) - 12 * (2 + 9)
    if depth == 9:
        # the stack comes before the block that stands alone
        kernels = group_parameters(listed[True], 9)["backbone/decoder_*/mlp_in/kernel"]
        assert [(one.name.split("/")[1], one.shape) for one in kernels] == [
            ("decoder_stack", (10, 32, 128)),
            ("decoder_10", (32, 128)),
        ]


def test_the_paper_size_is_listed_without_being_allocated():
    """193 M parameters of float32 would take 0.7 GiB; MAR-B's blocks are 12 D^2 + 13 D each."""
    text = TextConfig(
        encoder="frozen", streams=(("clap", 1, 512), ("t5", 77, 1024)), token_dropout=0.0
    )
    run = RunConfig()
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, text=text))
    live = len(jax.live_arrays())
    listed = list_parameters(model_of(run))
    assert len(jax.live_arrays()) <= live + 1  # the key
    groups = group_parameters(listed, 2)
    for name in ("encoder", "decoder"):
        blocks = sum(one.count for one in groups[f"backbone/{name}_*"])
        assert blocks == 12 * (12 * 768**2 + 13 * 768)


def test_the_table_ends_with_the_totals():
    listed = list_parameters(model_of(helpers.tiny_teacher_config("unused")))
    total = sum(one.count for one in listed)
    text = overview(listed, 2)
    lines = text.splitlines()
    whole = next(line for line in lines if line.split()[:2] == ["all", str(len(listed))])
    assert f"{total:,}" in whole
    assert "100.0%" in whole
    assert f"{total:,} parameters in {len(listed)} arrays" in text
    every = overview(listed, None).splitlines()
    assert sum(line.startswith(("text/", "backbone/", "head/")) for line in every) == len(listed)


def test_the_vocabulary_is_that_of_the_dataset_where_there_is_one(encoded_dataset, tmp_path):
    run = helpers.tiny_teacher_config(encoded_dataset)
    assert isinstance(param_overview.text_encoder(run, 17), LearnedTextEncoder)
    for path in ("", str(tmp_path)):
        elsewhere = helpers.tiny_teacher_config(path)
        (table,) = jax.tree.leaves(
            param_overview.text_encoder(elsewhere, 17).init(jax.random.key(0))
        )
        assert table.shape == (17, elsewhere.model.text.width)


def test_tables_are_aligned():
    table = format_table(("name", "value"), [["a", "1"], ["longer", "1000"]])
    assert table.splitlines() == ["name    value", "-" * 13, "a           1", "longer   1000"]


def test_the_command_prints_the_table():
    done = commands.run(
        *("-m", "fasttta_jax.tools.param_overview"),
        *("--config=configs/demo_teacher.py", "--depth=1", "--config.data.path="),
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert rows[2:6] == ["backbone", "head", "text", "all"]
