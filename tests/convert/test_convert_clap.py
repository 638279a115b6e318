"""CLAP checkpoints of every layout are converted whole, and what does not fit is explained.

The bounds on errors are those of test_clap_text and test_clap_audio.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from fasttta_jax.convert import clap
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.pretrained.clap_audio import ClapAudio, load_audio
from fasttta_jax.pretrained.clap_text import load
from fasttta_jax.storage.weights import read_converted

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.support import clap_models  # noqa: E402
from tests.support.clap_models import (  # noqa: E402
    AUDIO,
    FUSION,
    TEXT,
    Original,
    captions,
    embeddings,
)
from tests.support.clap_rounding import audio_rounding, run, text_rounding  # noqa: E402
from tests.support.tolerance import assert_close  # noqa: E402

IDS, MASK = captions([9, 3, 1], 9)
PUBLISHED_IMAGE = {"spec_size": 256, "window_size": 8, "num_mel_bins": 64}
"""What the shapes of an original file do not tell."""


def save_original(
    path: pathlib.Path, state: dict[str, Any], prefix: str = "", **others: Any
) -> pathlib.Path:
    content = {"epoch": 15, "name": "clap", "state_dict": {prefix + k: v for k, v in state.items()}}
    torch.save(content | others, path)
    return path


def assert_audio_agrees(model: Any, folder: pathlib.Path) -> None:
    """Of two clips, of which fusion takes the second as a long one."""
    config, params = load_audio(folder)
    shape = (2, config.num_spectrograms, config.num_frames - 7, config.num_mel_bins)
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    is_longer = np.array([False, True])
    with torch.no_grad():
        expected = model.get_audio_features(
            torch.tensor(features), is_longer=torch.tensor(is_longer)[:, None]
        ).pooler_output.numpy()
    found = jax.jit(ClapAudio(config).apply)({"params": params}, features, is_longer)
    assert_close(found, expected, audio_rounding(config))


def assert_text_agrees(folder: pathlib.Path, expected: np.ndarray) -> None:
    assert_close(run(folder, IDS, MASK), expected, text_rounding(load(folder)[0], IDS.shape[1]))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("fusion", [{}, FUSION])
def test_whole_models(fusion: dict[str, Any], suffix: str, tmp_path: pathlib.Path) -> None:
    model = clap_models.clap_model(audio=fusion)
    folder = clap_models.save(model, tmp_path / "clap", suffix)
    conversion = clap_models.convert(folder, tmp_path / "out")
    assert_text_agrees(tmp_path / "out", embeddings(model, IDS, MASK))
    assert_audio_agrees(model, tmp_path / "out")
    metadata = read_converted(tmp_path / "out").metadata
    assert metadata == conversion.metadata
    assert (metadata["kind"], metadata["weights"]) == ("clap", "transformers")
    assert metadata["source"] == "clap"
    assert metadata["config"]["text"]["hidden_size"] == TEXT["hidden_size"]
    assert metadata["config"]["audio"]["depths"] == AUDIO["depths"]
    for tower, key in (("text", "logit_scale_t"), ("audio", "logit_scale_a")):
        assert metadata["logit_scale"][tower] == getattr(model, key).item()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    state = model.state_dict()
    dropped = sum(state[key].numel() for key in metadata["dropped"])
    taken = sum(values.size for values in conversion.params.values())
    assert taken == sum(value.numel() for value in state.values()) - dropped


def test_text_towers_alone(tmp_path: pathlib.Path) -> None:
    """As in AudioLDM's text_encoder, with the tokenizer next door."""
    model = clap_models.text_model()
    pipeline = tmp_path / "audioldm"
    model.save_pretrained(pipeline / "text_encoder")
    clap_models.write_tokenizer(pipeline / "tokenizer")
    with open_source(str(pipeline), parts=("text_encoder",)) as source:
        conversion = clap.convert(source)
    assert conversion.metadata["config"]["audio"] is None
    assert "logit_scale" not in conversion.metadata
    assert all(path.startswith("text/") for path in conversion.params)
    assert set(conversion.metadata["dropped"]) == {
        "text_model.embeddings.position_ids",
        "text_model.embeddings.token_type_ids",
    }


