"""Layers of the backbone and the heads by independent float64 arithmetic."""

from __future__ import annotations

import math

import jax
import numpy as np
import scipy.special

WIDTH, HEADS = 24, 3


def reference_norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)


def affine(x: np.ndarray, params: dict) -> np.ndarray:
    """A layer norm with scale and bias."""
    return reference_norm(x) * params["scale"] + params["bias"]


def dense(x: np.ndarray, params: dict) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x * scipy.special.expit(x)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + scipy.special.erf(x / math.sqrt(2)))


def reference_attention(x: np.ndarray, params: dict, keep: np.ndarray | None) -> np.ndarray:
    """One clip [S, D]; keys that are not kept are removed, not masked."""
    width = x.shape[-1]
    kernel = params["qkv"]["kernel"].reshape(width, 3 * width)
    qkv = x @ kernel + params["qkv"]["bias"].reshape(3 * width)
    query, key, value = np.split(qkv, 3, axis=-1)
    head_width = width // HEADS
    mixed = []
    for head in range(HEADS):
        own = slice(head * head_width, (head + 1) * head_width)
        keys, values = key[:, own], value[:, own]
        if keep is not None:
            keys, values = keys[keep], values[keep]
        weights = scipy.special.softmax(query[:, own] @ keys.T / math.sqrt(head_width), axis=-1)
        mixed.append(weights @ values)
    kernel = params["projection"]["kernel"].reshape(width, width)
    return np.concatenate(mixed, axis=-1) @ kernel + params["projection"]["bias"]


def reference_block(x: np.ndarray, params: dict, keep: np.ndarray | None = None) -> np.ndarray:
    x = x + reference_attention(affine(x, params["norm_1"]), params["attention"], keep)
    hidden = gelu(dense(affine(x, params["norm_2"]), params["mlp_in"]))
    return x + dense(hidden, params["mlp_out"])


def in_float64(params: dict) -> dict:
    return jax.tree.map(np.float64, params)
