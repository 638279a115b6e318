"""LAION's own CLAP files are converted as they are published: wrapped, prefixed, with fused qkv.

Weights are random, in files with every key that LAION's training saves. The reference is
transformers' model under transformers' own renaming of these keys; the bounds on errors are those
of test_clap_text and test_clap_audio.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest

from fasttta_jax.config.values import as_tuples
from fasttta_jax.convert import clap, names
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import StoredTensor
from fasttta_jax.pretrained.clap_audio import ClapAudioConfig
from fasttta_jax.pretrained.clap_text import ClapTextConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.convert.test_convert_clap import (  # noqa: E402
    IDS,
    MASK,
    assert_audio_agrees,
    assert_text_agrees,
)
from tests.support import clap_laion, clap_models  # noqa: E402
from tests.support.clap_laion import FILES, Sizes  # noqa: E402

TEXT = {
    "vocab_size": clap_models.VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
SMALL = Sizes((2, 1), 8, (1, 2), text=TEXT, shared=24)


def save_as_published(path: pathlib.Path, state: Mapping[str, torch.Tensor]) -> pathlib.Path:
    """All that LAION's training saves: the schedule's learning rates are numpy's numbers."""
    group = {"lr": np.float64(1e-4), "betas": (0.9, 0.99), "eps": 1e-6, "params": [0, 1]}
    moments = {"step": torch.tensor(9.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    content = {
        "epoch": 15,
        "name": "2023_04_08-lr_0.0001-b_96",
        "state_dict": collections.OrderedDict(
            (f"module.{key}", value) for key, value in state.items()
        ),
        "optimizer": {"state": {0: moments}, "param_groups": [group]},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("fusion", [False, True])
def test_every_key_is_used_or_named_and_the_numbers_agree(
    fusion: bool, tmp_path: pathlib.Path
) -> None:
    sizes = dataclasses.replace(SMALL, fusion=fusion)
    state = clap_laion.random_state(sizes)
    path = save_as_published(tmp_path / "music_speech_audioset_epoch_15_esc_89.98.pt", state)
    tokenizer = clap_models.write_tokenizer(tmp_path / "roberta-base")
    conversion = clap_models.convert(path, tmp_path / "out", tokenizer=tokenizer)
    dropped = conversion.metadata["dropped"]
    taken = sum(values.size for values in conversion.params.values())
    assert taken == sum(v.numel() for key, v in state.items() if key not in dropped)
    groups = ("transform", "tscam_conv", "head", "extractor", "attn_mask", "_index", "_ids")
    for key in dropped:
        assert any(part in key for part in (*groups, "_tracked", "logit_scale")), key
    model = clap_laion.reference(sizes, state)
    assert_text_agrees(tmp_path / "out", clap_models.embeddings(model, IDS, MASK))
    assert_audio_agrees(model, tmp_path / "out")
    scales = {tower: state[f"logit_scale_{tower[0]}"].item() for tower in ("text", "audio")}
    assert conversion.metadata["logit_scale"] == scales


@pytest.mark.parametrize("name", FILES)
def test_published_sizes_are_read_off_the_shapes(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor is made; that parameters of these sizes fit is in test_published_sizes."""
    monkeypatch.setattr(names, "take", lambda state, table: {})

    def stored(key: str, shape: tuple[int, ...]) -> StoredTensor:
        dtype = "int64" if key.endswith(("_index", "_ids", "_tracked")) else "float32"
        return StoredTensor(shape, dtype, lambda: np.zeros(shape, np.float32))

    sizes = FILES[name]
    keys = clap_laion.shapes(sizes).items()
    state = {f"module.{key}": stored(key, shape) for key, shape in keys}
    tokenizer = clap_models.write_tokenizer(tmp_path / "roberta-base")
    conversion = clap.convert(Source(name, state, "0" * 64), tokenizer=tokenizer)
    config = conversion.metadata["config"]
    assert ClapTextConfig(**config["text"]) == ClapTextConfig(layer_norm_eps=1e-5)
    audio = {field: as_tuples(value) for field, value in config["audio"].items()}
    assert ClapAudioConfig(**audio) == ClapAudioConfig(
        patch_embeds_hidden_size=sizes.width, depths=sizes.depths, enable_fusion=sizes.fusion
    )
