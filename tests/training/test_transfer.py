"""Parameters of one model in another: what fits moves, what does not is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import HeadConfig, RunConfig
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.training.transfer import Layout, Report, plan, resize_positions, transfer
from tests.support import helpers
from tests.support.tolerance import worst_rounding


def params_of(config: RunConfig, seed: int) -> tuple[dict[str, Any], Layout]:
    model = build_model(config, abstract_text_encoder(config.model.text))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    layout = Layout(model.backbone.num_text, config.model.num_tokens)
    return helpers.random_params(shapes, seed), layout


def moved(
    source: RunConfig, target: RunConfig, *, same_words: bool
) -> tuple[Report, dict, dict, dict]:
    """Report, the source's parameters, the fresh ones and the result."""
    old, old_layout = params_of(source, 1)
    new, new_layout = params_of(target, 2)
    report = plan(old, new, old_layout, new_layout, same_words=same_words)
    found = transfer(
        old,
        new,
        taken=report.taken,
        resized=report.resized,
        source_layout=old_layout,
        target_layout=new_layout,
    )
    return report, old, new, found


def assert_equal(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


CONFIG = helpers.tiny_teacher_config("unused")
NO_TEXT = dataclasses.replace(
    CONFIG,
    model=helpers.tiny_model_config(
        text=dataclasses.replace(
            CONFIG.model.text, encoder="none", token_dropout=0.0, drop_rate=0.0
        )
    ),
    decode=dataclasses.replace(CONFIG.decode, guidance_scale=1.0),
)


def test_the_same_model_moves_whole():
    report, old, _, found = moved(CONFIG, CONFIG, same_words=True)
    assert_equal(found, old)
    assert not report.fresh
    assert not report.resized
    assert not report.unused


def test_another_vocabulary_keeps_its_words():
    report, old, new, found = moved(CONFIG, CONFIG, same_words=False)
    assert_equal(found["text"], new["text"])
    assert_equal(found["backbone"]["text_learned"], new["backbone"]["text_learned"])
    assert_equal(found["backbone"]["encoder_0"], old["backbone"]["encoder_0"])
    assert_equal(found["head"], old["head"])
    assert set(report.fresh.values()) == {"the source reads another vocabulary"}


def test_unconditional_to_conditional_takes_all_but_the_text():
    report, old, new, found = moved(NO_TEXT, CONFIG, same_words=False)
    assert set(report.fresh) == {
        "text/embedding",
        "backbone/text_learned/kernel",
        "backbone/text_learned/bias",
    }
    assert_equal(found["text"], new["text"])
    assert_equal(found["backbone"]["null_text"], old["backbone"]["null_text"])
    assert_equal(found["head"], old["head"])


def test_conditional_to_unconditional_names_what_is_not_used():
    report, old, _, found = moved(CONFIG, NO_TEXT, same_words=False)
    assert found["text"] == {}
    assert set(report.unused) == {
        "text/embedding",
        "backbone/text_learned/kernel",
        "backbone/text_learned/bias",
    }
    assert_equal(found["backbone"]["decoder_0"], old["backbone"]["decoder_0"])


def test_a_head_moves_whole_or_not_at_all():
    wider = dataclasses.replace(
        CONFIG, model=helpers.tiny_model_config(head=HeadConfig(width=48, depth=1))
    )
    report, old, new, found = moved(CONFIG, wider, same_words=True)
    assert_equal(found["head"], new["head"])
    assert_equal(found["backbone"], old["backbone"])
    assert set(report.fresh.values()) == {"the source's head has other sizes"}
    deeper = dataclasses.replace(
        CONFIG, model=helpers.tiny_model_config(head=HeadConfig(width=32, depth=2))
    )
    _, _, new, found = moved(CONFIG, deeper, same_words=True)
    assert_equal(found["head"], new["head"])


def test_a_head_that_means_something_else_stays():
    (old, old_layout), (new, layout) = params_of(CONFIG, 1), params_of(CONFIG, 2)
    report = plan(old, new, old_layout, layout, same_words=True, head_reason="it predicts noise")
    assert set(report.fresh) == {name for name in report.fresh if name.startswith("head/")} != set()
    assert set(report.fresh.values()) == {"it predicts noise"}


def test_positions_of_text_and_tokens_are_resized_apart():
    longer = dataclasses.replace(
        CONFIG,
        model=helpers.tiny_model_config(
            num_tokens=16, text=dataclasses.replace(CONFIG.model.text, num_positions=12)
        ),
    )
    report, old, _, found = moved(CONFIG, longer, same_words=True)
    assert sorted(report.resized) == [
        f"backbone/{name}_positions" for name in ("decoder", "encoder", "head")
    ]
    for name in ("encoder_positions", "decoder_positions"):
        before, after = old["backbone"][name], found["backbone"][name]
        assert after.shape == (12 + 16, before.shape[1])
        # the ends of both parts are where they were: nothing is mixed across the seam
        np.testing.assert_allclose(
            after[jnp.asarray([0, 11, 12, 27])], before[jnp.asarray([0, 7, 8, 15])]
        )
    assert found["backbone"]["head_positions"].shape[0] == 16


def test_equal_lengths_in_all_but_other_parts_are_resized():
    """8 + 8 positions and 4 + 12 are equally many and mean something else."""
    other = dataclasses.replace(
        CONFIG,
        model=helpers.tiny_model_config(
            num_tokens=12, text=dataclasses.replace(CONFIG.model.text, num_positions=4)
        ),
    )
    report, *_ = moved(CONFIG, other, same_words=True)
    assert "backbone/encoder_positions" in report.resized


@pytest.mark.parametrize("length", [1, 3, 8, 13])
def test_resizing_is_linear_interpolation(length):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    places = np.linspace(0, 4, length)
    expected = np.stack([np.interp(places, np.arange(5), column) for column in np.asarray(table).T])
    # places round twice, up to 4, and the difference of two rows is below 4
    bound = 4 * worst_rounding(2 * 4) + worst_rounding(4)
    np.testing.assert_allclose(resize_positions(table, length), expected.T, rtol=0, atol=bound)


def test_the_report_reads_as_a_sentence():
    report, *_ = moved(NO_TEXT, CONFIG, same_words=False)
    assert "parameters taken" in str(report)
    assert "fresh (not in the source): " in str(report)
    assert "backbone/text_learned/kernel" in str(report)
