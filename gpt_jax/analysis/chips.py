"""Peak figures of accelerators from their makers' data sheets: bounds, not measurements."""

from __future__ import annotations

import dataclasses

from gpt_jax.devices import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: its short name, as in names of topologies.
      memory: bytes that programs may use.
      flops: floating point operations per second in bfloat16 matrix products.
      bandwidth: of its memory (HBM), bytes per second.
      network: sent to neighbouring chips over all links, bytes per second.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    network: float


# TPUs: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e; half of the bidirectional bandwidth
# between chips is for sending. libtpu reserves a quarter of a GiB of v5e's 16, as its compiler
# reports. GPUs: NVIDIA's data sheets of the SXM modules, products without sparsity, NVLink.
CHIPS = {
    "TPU v4": Chip("v4", 32 * GIB, 275e12, 1228e9, 150e9),
    "TPU v5 lite": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9),
    "TPU v5": Chip("v5p", 95 * 10**9, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 32 * 10**9, 918e12, 1638e9, 400e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100", 40 * GIB, 312e12, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 80 * GIB, 312e12, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 80 * GIB, 989e12, 3350e9, 450e9),
    "NVIDIA H200": Chip("H200", 141 * 10**9, 989e12, 4800e9, 450e9),
}