@pytest.mark.parametrize("prefix", ["", "clap.", "module."])
@pytest.mark.parametrize("buffers", [True, False])
def test_prefixes_and_buffers_do_not_matter(
    prefix: str, buffers: bool, tmp_path: pathlib.Path
) -> None:
    """Older files have no buffers of positions, or have those of positions only."""
    model = clap_models.text_model()
    folder = clap_models.save(model, tmp_path / "hf", ".bin")
    state = {
        f"{prefix}{key}": value
        for key, value in model.state_dict().items()
        if buffers or not key.endswith("_ids")
    }
    torch.save(state, folder / "pytorch_model.bin")
    conversion = clap_models.convert(folder, tmp_path / "out")
    assert len(conversion.metadata["dropped"]) == (2 if buffers else 0)
    assert_text_agrees(tmp_path / "out", embeddings(model, IDS, MASK))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_original_files(prefix: str, tmp_path: pathlib.Path) -> None:
    """With all that LAION's training saves beside the towers; sizes are read off the shapes."""
    text, whole = Original(), clap_models.clap_model(audio=PUBLISHED_IMAGE | {"depths": [2, 1]})
    state = clap_models.original_state(text, whole)
    encoder = "audio_branch"
    state |= {
        f"{encoder}.spectrogram_extractor.stft.conv_real.weight": torch.zeros(3, 1, 4),
        f"{encoder}.spectrogram_extractor.stft.conv_imag.weight": torch.zeros(3, 1, 4),
        f"{encoder}.logmel_extractor.melW": torch.zeros(3, 2),
        f"{encoder}.tscam_conv.weight": torch.zeros(5, 4, 2, 3),
        f"{encoder}.tscam_conv.bias": torch.zeros(5),
        f"{encoder}.head.weight": torch.zeros(5, 5),
        f"{encoder}.head.bias": torch.zeros(5),
        f"{encoder}.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }
    rate = {"lr": np.float64(1e-4), "betas": (0.9, 0.99), "amsgrad": False}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [rate]}
    path = save_original(tmp_path / "clap.pt", state, prefix, optimizer=optimizer)
    tokenizer = clap_models.write_tokenizer(tmp_path / "roberta")
    conversion = clap_models.convert(path, tmp_path / "out", tokenizer=tokenizer)
    assert_text_agrees(tmp_path / "out", text(IDS, MASK))
    assert_audio_agrees(whole, tmp_path / "out")
    metadata = conversion.metadata
    assert (metadata["source"], metadata["weights"]) == ("clap.pt", "original")
    sizes = TEXT | {"hidden_size": 128, "num_attention_heads": 2, "pad_token_id": 1}
    assert metadata["config"]["text"] == sizes
    assert metadata["logit_scale"] == {
        "text": text.logit_scale_t.item(),
        "audio": text.logit_scale_a.item(),
    }
    assert {"text_transform.sequential.0.weight", "audio_transform.sequential.3.bias"} <= set(
        metadata["dropped"]
    )
    assert load(tmp_path / "out")[0].layer_norm_eps == 1e-5


def test_both_layouts_of_a_model_give_the_same(tmp_path: pathlib.Path) -> None:
    """Fused queries, keys and values are taken apart in the right order."""
    model = clap_models.clap_model(
        text={"hidden_size": 128, "num_attention_heads": 2},
        audio=FUSION | PUBLISHED_IMAGE,
    )
    text = Original()
    ours = {
        key.replace("text_branch", "text_model")
        .replace("projection.0", "projection.linear1")
        .replace("projection.2", "projection.linear2"): value
        for key, value in text.state_dict().items()
        if "transform." not in key
    }
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected
    assert all(key.startswith("audio_") or key.endswith("_ids") for key in missing)
    folder = clap_models.save(model, tmp_path / "hf")
    first = clap_models.convert(folder, tmp_path / "first")
    path = save_original(tmp_path / "clap.pt", clap_models.original_state(text, model))
    second = clap_models.convert(path, tmp_path / "second", tokenizer=folder)
    assert first.metadata["config"] == second.metadata["config"]
    assert first.params.keys() == second.params.keys()
    for name, values in first.params.items():
        np.testing.assert_array_equal(values, second.params[name])
    assert first.files == second.files


