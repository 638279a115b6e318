"""Every kind of device is found under the name that jax has for it, with the maker's rates."""

from __future__ import annotations

import re

import jax.numpy as jnp
import pytest

from fasttta_jax.performance.accelerators import (
    ACCELERATORS,
    accelerator,
    peak_flops,
)

KINDS = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "7x",
    "Tesla V100-SXM2-16GB": "V100",
    "Tesla T4": "T4",
    "NVIDIA A100-SXM4-40GB": "A100 40 GB",
    "NVIDIA A100-SXM4-80GB": "A100 80 GB",
    "NVIDIA A100 80GB PCIe": "A100 80 GB",
    "NVIDIA A10G": "A10G",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200 SXM",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA B200": "B200",
}


@pytest.mark.parametrize(("device_kind", "name"), KINDS.items())
def test_a_device_is_known_by_the_kind_that_jax_says(device_kind, name):
    found = accelerator(device_kind)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "TPU v99", ""])
def test_what_is_not_listed_has_no_peak(device_kind):
    assert accelerator(device_kind) is None
    assert peak_flops(device_kind, "bfloat16") is None


def test_peaks_by_type():
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v5 lite", jnp.float32) == 197e12  # one bfloat16 pass
    assert peak_flops("NVIDIA H100 80GB HBM3", jnp.bfloat16) == 989.4e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 494.7e12  # TF32
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None
    with pytest.raises(ValueError, match="dtype is 'int8'; allowed: 'bfloat16' or 'float32'"):
        peak_flops("TPU v4", "int8")


def test_the_table_is_plausible():
    assert len({kind.name for kind in ACCELERATORS}) == len(ACCELERATORS)
    for kind in ACCELERATORS:
        re.compile(kind.device_kind)
        assert kind.bfloat16 is None or kind.bfloat16 >= kind.float32
        assert 1e12 < kind.float32 < 1e16
        assert 2**32 < kind.memory_bytes < 2**40
        assert 1e11 < kind.memory_bandwidth < 1e14
        assert (kind.link_bandwidth is not None) == ("TPU" in kind.device_kind)
