"""State dicts with every key that LAION's training saves, and transformers' names for them.

Sources: the modules of github.com/LAION-AI/CLAP (`clap_module/model.py`, `htsat.py`), whose names
and shapes are written down here, and the renaming rules by which transformers converts them
(`convert_clap_original_pytorch_to_hf.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers

CLASSES = 527
N_FFT = 1024
MELS = 64
SIDE = 64
"""Of the token grid of the first stage."""
WINDOW = 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What distinguishes the published files, and what a test makes small.

    Attributes:
      depths: blocks of each stage of HTSAT.
      width: channels of its first stage.
      heads: attention heads of each stage.
      fusion: whether it has the layers that mix in excerpts of long clips.
      text: of RoBERTa, as transformers names them.
      shared: width of the space of both towers.
    """

    depths: tuple[int, ...]
    width: int
    heads: tuple[int, ...] = (4, 8, 16, 32)
    fusion: bool = False
    text: dict[str, int] = dataclasses.field(default_factory=dict)
    shared: int = 512


TINY, BASE = Sizes((2, 2, 6, 2), 96), Sizes((2, 2, 12, 2), 128)
FILES = {
    "630k-best.pt": TINY,
    "630k-audioset-best.pt": TINY,
    "630k-fusion-best.pt": dataclasses.replace(TINY, fusion=True),
    "630k-audioset-fusion-best.pt": dataclasses.replace(TINY, fusion=True),
    "music_audioset_epoch_15_esc_90.14.pt": BASE,
    "music_speech_epoch_15_esc_89.25.pt": BASE,
    "music_speech_audioset_epoch_15_esc_89.98.pt": BASE,
}
"""Published files of huggingface.co/lukewys/laion_clap."""

Shape = tuple[int, ...]


