"""Which blocks of a source a run of another depth starts from."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fasttta_jax.config import BackboneConfig, ConfigError, RunConfig
from fasttta_jax.models.stacking import stack_layers
from fasttta_jax.systems import build_model
from fasttta_jax.training.block_map import choose_blocks
from tests.support import helpers


def depths(encoder: int, decoder: int, *, scan_layers: bool = False) -> BackboneConfig:
    return BackboneConfig(
        width=32,
        num_heads=2,
        encoder_depth=encoder,
        decoder_depth=decoder,
        scan_layers=scan_layers,
    )


@pytest.mark.parametrize(
    ("text", "ours", "theirs", "encoder", "decoder"),
    [
        ("", (2, 3), (2, 3), (0, 1), (0, 1, 2)),
        ("ends", (6, 6), (12, 24), (0, 1, 2, 9, 10, 11), (0, 1, 2, 21, 22, 23)),
        ("ends", (3, 1), (5, 5), (0, 3, 4), (4,)),
        ("spaced", (4, 6), (12, 11), (0, 4, 7, 11), (0, 2, 4, 6, 8, 10)),
        ("spaced", (1, 2), (5, 5), (4,), (0, 4)),
        ("ends", (0, 2), (0, 4), (), (0, 3)),
        ("1,0,1/3", (3, 1), (2, 4), (1, 0, 1), (3,)),
        ("/0,3", (0, 2), (0, 4), (), (0, 3)),
    ],
)
def test_maps_are_read_as_they_say(text, ours, theirs, encoder, decoder):
    found = choose_blocks(text, depths(*ours), depths(*theirs))
    assert (found.encoder, found.decoder) == (encoder, decoder)
    assert found.is_identity == (ours == theirs)


@pytest.mark.parametrize(
    ("text", "ours", "theirs", "message"),
    [
        ("0,4/0", (2, 1), (4, 4), "names block 4 of the encoder; allowed: 0 to 3, those of the so"),
        ("0/4", (1, 1), (4, 4), "names block 4 of the decoder; allowed: 0 to 3, those of the sour"),
        ("0,1/0", (1, 1), (4, 4), r"encoder_depth is 1; init_blocks is '0,1/0'"),
        ("spaced", (2, 5), (4, 4), r"decoder_depth is 5; init_blocks is 'spaced', .* has 4"),
        ("ends", (0, 2), (4, 4), r"encoder_depth is 0; allowed: 4, .* is another network"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(text, ours, theirs, message):
    with pytest.raises(ConfigError, match=message):
        choose_blocks(text, depths(*ours), depths(*theirs))


@pytest.mark.parametrize("text", ["0,1", "first", "0;1/2", "0/", "-1/0"])
def test_text_that_names_no_blocks_is_refused(text):
    with pytest.raises(
        ConfigError, match=r"init_blocks is .*; allowed: '', 'ends', 'spaced', or n"
    ):
        RunConfig(init_blocks=text)


@pytest.mark.parametrize("source_scans", [False, True])
@pytest.mark.parametrize("target_scans", [False, True])
def test_chosen_blocks_lie_where_the_run_has_them(source_scans, target_scans):
    theirs, ours = depths(3, 4, scan_layers=source_scans), depths(2, 2, scan_layers=target_scans)

    def shapes(backbone: BackboneConfig):
        config = helpers.tiny_teacher_config(
            "unused", model=helpers.tiny_model_config(backbone=backbone)
        )
        return jax.eval_shape(
            build_model(config, helpers.tiny_text_encoder()).init, jax.random.key(0)
        )

    apart = helpers.random_params(shapes(dataclasses.replace(theirs, scan_layers=False)))
    source = stack_layers(apart, theirs) if source_scans else apart
    found = choose_blocks("0,2/1,3", ours, theirs)(source, ours)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, shapes(ours))
    blocks = {"encoder_0": 0, "encoder_1": 2, "decoder_0": 1, "decoder_1": 3}
    chosen = {name: apart["backbone"][f"{name[:7]}_{number}"] for name, number in blocks.items()}
    rest = {name: tree for name, tree in apart["backbone"].items() if not name[-1].isdigit()}
    kept = {**apart, "backbone": {**rest, **chosen}}
    expected = stack_layers(kept, ours) if target_scans else kept
    wanted, got = (flatten_dict(tree, sep="/") for tree in (expected, found))
    assert wanted.keys() == got.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)