def without(*patterns: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {k: v for k, v in state.items() if not any(p in k for p in patterns)}


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer.1.output.dense.bias"), r"text_model.*1.output.dense.bias: missing"),
        (without("text_projection.linear2"), "2 keys are wrong"),
        (without("audio_"), r"audio_encoder.batch_norm.weight: missing"),
        (renamed("pooler", "top"), r"text_model.top.dense.weight: not expected"),
        (renamed("text_model", "vision_model"), "holds no CLAP text tower: neither text_model"),
        (lambda state: state | {3: torch.zeros(1)}, "has keys that are not text"),
        (lambda state: state | {"clip.x": torch.zeros(1)}, r"clip.x: not expected, found of shape"),
        (
            lambda state: state | {"logit_scale_a": torch.zeros(2)},
            "logit_scale_a is no single floating-point number",
        ),
    ],
)
def test_other_keys_are_explained(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, tmp_path: pathlib.Path
) -> None:
    model = clap_models.clap_model()
    folder = clap_models.save(model, tmp_path / "hf", ".bin")
    torch.save(change(dict(model.state_dict())), folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=message):
        clap_models.convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("text_projection.2"), "has no matrix text_projection.2.weight, which tells"),
        (without("layer.1.output.dense.bias"), r"1.output.dense.bias: missing"),
        (without("layer.0.attention.self.key.bias"), r"0.attention.self.key.bias: missing"),
        (renamed("text_branch.embeddings", "text_branch.shared"), "word_embeddings.weight, which"),
        (
            lambda state: (
                state | {"text_branch.embeddings.token_type_embeddings.weight": torch.zeros(2, 128)}
            ),
            r"token_type_embeddings.weight: found shape \(2, 128\), expected \(1, 128\)",
        ),
        (
            lambda state: (
                state | {"text_branch.embeddings.word_embeddings.weight": torch.zeros(300, 100)}
            ),
            "word_embeddings.weight has 100 columns; expected a multiple of 64",
        ),
        (
            lambda state: state | {"logit_scale_t": np.float64(2.0)},
            "logit_scale_t is no single floating-point number",
        ),
    ],
)
def test_other_original_files_are_explained(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, tmp_path: pathlib.Path
) -> None:
    """Text towers of BERT have the same names, but two token types."""
    state = change(clap_models.original_state(Original()))
    path = save_original(tmp_path / "clap.pt", state)
    with pytest.raises(ConversionError, match=message):
        clap_models.convert(
            path, tmp_path / "out", tokenizer=clap_models.write_tokenizer(tmp_path / "roberta")
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 301}, r"word_embeddings.weight: found shape \(300, 32\), expected \(301"),
        ({"num_hidden_layers": 3}, "16 keys are wrong"),
        ({"hidden_act": "relu"}, "config.json of hf: hidden_act is 'relu'; allowed: 'gelu'"),
        ({"hidden_size": None}, "config.json of hf: hidden_size is None"),
        ({"model_type": "roberta"}, "config.json of hf: model_type is 'roberta'"),
        ({"pad_token_id": 5}, "pads with token 1; hf takes pad_token_id 5 for padding"),
    ],
)
def test_other_configs_are_explained(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    folder = clap_models.save(clap_models.text_model(), tmp_path / "hf")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConversionError, match=message):
        clap_models.convert(folder, tmp_path / "out")


def test_a_config_is_needed_where_the_names_are_those_of_transformers(
    tmp_path: pathlib.Path,
) -> None:
    folder = clap_models.save(clap_models.text_model(), tmp_path / "hf", ".bin")
    with pytest.raises(ConversionError, match=r"comes without config\.json, which tells the sizes"):
        clap_models.convert(folder / "pytorch_model.bin", tmp_path / "out")


def test_tokenizers_are_asked_for_and_compared(tmp_path: pathlib.Path) -> None:
    path = save_original(tmp_path / "clap.pt", clap_models.original_state(Original()))
    with pytest.raises(
        ConversionError, match="comes without a tokenizer; give the folder of RoBERTa"
    ):
        clap_models.convert(path, tmp_path / "out")
    for name, arguments, message in (
        ("big", {"size": 301}, "clap.pt: the tokenizer has 301 entries and the embedding 300 rows"),
        ("other", {"first": ("<pad>", "</s>", "<s>")}, "pads with token 0; clap.pt takes .* 1 for"),
    ):
        tokenizer = clap_models.write_tokenizer(tmp_path / name, **arguments)
        with pytest.raises(ConversionError, match=message):
            clap_models.convert(path, tmp_path / "out", tokenizer=tokenizer)
    clap_models.convert(
        path, tmp_path / "out", tokenizer=clap_models.write_tokenizer(tmp_path / "good")
    )
