"""Eight virtual CPU devices, strict rank promotion, and flags that count as parsed."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def _flags_are_parsed() -> None:
    flags.FLAGS.mark_as_parsed()
