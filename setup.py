"""Package metadata; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "fasttta_jax/version.py").read_text(encoding="utf-8")
).group(1)

# The web page; among the test extras too, so that it is tested.
DEMO = ["gradio>=6.31,<7"]

setup(
    name="fasttta_jax",
    version=VERSION,
    description="One-step text-to-audio generation in JAX: a diffusion teacher, an energy student",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fasttta_jax", "fasttta_jax.*"]),
    package_data={"fasttta_jax": ["assets/soundscapes/**"], "fasttta_jax.report": ["*.j2"]},
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.7",
        "einops>=0.8",
        "etils[epath]>=1.9",
        "filelock>=4.3",
        "flax>=0.12",
        "fsspec>=2025.3",
        "grain>=0.2.15",
        "huggingface-hub>=1.0",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "librosa>=0.11",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "ml-dtypes>=0.5",
        "msgpack>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "pillow>=10",
        "platformdirs>=4",
        "pyarrow>=15",  # of tensorflow-datasets too
        "pyloudnorm>=0.2",
        "safetensors>=0.8",
        "scipy>=1.13",
        "soundfile>=0.13",
        "soxr>=0.5",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.8",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "transformers>=5.0",
    ],
    extras_require={
        "test": [
            *DEMO,
            "beartype>=0.22",
            "chex>=0.1.90",
            "basedpyright==1.40.2",
            "playwright>=1.50",  # drives an installed Chromium; without one its tests skip
            "pytest>=8",
            "pytest-xdist>=3.7",
            "ruff>=0.9",
            "sentencepiece>=0.2",
            # For parity tests; they skip where these are not installed.
            "diffusers>=0.35; python_version < '3.12'",
            "torch==2.13.0; python_version < '3.12'",
        ],
        # libtpu of the version that goes with jax; compiles for TPUs on any x86 machine.
        "aot": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "demo": DEMO,
        # For gs:// datasets and workdirs.
        "gcs": ["gcsfs>=2025.3"],
        # For folders of T5 that have spiece.model and no tokenizer.json.
        "sentencepiece": ["protobuf>=5", "sentencepiece>=0.2"],
        "tpu": ["jax[tpu]"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
