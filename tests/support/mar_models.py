"""Small MAR and EAR references with random weights, and our models with what they convert to."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from fasttta_jax.config import (
    BackboneConfig,
    DiffusionConfig,
    EnergyConfig,
    HeadConfig,
    ModelConfig,
)
from fasttta_jax.convert import mar
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.objectives import Diffusion, Energy
from fasttta_jax.storage.weights import ConvertedWeights, read_converted
from fasttta_jax.systems import TextToAudio
from fasttta_jax.text.base import TextBatch
from fasttta_jax.typing import Conditioning, Key, Params, TextStream
from tests.support import conversions, mar_torch

WIDTH, NUM_HEADS, NUM_TOKENS, TOKEN_DIM, NUM_CLIPS = 48, 4, 16, 8, 3
HEAD = {"head_width": 40, "head_depth": 2}
SIZES = {
    "width": WIDTH,
    "num_heads": NUM_HEADS,
    "num_tokens": NUM_TOKENS,
    "token_dim": TOKEN_DIM,
    "num_classes": 10,
}


def make_reference(kind: str, seed: int = 0, *, depth: int = 2, head_scale: float = 1.0) -> Any:
    """A small torch model with random weights everywhere."""
    if kind == "mar":
        model = mar_torch.MAR(encoder_depth=depth, decoder_depth=depth + 1, **HEAD, **SIZES)
    else:
        model = mar_torch.EAR(depth=depth, noise_dim=6, **HEAD, **SIZES)
    mar_torch.randomize(model, seed, head_scale)
    return model.eval().requires_grad_(False)


def save_checkpoint(path: pathlib.Path, model: Any, averaged: Any) -> None:
    """The layout of the original training code, with optimizer state and arguments."""
    optimizer = torch.optim.AdamW(
        [torch.nn.Parameter(value.clone()) for value in model.parameters()]
    )
    for group in optimizer.param_groups:
        for value in group["params"]:
            value.grad = torch.ones_like(value)
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "model_ema": {
            name: torch.nn.Parameter(value) for name, value in averaged.state_dict().items()
        },
        "optimizer": optimizer.state_dict(),
        "epoch": 399,
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
        "args": argparse.Namespace(lr=8e-4, model="mar_base", output_dir="out"),
    }
    torch.save(state, path)


@dataclasses.dataclass(frozen=True)
class ClassEncoder:
    """A text encoder whose one stream is a class embedding of width D in every slot."""

    width: int
    streams: tuple[tuple[str, int], ...] = (("class", mar.NUM_TEXT),)

    def tokenize(self, captions: Sequence[str]) -> TextBatch:
        return {"classes": np.zeros((len(captions), self.width), np.float32)}

    def init(self, key: Key) -> Params:
        return {}

    def embed(
        self, params: Params, batch: TextBatch, *, hidden_tokens: Any = None
    ) -> dict[str, TextStream]:
        slots = jnp.repeat(jnp.asarray(batch["classes"])[:, None], mar.NUM_TEXT, axis=1)
        return {"class": TextStream(slots, jnp.ones(slots.shape[:2], jnp.bool_))}


def conditioning(classes: Any) -> Conditioning:
    """Class embeddings [B, D] as a stream of text."""
    return ClassEncoder(WIDTH).embed({}, {"classes": classes.numpy()})


def build_model(metadata: dict[str, Any], sampling_steps: int = 5) -> Any:
    """The model that a conversion's metadata describes."""
    head = dict(metadata["head"])
    sizes = HeadConfig(head.pop("width"), head.pop("depth"))
    config = ModelConfig(
        num_tokens=metadata["num_tokens"],
        token_dim=metadata["token_dim"],
        backbone=BackboneConfig(**metadata["backbone"]),
        head=sizes,
    )
    text = ClassEncoder(config.backbone.width)
    if metadata["kind"] == "ear":
        return TextToAudio(config, text, Energy(config, EnergyConfig(**head)))
    diffusion = DiffusionConfig(**metadata["diffusion"], sampling_steps=sampling_steps)
    return TextToAudio(config, text, Diffusion(config, diffusion))


def build(converted: ConvertedWeights, sampling_steps: int = 5) -> tuple[Any, Any]:
    """The model, and its parameters with an identity in place of the text projection."""
    identity = {"kernel": np.eye(WIDTH, dtype=np.float32), "bias": np.zeros(WIDTH, np.float32)}
    backbone = converted.params["backbone"] | {"text_class": identity}
    params = converted.params | {"backbone": backbone, "text": {}}
    model = build_model(converted.metadata, sampling_steps)
    return model, jax.tree.map(jnp.asarray, params)


def convert(folder: pathlib.Path, model: Any, averaged: Any, **options: Any) -> ConvertedWeights:
    """Saved by torch, converted, written and read back."""
    save_checkpoint(folder / "checkpoint-last.pth", model, averaged)
    result = conversions.convert(
        mar, folder / "checkpoint-last.pth", num_heads=NUM_HEADS, **options
    )
    write_conversion(result, folder / "converted")
    return read_converted(folder / "converted")
