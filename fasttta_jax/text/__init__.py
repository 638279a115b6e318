"""Text encoders: captions to the streams that condition the backbone."""

from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.text.learned import LearnedTextEncoder

__all__ = ["LearnedTextEncoder", "TextBatch", "TextEncoder"]
