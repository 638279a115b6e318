"""The networks that judge sounds, as functions with random parameters, in two sizes.

Dimensions: B clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fasttta_jax.pretrained.clap_audio import ClapAudio, ClapAudioConfig
from fasttta_jax.pretrained.clap_mel import NUM_FRAMES, ClapMelConfig, clap_mel
from fasttta_jax.pretrained.clap_mel import SAMPLE_RATE as CLAP_RATE
from fasttta_jax.pretrained.panns import CNN14_16K, CNN14_32K, Panns, PannsConfig
from fasttta_jax.pretrained.vggish import SAMPLE_RATE as VGGISH_RATE
from fasttta_jax.pretrained.vggish import Vggish, VggishConfig

SECONDS = 10
"""Of a clip."""
Config = PannsConfig | VggishConfig | ClapAudioConfig
PUBLISHED: Mapping[str, Config] = {
    "panns_16k": CNN14_16K,
    "panns_32k": CNN14_32K,
    "vggish": VggishConfig(pca=False),
    "clap_tiny": ClapAudioConfig(),
    "clap_base": ClapAudioConfig(patch_embeds_hidden_size=128, depths=(2, 2, 12, 2)),
}
_NARROW_PANNS: dict[str, Any] = {"widths": (4, 4, 4, 4, 4, 8), "embedding_size": 8}
_NARROW_CLAP: dict[str, Any] = {"depths": (1, 1), "num_attention_heads": (2, 2)}
SIZES: Mapping[str, Mapping[str, Config]] = {
    "published": PUBLISHED,
    # the same kinds of layers, for tests
    "small": {
        "panns_16k": dataclasses.replace(CNN14_16K, **_NARROW_PANNS),
        "panns_32k": dataclasses.replace(CNN14_32K, **_NARROW_PANNS),
        "vggish": VggishConfig((4, 4, 4, 4, 4, 4), 16, 8, pca=False),
        "clap_tiny": ClapAudioConfig(patch_embeds_hidden_size=4, projection_dim=8, **_NARROW_CLAP),
        "clap_base": ClapAudioConfig(patch_embeds_hidden_size=8, projection_dim=8, **_NARROW_CLAP),
    },
}
NETWORKS = tuple(PUBLISHED)


def sample_rate(config: Config) -> int:
    """Samples per second that a network takes."""
    if isinstance(config, PannsConfig):
        return config.sample_rate
    return VGGISH_RATE if isinstance(config, VggishConfig) else CLAP_RATE


def draw_inputs(config: Config, batch_size: int) -> np.ndarray:
    """Waveforms of noise, float32 [B, 10 s]."""
    shape = batch_size, SECONDS * sample_rate(config)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def build(config: Config, dtype: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A network as an init of (key, audio) and a function of (params, audio).

    The function is what `evaluation.networks` compiles: with lengths for PANNs, for VGGish the
    embeddings without the last ReLU, and for CLAP the tower behind its spectrograms.
    """
    products = jnp.dtype(dtype)
    if isinstance(config, PannsConfig):
        panns = Panns(config, products)

        def embed(params: Any, audio: jax.Array) -> Any:
            return panns.apply(params, audio, jnp.full(audio.shape[0], audio.shape[1], jnp.int32))

        return panns.init, embed
    if isinstance(config, VggishConfig):
        vggish = Vggish(config, final_relu=False, dtype=products)
        return vggish.init, vggish.apply
    tower, mel = ClapAudio(config, products), ClapMelConfig()

    def init(key: Any, audio: jax.Array) -> Any:
        return tower.init(key, jnp.zeros((len(audio), 1, NUM_FRAMES, config.num_mel_bins)))

    def embed_clap(params: Any, audio: jax.Array) -> Any:
        lengths = jnp.full(audio.shape[0], audio.shape[1], jnp.int32)
        return tower.apply(params, clap_mel(audio, lengths, mel).features)

    return init, embed_clap
