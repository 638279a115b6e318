"""Conversions as the command makes them, and converted text networks with random weights."""

from __future__ import annotations

import dataclasses
import pathlib
from types import ModuleType
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import tokenizers

from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.write import Conversion, write_conversion
from fasttta_jax.pretrained import panns, vae, vggish
from fasttta_jax.pretrained.clap_audio import ClapAudio, ClapAudioConfig
from fasttta_jax.pretrained.clap_text import ClapText, ClapTextConfig
from fasttta_jax.pretrained.hifigan import Hifigan, HifiganConfig
from fasttta_jax.pretrained.t5 import T5Config, T5Encoder

T5 = T5Config(vocab_size=300, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
VAE = vae.VaeConfig(
    scaling_factor=0.4,
    latent_channels=2,
    block_out_channels=(4, 8, 8),
    layers_per_block=1,
    norm_num_groups=4,
)
VOCODER = HifiganConfig(
    upsample_initial_channel=32, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),)
)
CLAP = ClapTextConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=90,
    projection_dim=6,
)
CLAP_AUDIO = ClapAudioConfig(
    patch_embeds_hidden_size=8, depths=(2, 1), num_attention_heads=(1, 2), projection_dim=6
)
PANNS: dict[str, Any] = {"widths": (4, 4, 6, 6, 8, 8), "embedding_size": 8, "num_classes": 5}

VGGISH = vggish.VggishConfig(widths=(4, 4, 6, 6, 8, 8), hidden_size=12, embedding_size=8)


def convert(kind: ModuleType, path: pathlib.Path, **options: Any) -> Conversion:
    """What `kind.convert` makes of a file or folder."""
    with open_source(str(path)) as source:
        return kind.convert(source, **options)


def byte_tokenizer(pad: str, start: str, end: str) -> str:
    """A tokenizer of bytes, as JSON: `start`, `pad`, `end` (empty: none), then 256 bytes."""
    special = [token for token in (start, pad, end) if token]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = " ".join(token for token in (start, "$A", end) if token)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=parts, special_tokens=[(token, words[token]) for token in special]
    )
    tokenizer.enable_padding(pad_id=words[pad], pad_token=pad)
    return tokenizer.to_str()


def _draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that keep activations of order one: matrices by what they sum over, norms near one."""
    values = rng.normal(size=shape)
    if len(shape) > 1:
        values /= np.sqrt(np.prod(shape[:-1]))
    else:
        values = 0.1 * values + path.endswith(("scale", "variance"))
    return values.astype(np.float32)


def _write(
    folder: pathlib.Path, params: Any, metadata: dict[str, Any], tokenizer: str | None = None
) -> pathlib.Path:
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    rng = np.random.default_rng(0)
    drawn = {path: _draw(path, leaf.shape, rng) for path, leaf in flat.items()}
    described = {"source": "random", "sha256": "0" * 64, "weights": "random", "dropped": {}}
    files = {} if tokenizer is None else {"tokenizer.json": tokenizer}
    write_conversion(Conversion(drawn, metadata | described, files), folder)
    return folder


def random_t5(folder: pathlib.Path) -> pathlib.Path:
    """A converted T5 of two blocks whose tokens are bytes."""
    module = T5Encoder(T5)
    ids = np.zeros((1, 3), np.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), ids, ids > 0)["params"]
    metadata = {"kind": "t5", "config": dataclasses.asdict(T5)}
    return _write(folder, params, metadata, byte_tokenizer("<pad>", "", "</s>"))


def random_clap(folder: pathlib.Path) -> pathlib.Path:
    """A converted text tower of CLAP of two layers whose tokens are bytes."""
    module = ClapText(CLAP)
    ids = np.zeros((1, 3), np.int32)
    params = {"text": jax.eval_shape(module.init, jax.random.key(0), ids, ids > 0)["params"]}
    metadata = {"kind": "clap", "config": {"text": dataclasses.asdict(CLAP), "audio": None}}
    return _write(folder, params, metadata, byte_tokenizer("<pad>", "<s>", "</s>"))


def random_clap_towers(folder: pathlib.Path, *, fusion: bool = False) -> pathlib.Path:
    """A converted CLAP of two narrow towers."""
    audio = dataclasses.replace(CLAP_AUDIO, enable_fusion=fusion)
    features = np.zeros((1, audio.num_spectrograms, 8, audio.num_mel_bins), np.float32)
    ids = np.zeros((1, 3), np.int32)
    key = jax.random.key(0)
    params = {
        "text": jax.eval_shape(ClapText(CLAP).init, key, ids, ids > 0)["params"],
        "audio": jax.eval_shape(ClapAudio(audio).init, key, features, ids[:, 0] > 0)["params"],
    }
    towers = {"text": dataclasses.asdict(CLAP), "audio": dataclasses.asdict(audio)}
    metadata = {"kind": "clap", "config": towers}
    return _write(folder, params, metadata, byte_tokenizer("<pad>", "<s>", "</s>"))


def random_panns(folder: pathlib.Path, config: panns.PannsConfig) -> pathlib.Path:
    """A converted Cnn14 with few channels."""
    config = dataclasses.replace(config, **PANNS)
    audio = np.zeros((1, config.min_samples), np.float32)
    params = jax.eval_shape(panns.Panns(config).init, jax.random.key(0), audio)["params"]
    return _write(folder, params, {"kind": "panns", "config": dataclasses.asdict(config)})


def random_vggish(folder: pathlib.Path, *, pca: bool = True) -> pathlib.Path:
    """A converted VGGish with few channels."""
    config = dataclasses.replace(VGGISH, pca=pca)
    audio = np.zeros((1, vggish.MIN_SAMPLES), np.float32)
    params = jax.eval_shape(vggish.Vggish(config, pca=pca).init, jax.random.key(0), audio)["params"]
    return _write(folder, params, {"kind": "vggish", "config": dataclasses.asdict(config)})


def random_vae(folder: pathlib.Path) -> pathlib.Path:
    """A converted VAE of three narrow levels."""
    spectrogram = np.zeros((1, 16, 64), np.float32)
    params = jax.eval_shape(vae.Vae(VAE).init, jax.random.key(0), spectrogram)["params"]
    return _write(folder, params, {"kind": "vae", "config": dataclasses.asdict(VAE)})


def random_vocoder(folder: pathlib.Path) -> pathlib.Path:
    """A converted vocoder with the published rates and few channels."""
    spectrogram = np.zeros((1, 4, VOCODER.model_in_dim), np.float32)
    params = jax.eval_shape(Hifigan(VOCODER).init, jax.random.key(0), spectrogram)["params"]
    return _write(folder, params, {"kind": "hifigan", "config": dataclasses.asdict(VOCODER)})
