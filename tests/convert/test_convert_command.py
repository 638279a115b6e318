"""The conversion command: what it writes and reports, and that everything wrong is named."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fasttta_jax.convert import mar
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.storage.weights import (
    ConvertedError,
    is_converted,
    read_converted,
)
from tests.support import commands, conversions

WIDTH, HEAD_WIDTH, TOKEN_DIM, NUM_TOKENS, NOISE_DIM = 24, 16, 4, 9, 5
POSITIONS = 64 + NUM_TOKENS


def ear_state() -> dict[str, np.ndarray]:
    """A state dict of EAR with one block in the backbone and one in the head."""
    linears = {
        "z_proj": (WIDTH, TOKEN_DIM),
        "decoder_blocks.0.attn.qkv": (3 * WIDTH, WIDTH),
        "decoder_blocks.0.attn.proj": (WIDTH, WIDTH),
        "decoder_blocks.0.mlp.fc1": (4 * WIDTH, WIDTH),
        "decoder_blocks.0.mlp.fc2": (WIDTH, 4 * WIDTH),
        "scoreloss.net.noise_embed": (HEAD_WIDTH, NOISE_DIM),
        "scoreloss.net.input_proj": (HEAD_WIDTH, WIDTH),
        "scoreloss.net.res_blocks.0.mlp.0": (HEAD_WIDTH, HEAD_WIDTH),
        "scoreloss.net.res_blocks.0.mlp.2": (HEAD_WIDTH, HEAD_WIDTH),
        "scoreloss.net.res_blocks.0.adaLN_modulation.1": (3 * HEAD_WIDTH, HEAD_WIDTH),
        "scoreloss.net.final_layer.adaLN_modulation.1": (2 * HEAD_WIDTH, HEAD_WIDTH),
        "scoreloss.net.final_layer.linear": (TOKEN_DIM, HEAD_WIDTH),
    }
    norms = {
        "decoder_blocks.0.norm1": WIDTH,
        "decoder_blocks.0.norm2": WIDTH,
        "decoder_norm": WIDTH,
        "scoreloss.net.res_blocks.0.in_ln": HEAD_WIDTH,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "class_emb.weight": (10, WIDTH),
        "fake_latent": (1, WIDTH),
        "mask_token": (1, 1, WIDTH),
        "decoder_pos_embed_learned": (1, POSITIONS, WIDTH),
    }
    for key, shape in linears.items():
        shapes |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
    for key, width in norms.items():
        shapes |= {f"{key}.weight": (width,), f"{key}.bias": (width,)}
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def saved(folder: pathlib.Path, state: dict[str, np.ndarray]) -> pathlib.Path:
    """The state dict as a safetensors file."""
    path = folder / "ear.safetensors"
    save_file(state, path)
    return path


def run(*arguments: object, code: int = 0) -> str:
    """The command; its output, after its exit code is checked."""
    done = commands.run("-m", "fasttta_jax.convert", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_command_writes_what_the_reader_finds(tmp_path: pathlib.Path) -> None:
    state = ear_state()
    path, out = saved(tmp_path, state), tmp_path / "out"
    log = run("mar", path, out, "--num_heads=3")
    assert "dropped: class_emb.weight, text takes the place of classes" in log
    taken = sum(value.size for key, value in state.items() if key != "class_emb.weight")
    assert f"{taken:,}" in log
    assert sorted(os.listdir(out)) == ["weights.json", "weights.safetensors"]
    modes = {file.stat().st_mode for file in out.iterdir()}
    assert len(modes) == 1, "one file is harder to read than the other"
    assert is_converted(out)
    converted = read_converted(out)
    assert converted.metadata == {
        "kind": "ear",
        "source": "ear.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights": "bare",
        "num_text": 64,
        "num_tokens": NUM_TOKENS,
        "token_dim": TOKEN_DIM,
        "backbone": {
            "width": WIDTH,
            "encoder_depth": 0,
            "decoder_depth": 1,
            "num_heads": 3,
            "mlp_ratio": 4,
        },
        "head": {
            "width": HEAD_WIDTH,
            "depth": 1,
            "noise_dim": NOISE_DIM,
            "roles": "context_stream",
            "noise": "uniform",
        },
        "dropped": {"class_emb.weight": "text takes the place of classes"},
    }
    qkv = converted.params["backbone"]["decoder_0"]["attention"]["qkv"]["kernel"]
    assert qkv.dtype == np.float32
    weight = state["decoder_blocks.0.attn.qkv.weight"]
    for part in range(3):
        for head in range(3):
            rows = slice(part * WIDTH + head * 8, part * WIDTH + head * 8 + 8)
            np.testing.assert_array_equal(qkv[:, part, head], weight[rows].T)
    before = (out / "weights.safetensors").read_bytes()
    run("mar", path, out, "--num_heads=3")
    assert (out / "weights.safetensors").read_bytes() == before
    log = run("mar", path, out, "--num_heads=2", code=1)
    assert "holds another conversion (backbone is " in log
    assert (out / "weights.safetensors").read_bytes() == before


def test_views_are_written_as_they_read(tmp_path: pathlib.Path) -> None:
    metadata: dict[str, Any] = {"kind": "x", "source": "x", "sha256": "x", "weights": "x"}
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_conversion(Conversion({"a/b": values.T}, metadata), tmp_path / "out")
    np.testing.assert_array_equal(read_converted(tmp_path / "out").params["a"]["b"], values.T)


def test_command_explains_itself(tmp_path: pathlib.Path) -> None:
    log = run("--help", code=1)  # absl's help exits with 1
    for text in ("python -m fasttta_jax.convert mar checkpoint-last.pth", "--num_heads", "MAR or"):
        assert text in log
    assert "2 arguments, expected 3: KIND SOURCE OUT" in run("mar", "x", code=1)
    assert "the kind is 'gan'; allowed: mar" in run("gan", "x", "y", code=1)
    assert "nowhere.pth does not exist; allowed" in run("mar", "nowhere.pth", tmp_path, code=1)
    assert "--num_heads belongs to mar, and the kind is t5" in run(
        "t5", "x", tmp_path / "t5", "--num_heads=3", code=1
    )


def test_every_wrong_key_is_named(tmp_path: pathlib.Path) -> None:
    """Missing, unexpected, misshapen and integer keys in one message, and nothing else."""
    state = ear_state()
    del state["decoder_norm.weight"], state["scoreloss.net.noise_embed.bias"]
    state |= {
        "encoder_norm.weight": np.ones(WIDTH, np.float32),
        "decoder_blocks.0.norm1.bias": np.ones(WIDTH + 1, np.float32),
        "mask_token": np.ones((1, WIDTH), np.float32),
        "z_proj.bias": np.ones(WIDTH, np.int32),
    }
    with pytest.raises(ConversionError) as caught:
        conversions.convert(mar, saved(tmp_path, state), num_heads=3)
    first, *lines = str(caught.value).splitlines()
    assert "6 keys are wrong" in first
    assert sorted(line.strip() for line in lines) == [
        "decoder_blocks.0.norm1.bias: found shape (25), expected (24)",
        "decoder_norm.weight: missing, expected shape (24)",
        "encoder_norm.weight: not expected, found of shape (24)",
        "mask_token: found shape (1, 24), expected (1, 1, 24)",
        "scoreloss.net.noise_embed.bias: missing, expected shape (16)",
        "z_proj.bias: found type int32, expected one of float64, float32, float16, bfloat16",
    ]


def test_keys_that_tell_sizes_may_be_wrong_too(tmp_path: pathlib.Path) -> None:
    """Without them, what they tell is a question mark, and every missing key is still named."""
    state = ear_state()
    for key in ("fake_latent", "scoreloss.net.input_proj.weight"):
        del state[key]
    state["z_proj.weight"] = np.ones(WIDTH, np.float32)
    with pytest.raises(ConversionError) as caught:
        conversions.convert(mar, saved(tmp_path, state), num_heads=3)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "fake_latent: missing, expected shape (1, ?)",
        "scoreloss.net.input_proj.weight: missing, expected shape (?, ?)",
        "z_proj.weight: found shape (24), expected (?, ?)",
    ]


def test_a_gap_between_blocks_is_named(tmp_path: pathlib.Path) -> None:
    """Depth is the highest block number: a hole is missing keys, not a shallower model."""
    state = ear_state()
    for key, value in list(state.items()):
        if key.startswith("decoder_blocks.0."):
            state[key.replace(".0.", ".2.", 1)] = value
    with pytest.raises(ConversionError, match=r"12 keys are wrong") as caught:
        conversions.convert(mar, saved(tmp_path, state), num_heads=3)
    assert str(caught.value).count("decoder_blocks.1.") == 12


@pytest.mark.parametrize(
    ("num_heads", "message"),
    [
        (None, r"width 24 is not a published one \(768 \(12\), .*--num_heads=N"),
        (5, "--num_heads is 5; allowed: a divisor of width 24"),
        (0, "--num_heads is 0; allowed: a divisor of width 24"),
    ],
)
def test_number_of_heads_must_fit(
    num_heads: int | None, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        conversions.convert(mar, saved(tmp_path, ear_state()), num_heads=num_heads)


def test_weights_that_are_not_finite_are_refused(tmp_path: pathlib.Path) -> None:
    """They would be found out only by figures that are NaN, if at all."""
    state = ear_state()
    state["z_proj.bias"][1] = np.nan
    conversion = conversions.convert(mar, saved(tmp_path, state), num_heads=3)
    with pytest.raises(ConversionError, match=r"ear.safetensors: .*bias holds NaN or infinity"):
        write_conversion(conversion, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_models_are_told_apart(tmp_path: pathlib.Path) -> None:
    few = {"decoder_pos_embed_learned": np.ones((1, 64, WIDTH), np.float32)}
    with pytest.raises(ConversionError, match="64 positions; expected more than the 64 class"):
        conversions.convert(mar, saved(tmp_path, ear_state() | few), num_heads=3)
    path = saved(tmp_path, {"conv.weight": np.ones(3, np.float32)})
    with pytest.raises(ConversionError, match=r"neither MAR nor EAR.* begin with conv\.weight"):
        conversions.convert(mar, path)


def test_other_targets_are_left_alone(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, ear_state())
    target = tmp_path / "notes"
    target.mkdir()
    (target / "diary.txt").write_text("dear diary")
    assert "is not empty and holds no conversion" in run(
        "mar", path, target, "--num_heads=3", code=1
    )
    assert os.listdir(target) == ["diary.txt"]
    assert "is a file; allowed: a folder" in run("mar", path, path, "--num_heads=3", code=1)


def test_weights_flag_of_a_bare_state_dict(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConversionError, match=r"--weights is 'ema', but .*; leave --weights out"):
        conversions.convert(mar, saved(tmp_path, ear_state()), weights="ema", num_heads=3)


def test_damaged_conversions_are_explained(tmp_path: pathlib.Path) -> None:
    assert not is_converted(tmp_path)
    with pytest.raises(ConvertedError, match=r"weights.json is missing"):
        read_converted(tmp_path)
    metadata = tmp_path / "weights.json"
    metadata.write_text(json.dumps({"kind": "ear", "source": "x"}))
    with pytest.raises(ConvertedError, match=r"weights.safetensors is missing"):
        read_converted(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(ConvertedError, match=r"weights.json lacks sha256, weights"):
        read_converted(tmp_path)
    metadata.write_text(json.dumps(dict.fromkeys(("kind", "source", "sha256", "weights"), "x")))
    with pytest.raises(ConvertedError, match=r"weights.safetensors is damaged"):
        read_converted(tmp_path)
    metadata.write_text("{")
    with pytest.raises(ConvertedError, match=r"weights.json is damaged"):
        read_converted(tmp_path)
