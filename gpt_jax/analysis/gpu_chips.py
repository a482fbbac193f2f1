"""NVIDIA GPUs: their data sheets, and how XLA's compiler wants them described.

The only table of GPUs here: XLA compiles for one that is absent, by its short name, and MFU is a
share of the peak of one that is present, by the driver's name. Each names the data sheet that its
peak and network are of. Memory, bandwidth, cores, clock and cache are those of OpenXLA's
descriptions, https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs, unless
a comment says otherwise; limits of threads, registers and shared memory those of the CUDA C++
Programming Guide, "Technical Specifications per Compute Capability"; library versions those of a
CUDA 13 driver with jax 0.11. Peak rates are of bfloat16 products without sparsity, networks half of
both directions.
"""

from __future__ import annotations

import dataclasses

DESCRIPTION = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory_per_core}
  threads_per_core_limit: {threads_per_core}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_memory_per_block}
  cuda_compute_capability {{
    major: {capability[0]}
    minor: {capability[1]}
    feature_extension: {features}
  }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {capability[0]}.{capability[1]}{suffix}"
  device_address_bits: 64
  pcie_bandwidth: {pcie_bandwidth}
  ecc_enabled: true
  name: "{name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{
  major: 9
  minor: 10
  patch: 0
}}
runtime_version {{
  major: 12
  minor: 8
  patch: 0
}}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class GpuChip:
    """One GPU.

    Attributes:
      name: exactly as the driver calls it, which is jax's `device_kind`.
      capability: the CUDA compute capability, (major, minor).
      cores: streaming multiprocessors.
      fpus_per_core: float32 units in each.
      clock_ghz: of the multiprocessors, at its highest.
      memory: bytes.
      bandwidth: bytes per second to and from it.
      l2_cache: bytes.
      shared_memory_per_core: bytes.
      shared_memory_per_block: bytes that a block of threads can ask for.
      peak_flops: bfloat16 products, operations per second; None where it has none.
      network: bytes per second to other GPUs of the machine: NVLink, or PCI Express.
      source: the data sheet: name and address of the document.
      threads_per_core: that can be resident.
      pcie_bandwidth: bytes per second to and from the host.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2_cache: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    peak_flops: float | None
    network: float
    source: str
    threads_per_core: int = 2048
    pcie_bandwidth: int = 34359738368

    @property
    def backend(self) -> str:
        """The backend's name for the project, as "cuda 9.0"."""
        return "cuda {}.{}".format(*self.capability)

    @property
    def peak_float32_flops(self) -> float:
        """Operations per second outside tensor cores: a multiply-add per unit and clock."""
        return 2e9 * self.cores * self.fpus_per_core * self.clock_ghz

    def description(self) -> str:
        """Returns XLA's `GpuTargetConfigProto` of this GPU, as text."""
        accelerated = self.capability >= (9, 0)
        return DESCRIPTION.format(
            **dataclasses.asdict(self),
            features="ACCELERATED_FEATURES" if accelerated else "NONE",
            suffix="a" if accelerated else "",
        )


