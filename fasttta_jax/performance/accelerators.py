"""What an accelerator can do at most: matrix products a second, memory, links between chips.

Everything is for one jax device, which is a chip, except for TPU v2, v3 and TPU7x, whose chips are
two devices each. Rates are the makers' figures for dense matrices, without sparsity.
Sources: the "System architecture" pages of cloud.google.com/tpu/docs (v2 to 7x), NVIDIA's data
sheets of V100, T4, A100, A10, L4, L40S, H100, H200, GH200 and B200.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of device.

    Attributes:
      name: as people call it, "v5e" or "H100 SXM".
      device_kind: a regex for the whole of jax's `device_kind`, case ignored.
      bfloat16: floating-point operations a second of bfloat16 matrix products; None where the
        matrix units have no such type.
      float32: the same for float32 operands at jax's default precision: one bfloat16 pass on a TPU,
        TF32 on NVIDIA's Ampere and later, true float32 before.
      memory_bytes: that it has, or as much of it as a program gets.
      memory_bandwidth: bytes a second.
      link_bandwidth: bytes a second that a TPU sends over one of its links, in one direction; None
        for a GPU, whose links depend on the server.
    """

    name: str
    device_kind: str
    bfloat16: float | None
    float32: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float | None = None


def _tpu(
    name: str, device_kind: str, teraflops: float, gib: float, memory: float, link: float | None
) -> Accelerator:
    rate = teraflops * TERA
    return Accelerator(
        name,
        device_kind,
        rate,
        rate,
        int(gib * GIB),
        memory * GIGA,
        None if link is None else link * GIGA,
    )


def _gpu(
    name: str, device_kind: str, bfloat16: float | None, float32: float, gib: float, memory: float
) -> Accelerator:
    rate = None if bfloat16 is None else bfloat16 * TERA
    return Accelerator(name, device_kind, rate, float32 * TERA, int(gib * GIB), memory * GIGA)


ACCELERATORS: tuple[Accelerator, ...] = (
    # A chip's "interchip interconnect bandwidth" is the sum over its links: 4 in two dimensions
    # (v2, v3, v5e, v6e), 6 in three (v4, v5p, 7x). Memory of v4, v5e, v5p and v6e is what libtpu
    # 0.0.42 lets a program have.
    _tpu("v2", r"TPU v2", 23, 8, 350, 62),
    _tpu("v3", r"TPU v3", 61.5, 16, 450, 82),
    _tpu("v4", r"TPU v4", 275, 30.75, 1228, 50),
    _tpu("v5e", r"TPU v5 ?lite|TPU v5e", 197, 15.75, 819, 50),
    _tpu("v5p", r"TPU v5p?", 459, 95.74, 2765, 100),
    _tpu("v6e", r"TPU v6 ?lite|TPU v6e", 918, 31.25, 1640, 100),
    _tpu("7x", r"TPU ?v?7x?", 1153.5, 96, 3690, 100),
    _gpu("V100", r"(NVIDIA |Tesla )?V100.*", None, 15.7, 16, 900),
    _gpu("T4", r"(NVIDIA |Tesla )?T4", None, 8.1, 16, 300),
    _gpu("A100 80 GB", r"(NVIDIA )?A100.*80GB.*", 312, 156, 80, 2039),
    _gpu("A100 40 GB", r"(NVIDIA )?A100.*", 312, 156, 40, 1555),
    _gpu("A10G", r"(NVIDIA )?A10G", 70, 35, 24, 600),
    _gpu("A10", r"(NVIDIA )?A10", 125, 62.5, 24, 600),
    _gpu("L4", r"(NVIDIA )?L4", 121, 60, 24, 300),
    _gpu("L40S", r"(NVIDIA )?L40S", 362, 183, 48, 864),
    _gpu("H100 PCIe", r"(NVIDIA )?H100 PCIe", 756, 378, 80, 2000),
    _gpu("H100 NVL", r"(NVIDIA )?H100 NVL", 835, 417.5, 94, 3900),
    _gpu("H100 SXM", r"(NVIDIA )?H100.*", 989.4, 494.7, 80, 3350),
    _gpu("H200 NVL", r"(NVIDIA )?H200 NVL", 835, 417.5, 141, 4800),
    _gpu("H200 SXM", r"(NVIDIA )?H200.*", 989.4, 494.7, 141, 4800),
    _gpu("GH200", r"(NVIDIA )?GH200.*", 989.4, 494.7, 96, 4000),
    _gpu("B200", r"(NVIDIA )?B200.*", 2250, 1125, 180, 7700),
    _gpu("GB200", r"(NVIDIA )?GB200.*", 2500, 1250, 186, 8000),
)
"""Looked through in this order; a part of a GPU ("MIG") is none of them."""


def accelerator(device_kind: str) -> Accelerator | None:
    """What is known of a device, by jax's `device_kind`; None for a CPU and for kinds not listed.

    Args:
      device_kind: such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3".
    """
    if re.search(r"\bMIG\b", device_kind):
        return None
    for kind in ACCELERATORS:
        if re.fullmatch(kind.device_kind, device_kind.strip(), re.IGNORECASE):
            return kind
    return None


def peak_flops(device_kind: str, dtype: Any) -> float | None:
    """Most floating-point operations a second of matrix products on one device.

    Args:
      device_kind: as jax says it.
      dtype: of the operands: bfloat16 or float32.

    Returns:
      None where the device is not listed or its matrix units have no such type.

    Raises:
      ValueError: another dtype.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in ("bfloat16", "float32"):
        raise ValueError(f"dtype is {name!r}; allowed: 'bfloat16' or 'float32'")
    kind = accelerator(device_kind)
    return None if kind is None else getattr(kind, name)
