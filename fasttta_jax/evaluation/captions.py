"""Captions in the space of an embedder's features, kept by content as features are.

Dimensions: n captions, d features.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fasttta_jax.evaluation.embedders import Embedder, TextEmbedder
from fasttta_jax.evaluation.metric import NotMeasured
from fasttta_jax.storage.arrays import open_arrays
from fasttta_jax.storage.files import StorageError, write_atomically

logger = logging.getLogger(__name__)


def caption_embeddings(
    embedder: Embedder, captions: Sequence[str], folder: pathlib.Path
) -> Float[np.ndarray, "n d"]:
    """One vector a caption; equal captions are embedded once, and those seen before never again.

    Args:
      embedder: the network.
      captions: of the clips.
      folder: where vectors are kept, by the hash of the captions and of the network.

    Raises:
      NotMeasured: the network takes no captions, or a clip has none.
    """
    if not isinstance(embedder, TextEmbedder):
        raise NotMeasured(f"the embedder {embedder.name} takes no captions")
    without = [row for row, caption in enumerate(captions) if not caption.strip()]
    if without or not captions:
        raise NotMeasured(
            f"{len(without)} of {len(captions)} clips have no caption"
            + (f", first clip {without[0]}" if without else "")
        )
    unique = sorted(set(captions))
    digest = hashlib.sha256(json.dumps([embedder.hash, unique]).encode()).hexdigest()
    path = folder / f"{embedder.name}_captions_{digest[:32]}.npz"
    vectors = _read(path)
    if vectors is None:
        vectors = np.asarray(embedder.embed_text(unique))
        file = io.BytesIO()
        np.savez(file, embeddings=vectors)
        write_atomically(path, file.getvalue())
    place = {caption: row for row, caption in enumerate(unique)}
    return vectors[[place[caption] for caption in captions]]


def _read(path: pathlib.Path) -> Float[np.ndarray, "n d"] | None:
    if not path.is_file():
        return None
    try:
        with open_arrays(path) as arrays:
            return arrays["embeddings"]
    except StorageError as error:
        logger.warning("%s; its captions are embedded anew", error)
        return None
