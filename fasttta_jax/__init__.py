"""One-step text-to-audio generation in JAX: diffusion-head teacher, energy-scoring student."""

__version__ = "0.1.0"
