"""A third objective: the token itself, by least squares. What a new objective has to write."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import pytest

from fasttta_jax.config import ModelConfig
from fasttta_jax.models.layers import linear
from fasttta_jax.objectives import OBJECTIVES
from fasttta_jax.objectives.base import HeadFlops, Objective, product_flops

NAME = "regression"


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """Squared error of one linear prediction; its only sample is the mean."""

    model: ModelConfig

    terms: ClassVar = {"square": "squared error of the token"}

    @property
    def head(self):
        return linear(self.model.token_dim, dtype=jnp.dtype(self.model.dtype), name="head")

    def init(self, key):
        return self.head.init(key, jnp.zeros((1, self.model.backbone.width)))["params"]

    def predict(self, head, hidden):
        return self.head.apply({"params": head}, hidden).astype(jnp.float32)

    def loss(self, head, hidden, tokens, key, *, teacher, average, target):
        return {"square": jnp.mean((self.predict(head, hidden) - tokens) ** 2, axis=-1)}

    def sample(self, head, hidden, hidden_unconditional, guidance_scale, keys, temperature):
        if hidden_unconditional is not None:
            hidden = hidden_unconditional + guidance_scale * (hidden - hidden_unconditional)
        return self.predict(head, hidden)

    def flops(self):
        one = product_flops(1, self.model.backbone.width, self.model.token_dim)
        return HeadFlops(one, one, one)


@pytest.fixture
def regression(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name by which a run's config can ask for it."""
    monkeypatch.setitem(OBJECTIVES, NAME, lambda run: Regression(run.model))
    return NAME
