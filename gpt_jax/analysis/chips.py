"""Peak figures of accelerators from their makers' data sheets: bounds, not measurements."""

from __future__ import annotations

import dataclasses

from gpt_jax.analysis.gpu_chips import CHIPS as GPUS
from gpt_jax.analysis.gpu_chips import GpuChip
from gpt_jax.devices import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: its short name, as in names of topologies.
      memory: bytes that programs may use.
      flops: floating point operations per second in bfloat16 matrix products, or float32 where the
        chip has none.
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
# reports.
TPUS = {
    "TPU v4": Chip("v4", 32 * GIB, 275e12, 1228e9, 150e9),
    "TPU v5 lite": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9),
    "TPU v5": Chip("v5p", 95 * 10**9, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 32 * 10**9, 918e12, 1638e9, 400e9),
}
# GPUs that are not among the described ones of gpu_chips.py. NVIDIA's data sheets, products without
# sparsity, half of NVLink's bandwidth (or of PCI Express) for sending:
# https://www.nvidia.com/en-us/data-center/a100, /h100 and /dgx-b200.
OTHER_GPUS = {
    "NVIDIA A100-SXM4-40GB": Chip("A100 40 GB", 40 * GIB, 312e12, 1555e9, 300e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 PCIe", 80 * GIB, 312e12, 1935e9, 32e9),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 80 * GIB, 756e12, 2000e9, 64e9),
    "NVIDIA H100 NVL": Chip("H100 NVL", 94 * 10**9, 835e12, 3900e9, 300e9),
    "NVIDIA B200": Chip("B200", 180 * 10**9, 2250e12, 8000e9, 900e9),
}


def _of_gpu(name: str, gpu: GpuChip) -> Chip:
    flops = gpu.peak_flops or gpu.peak_float32_flops  # a T4 has no products in bfloat16
    return Chip(name.upper(), gpu.memory, flops, gpu.bandwidth, gpu.network)


CHIPS = TPUS | OTHER_GPUS | {gpu.name: _of_gpu(name, gpu) for name, gpu in GPUS.items()}