def _norm(key: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{key}.weight", (width,)
    yield f"{key}.bias", (width,)


def _batch_norm(key: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(key, width)
    yield f"{key}.running_mean", (width,)
    yield f"{key}.running_var", (width,)
    yield f"{key}.num_batches_tracked", ()


def _weight(key: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{key}.weight", shape
    yield f"{key}.bias", shape[:1]


def _htsat(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    root, width, stages = "audio_branch", sizes.width, len(sizes.depths)
    bins = N_FFT // 2 + 1
    yield f"{root}.spectrogram_extractor.stft.conv_real.weight", (bins, 1, N_FFT)
    yield f"{root}.spectrogram_extractor.stft.conv_imag.weight", (bins, 1, N_FFT)
    yield f"{root}.logmel_extractor.melW", (bins, MELS)
    yield from _batch_norm(f"{root}.bn0", MELS)
    yield from _weight(f"{root}.patch_embed.proj", width, 1, 4, 4)
    yield from _norm(f"{root}.patch_embed.norm", width)
    if sizes.fusion:
        inner = width // 4
        for part, first in (("local_att", 0), ("global_att", 1)):
            key = f"{root}.patch_embed.fusion_model.{part}"
            yield from _weight(f"{key}.{first}", inner, width, 1, 1)
            yield from _batch_norm(f"{key}.{first + 1}", inner)
            yield from _weight(f"{key}.{first + 3}", width, inner, 1, 1)
            yield from _batch_norm(f"{key}.{first + 4}", width)
        yield from _weight(f"{root}.patch_embed.mel_conv2d", width, 1, 4, 12)
    for stage, (depth, heads) in enumerate(zip(sizes.depths, sizes.heads, strict=True)):
        channels, side = width * 2**stage, SIDE // 2**stage
        for block in range(depth):
            key = f"{root}.layers.{stage}.blocks.{block}"
            if block % 2 and side > WINDOW:
                yield f"{key}.attn_mask", ((side // WINDOW) ** 2, WINDOW**2, WINDOW**2)
            yield from _norm(f"{key}.norm1", channels)
            yield f"{key}.attn.relative_position_bias_table", ((2 * WINDOW - 1) ** 2, heads)
            yield f"{key}.attn.relative_position_index", (WINDOW**2, WINDOW**2)
            yield from _weight(f"{key}.attn.qkv", 3 * channels, channels)
            yield from _weight(f"{key}.attn.proj", channels, channels)
            yield from _norm(f"{key}.norm2", channels)
            yield from _weight(f"{key}.mlp.fc1", 4 * channels, channels)
            yield from _weight(f"{key}.mlp.fc2", channels, 4 * channels)
        if stage + 1 < stages:
            key = f"{root}.layers.{stage}.downsample"
            yield f"{key}.reduction.weight", (2 * channels, 4 * channels)
            yield from _norm(f"{key}.norm", 4 * channels)
    hidden = width * 2 ** (stages - 1)
    yield from _norm(f"{root}.norm", hidden)
    yield from _weight(f"{root}.tscam_conv", CLASSES, hidden, SIDE // 2 ** (stages - 1) // 4, 3)
    yield from _weight(f"{root}.head", CLASSES, CLASSES)


def _roberta(config: Any) -> Iterator[tuple[str, Shape]]:
    with torch.device("meta"):
        model = transformers.RobertaModel(config)
    for name, value in model.named_parameters():
        yield f"text_branch.{name}", tuple(value.shape)
    yield "text_branch.embeddings.position_ids", (1, config.max_position_embeddings)


def shapes(sizes: Sizes) -> dict[str, Shape]:
    """Every key of the state dict, and its shape."""
    config = roberta(sizes)
    hidden = sizes.width * 2 ** (len(sizes.depths) - 1)
    found = {"logit_scale_a": (), "logit_scale_t": (), **dict(_htsat(sizes))}
    found |= dict(_roberta(config))
    for tower, width in (("text", config.hidden_size), ("audio", hidden)):
        found |= dict(_weight(f"{tower}_transform.sequential.0", sizes.shared, sizes.shared))
        found |= dict(_weight(f"{tower}_transform.sequential.3", sizes.shared, sizes.shared))
        found |= dict(_weight(f"{tower}_projection.0", sizes.shared, width))
        found |= dict(_weight(f"{tower}_projection.2", sizes.shared, sizes.shared))
    return found


def roberta(sizes: Sizes) -> Any:
    """roberta-base, but for the sizes that a test changes."""
    published = {
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    return transformers.RobertaConfig(**(published | sizes.text))


def random_state(sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights with which activations are of order 1, and buffers as the modules register them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(key: str, shape: Shape) -> torch.Tensor:
        if key.endswith(("_index", "_ids", "_tracked")):
            return torch.zeros(shape, dtype=torch.int64)
        noise = torch.randn(shape, generator=generator)
        if key.endswith("running_var"):
            return 0.5 + torch.rand(shape, generator=generator)
        if len(shape) > 1:
            scale = 1.0 if "embeddings." in key else 2 * noise[0].numel() ** -0.5
            return scale * noise
        if key.startswith("logit_scale"):
            return 2.65 + 0.1 * noise
        return 0.2 * noise + (1.0 if key.endswith("weight") else 0.0)

    return {key: draw(key, shape) for key, shape in shapes(sizes).items()}


RENAMES = {
    "text_branch": "text_model",
    "audio_branch": "audio_model.audio_encoder",
    "attn": "attention.self",
    "self.proj": "output.dense",
    "attention.self_mask": "attn_mask",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "bn0": "batch_norm",
}
"""Of transformers, applied in this order."""


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state under the names that transformers' own conversion gives it."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for theirs, name in RENAMES.items():
            key = key.replace(theirs, name)
        key = re.sub(r"_projection\.0\.", "_projection.linear1.", key)
        key = re.sub(r"_projection\.2\.", "_projection.linear2.", key)
        if key.startswith("audio") and ".qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[key.replace(".qkv.", f".{name}.")] = part
        else:
            found[key] = value
    return found


def reference(sizes: Sizes, state: dict[str, torch.Tensor]) -> Any:
    """transformers' model with the weights of a state dict, all of which it must find."""
    text = {
        name: value
        for name, value in roberta(sizes).to_dict().items()
        if name in transformers.ClapTextConfig().to_dict() and name != "model_type"
    }
    audio = {
        "patch_embeds_hidden_size": sizes.width,
        "hidden_size": sizes.width * 2 ** (len(sizes.depths) - 1),
        "depths": list(sizes.depths),
        "num_attention_heads": list(sizes.heads),
        "enable_fusion": sizes.fusion,
        "fusion_type": "aff_2d" if sizes.fusion else None,
    }
    config = transformers.ClapConfig(
        text_config=text, audio_config=audio, projection_dim=sizes.shared
    )
    model = transformers.ClapModel(config).eval()
    names = to_transformers(state)
    computed = re.compile(r"relative_position_index$|position_ids$|token_type_ids$")
    names = {key: value for key, value in names.items() if not computed.search(key)}
    missing, unexpected = model.load_state_dict(names, strict=False)
    assert all(computed.search(key) for key in missing), missing
    left_out = re.compile(
        r"^(text|audio)_transform\.|\.(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.|"
        r"\.attn_mask$"
    )
    assert all(left_out.search(key) for key in unexpected), unexpected
    return model
