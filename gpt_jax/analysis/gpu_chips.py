"""NVIDIA GPUs as XLA's compiler wants them described, so that it compiles for one that is absent.

Sources, unless a comment below names another: memory, bandwidth, cores, clock and cache are those
of OpenXLA's descriptions (xla/backends/gpu/target_config/specs/*.txtpb), which agree with NVIDIA's
data sheets; limits of threads, registers and shared memory those of the CUDA C++ Programming Guide,
"Technical Specifications per Compute Capability"; library versions those of a CUDA 13 driver with
jax 0.11. Peak rates are of the data sheets: bfloat16 products without sparsity.
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
      name: as the driver calls it.
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
)
CHIPS = {
    "h100": H100,
    # Memory: the 143,771 MiB that nvidia-smi shows; cache: the 60 MB that PyTorch reports.
    "h200": dataclasses.replace(
        H100,
        name="NVIDIA H200",
        memory=143771 * 2**20,
        bandwidth=4800000000000,
        l2_cache=60 * 2**20,
    ),
    "a100": GpuChip(
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
    ),
    # Memory as sold, of which programs get some 22 GiB; cores, clock and cache: published listings.
    "l4": GpuChip(
        name="NVIDIA L4",
        capability=(8, 9),
        cores=58,
        fpus_per_core=128,
        clock_ghz=2.04,
        memory=24000000000,
        bandwidth=300000000000,
        l2_cache=48 * 2**20,
        shared_memory_per_core=102400,
        shared_memory_per_block=101376,
        peak_flops=121e12,
        network=32e9,
        threads_per_core=1536,
    ),
    # Colab's free GPU. Memory, cores, clock and cache: a published listing of CUDA's deviceQuery.
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
        threads_per_core=1024,
        pcie_bandwidth=17179869184,
    ),
}


def model_flops_utilisation(flops_per_second: float, device_name: str) -> float | None:
    """Returns the share of a GPU's peak, MFU; None where its peak is not known.

    Args:
      flops_per_second: of the model, on this GPU.
      device_name: as the driver gives it: "NVIDIA A100-SXM4-40GB" is an A100 too.
    """
    for short_name, chip in CHIPS.items():
        if short_name.upper() in device_name and chip.peak_flops:
            return flops_per_second / chip.peak_flops
    return None
