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
      source: the data sheet: name and address of the document.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    network: float
    source: str = ""


# Half of the bidirectional bandwidth between chips is for sending. libtpu reserves a quarter of a
# GiB of v5e's 16, as its compiler reports.
CLOUD_TPU = "Cloud TPU documentation, TPU {0}: https://cloud.google.com/tpu/docs/{0}"
TPUS = {
    "TPU v4": Chip("v4", 32 * GIB, 275e12, 1228e9, 150e9, CLOUD_TPU.format("v4")),
    "TPU v5 lite": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, CLOUD_TPU.format("v5e")),
    "TPU v5": Chip("v5p", 95 * 10**9, 459e12, 2765e9, 600e9, CLOUD_TPU.format("v5p")),
    "TPU v6 lite": Chip("v6e", 32 * 10**9, 918e12, 1638e9, 400e9, CLOUD_TPU.format("v6e")),
}


def _of_gpu(name: str, gpu: GpuChip) -> Chip:
    flops = gpu.peak_flops or gpu.peak_float32_flops  # a T4 has no products in bfloat16
    shown = name.upper().replace("-", " ")
    return Chip(shown, gpu.memory, flops, gpu.bandwidth, gpu.network, gpu.source)


CHIPS = TPUS | {gpu.name: _of_gpu(name, gpu) for name, gpu in GPUS.items()}
