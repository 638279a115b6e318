"""Every parameter of the published networks has its place in ours, by name and shape.

References are built at their published sizes on torch's meta device, and ours by `eval_shape`: no
tensor is made. That the numbers agree is tested at reduced widths with the published depths, beside
each network, and at these sizes by `make test-long`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fasttta_jax.convert import clap, hifigan, names, panns, t5, vae, vggish
from fasttta_jax.convert.names import Table
from fasttta_jax.convert.source import Source
from fasttta_jax.convert.stored import StoredTensor
from fasttta_jax.pretrained import clap_audio, clap_text
from fasttta_jax.pretrained.clap_audio import ClapAudio
from fasttta_jax.pretrained.clap_text import ClapText
from fasttta_jax.pretrained.hifigan import Hifigan, HifiganConfig
from fasttta_jax.pretrained.panns import CNN14_16K, CNN14_32K, Panns, PannsConfig
from fasttta_jax.pretrained.t5 import T5Config, T5Encoder
from fasttta_jax.pretrained.vae import Vae, VaeConfig
from fasttta_jax.pretrained.vggish import Vggish, VggishConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
from tests.support import clap_models, panns_models, t5_models, vggish_models  # noqa: E402

Shapes = dict[str, tuple[int, ...]]
T5_LARGE = {
    "vocab_size": 32_128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
}
CLAP_SIZES = {
    "clap-htsat-unfused": {},
    "clap-htsat-fused": clap_models.FUSION,
    "larger_clap_general": {
        "patch_embeds_hidden_size": 128,
        "hidden_size": 1024,
        "depths": [2, 2, 12, 2],
    },
}


@pytest.fixture(autouse=True)
def _nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions hold their parameters' shapes, in arrays that take no memory."""

    def take(state: Mapping[str, StoredTensor], table: Table) -> dict[str, np.ndarray]:
        return {entry.path: entry.layout(state[key].read()) for key, entry in table.items()}

    monkeypatch.setattr(names, "take", take)


def source_of(name: str, model: Any, tokenizer: pathlib.Path | None = None) -> Source:
    """What `open_source` makes of the folder that a model is saved in."""

    def stored(value: Any) -> StoredTensor:
        shape = tuple(value.shape)
        dtype = str(value.dtype).removeprefix("torch.")
        if value.is_meta:
            return StoredTensor(shape, dtype, lambda: np.broadcast_to(np.float32(0), shape))
        return StoredTensor(shape, dtype, lambda: value.detach().numpy())

    state = {key: stored(value) for key, value in model.state_dict().items()}
    config = getattr(model, "config", None)
    if config is not None:
        config = config if isinstance(config, Mapping) else config.to_dict()
        config = json.loads(json.dumps(dict(config)))
    return Source(name, state, "0" * 64, config, tokenizer)


def count(model: Any) -> int:
    return sum(value.numel() for value in model.parameters())


def shapes_of(params: Mapping[str, np.ndarray], part: str = "") -> Shapes:
    return {
        name.removeprefix(part): np.shape(value)
        for name, value in params.items()
        if name.startswith(part)
    }


def initialised(network: Any, *inputs: jax.ShapeDtypeStruct) -> Shapes:
    """Shapes of the parameters that our network is born with."""
    tree = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def size(shapes: Shapes) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


IDS = jax.ShapeDtypeStruct((2, 77), jnp.int32)
MASK = jax.ShapeDtypeStruct((2, 77), jnp.bool_)


def test_flan_t5_large(tmp_path: pathlib.Path) -> None:
    with torch.device("meta"):
        model = transformers.T5EncoderModel(transformers.T5Config(**T5_LARGE))
    t5_models.make_t5_tokenizer().save_pretrained(tmp_path)
    source = source_of("google/flan-t5-large", model, tmp_path)
    found = shapes_of(t5.convert(source).params)
    assert source.config is not None
    config = T5Config.from_huggingface(source.config)
    assert found == initialised(T5Encoder(config), IDS, MASK)
    assert size(found) == count(model) == 341_231_104


def test_vae_of_audioldm() -> None:
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(
            in_channels=1,
            out_channels=1,
            block_out_channels=(128, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            latent_channels=8,
            scaling_factor=0.9227914214134216,
        )
    source = source_of("cvssp/audioldm", model)
    found = shapes_of(vae.convert(source).params)
    assert source.config is not None
    config = VaeConfig.from_huggingface(source.config)
    assert found == initialised(Vae(config), floats(1, 1024, 64))
    assert size(found) == count(model) == 55_376_873


def test_vocoder_of_audioldm() -> None:
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=1024,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
    with torch.device("meta"):
        model = transformers.SpeechT5HifiGan(config)
    found = shapes_of(hifigan.convert(source_of("cvssp/audioldm", model)).params)
    assert found == initialised(Hifigan(HifiganConfig()), floats(1, 1024, 64))
    assert size(found) == count(model)


@pytest.mark.parametrize("name", CLAP_SIZES)
def test_clap(name: str, tmp_path: pathlib.Path) -> None:
    config = transformers.ClapConfig(audio_config=dict(CLAP_SIZES[name]))
    with torch.device("meta"):
        model = transformers.ClapModel(config)
    source = source_of(f"laion/{name}", model, clap_models.write_tokenizer(tmp_path))
    params = clap.convert(source).params
    assert source.config is not None
    text = clap_text.from_huggingface(source.config)
    assert shapes_of(params, "text/") == initialised(ClapText(text), IDS, MASK)
    audio = clap_audio.from_huggingface(source.config)
    features = floats(1, audio.num_spectrograms, 1001, audio.num_mel_bins)
    is_longer = jax.ShapeDtypeStruct((1,), jnp.bool_)
    assert shapes_of(params, "audio/") == initialised(ClapAudio(audio), features, is_longer)


@pytest.mark.parametrize("config", [CNN14_16K, CNN14_32K], ids=["16k", "32k"])
def test_cnn14(config: PannsConfig) -> None:
    with torch.device("meta"):
        model = panns_models.Cnn14(config)
    conversion = panns.convert(source_of("Cnn14.pth", model))
    assert conversion.metadata["config"]["sample_rate"] == config.sample_rate
    found = shapes_of(conversion.params)
    assert found == initialised(Panns(config), floats(1, config.sample_rate))
    assert sum(value.numel() for value in model.parameters() if value.is_meta) == 80_753_615
    assert size(found) == 80_753_615 + 2 * (64 + 2 * sum(config.widths))  # and statistics


def test_vggish() -> None:
    with torch.device("meta"):
        model = vggish_models.Vggish(VggishConfig())
    conversion = vggish.convert(source_of("vggish.pth", model))
    found = shapes_of(conversion.params)
    assert found == initialised(Vggish(VggishConfig(), pca=True), floats(1, 16_000))
    assert size(found) == count(model) == 72_141_184 + 128 * 128 + 128