H100 = GpuChip(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    clock_ghz=1.98,
    memory=84942979072,
    bandwidth=3352320000000,
    l2_cache=50 * 2**20,
    shared_memory_per_core=233472,
    shared_memory_per_block=232448,
    peak_flops=989e12,
    network=450e9,
    source="NVIDIA H100 GPU, H100 SXM: https://www.nvidia.com/en-us/data-center/h100/",
)
A100 = GpuChip(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    cores=108,
    fpus_per_core=64,
    clock_ghz=1.41,
    memory=85100068864,
    bandwidth=2039040000000,
    l2_cache=40 * 2**20,
    shared_memory_per_core=167936,
    shared_memory_per_block=166912,
    peak_flops=312e12,
    network=300e9,
    source="NVIDIA A100 Tensor Core GPU, A100 80GB SXM: "
    "https://www.nvidia.com/en-us/data-center/a100/",
)
CHIPS = {
    "h100": H100,
    "h100-pcie": dataclasses.replace(
        H100,
        name="NVIDIA H100 PCIe",
        cores=114,
        clock_ghz=1.755,
        bandwidth=2039040000000,
        peak_flops=756e12,
        network=64e9,
        source="NVIDIA H100 Tensor Core GPU Architecture, H100 PCIe: "
        "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper",
    ),
    # Not among OpenXLA's: the data sheet's memory, as sold, and bandwidth; a published listing's
    # clock.
    "h100-nvl": dataclasses.replace(
        H100,
        name="NVIDIA H100 NVL",
        clock_ghz=1.785,
        memory=94 * 10**9,
        bandwidth=3900000000000,
        peak_flops=835e12,
        network=300e9,
        source="NVIDIA H100 GPU, H100 NVL: https://www.nvidia.com/en-us/data-center/h100/",
    ),
    # Memory: 138,101,653,504 bytes were 92% of it in benchmarks/results/gpu_h200.jsonl; cache: the
    # 60 MB that PyTorch reports.
    "h200": dataclasses.replace(
        H100,
        name="NVIDIA H200",
        memory=143156 * 2**20,
        bandwidth=4800000000000,
        l2_cache=60 * 2**20,
        source="NVIDIA H200 GPU, H200 SXM: https://www.nvidia.com/en-us/data-center/h200/",
    ),
    "b200": dataclasses.replace(
        H100,
        name="NVIDIA B200",
        capability=(10, 0),
        cores=148,
        clock_ghz=1.965,
        memory=191514411008,
        bandwidth=7672320000000,
        l2_cache=132644864,
        peak_flops=2250e12,
        network=900e9,
        pcie_bandwidth=68719476736,
        source="NVIDIA DGX B200, an eighth of it: https://www.nvidia.com/en-us/data-center/dgx-b200/",
    ),
    "a100": A100,
    "a100-40gb": dataclasses.replace(
        A100,
        name="NVIDIA A100-SXM4-40GB",
        memory=42331013120,
        bandwidth=1555200000000,
        source="NVIDIA A100 Tensor Core GPU, A100 40GB SXM: "
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    # The PCI Express cards: the data sheet's bandwidth, else as the SXM modules.
    "a100-pcie": dataclasses.replace(
        A100,
        name="NVIDIA A100 80GB PCIe",
        bandwidth=1935000000000,
        network=32e9,
        source="NVIDIA A100 Tensor Core GPU, A100 80GB PCIe: "
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    "a100-pcie-40gb": dataclasses.replace(
        A100,
        name="NVIDIA A100-PCIE-40GB",
        memory=42331013120,
        bandwidth=1555000000000,
        network=32e9,
        source="NVIDIA A100 Tensor Core GPU, A100 40GB PCIe: "
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    # Not among OpenXLA's. Memory: a published listing of CUDA's deviceQuery, of the 24 GB that are
    # sold; cores, clock and cache: published listings.
    "l4": GpuChip(
        name="NVIDIA L4",
        capability=(8, 9),
        cores=58,
        fpus_per_core=128,
        clock_ghz=2.04,
        memory=23612293120,
        bandwidth=300000000000,
        l2_cache=48 * 2**20,
        shared_memory_per_core=102400,
        shared_memory_per_block=101376,
        peak_flops=121e12,
        network=32e9,
        source="NVIDIA L4 Tensor Core GPU: https://www.nvidia.com/en-us/data-center/l4/",
        threads_per_core=1536,
    ),
    # Colab's free GPU. Not among OpenXLA's; memory, cores, clock and cache: a published listing of
    # deviceQuery.
    "t4": GpuChip(
        name="Tesla T4",
        capability=(7, 5),
        cores=40,
        fpus_per_core=64,
        clock_ghz=1.59,
        memory=15843721216,
        bandwidth=320000000000,
        l2_cache=4 * 2**20,
        shared_memory_per_core=65536,
        shared_memory_per_block=65536,
        peak_flops=None,
        network=16e9,
        source="NVIDIA T4 Tensor Core GPU: https://www.nvidia.com/en-us/data-center/tesla-t4/",
        threads_per_core=1024,
        pcie_bandwidth=17179869184,
    ),
}


def find_chip(device_name: str) -> GpuChip | None:
    """Returns the GPU that the driver calls this, exactly; None where it is not described.

    "NVIDIA L40S" is no "NVIDIA L4", and a part of an H100 (MIG) no H100.
    """
    return next((chip for chip in CHIPS.values() if chip.name == device_name), None)


def model_flops_utilisation(flops_per_second: float, device_name: str) -> float | None:
    """Returns the share of a GPU's peak, MFU; None where its peak is not known.

    Args:
      flops_per_second: of the model, on this GPU.
      device_name: as the driver gives it; see `find_chip`.
    """
    chip = find_chip(device_name)
    return flops_per_second / chip.peak_flops if chip and chip.peak_flops else None
