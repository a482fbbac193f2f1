"""Devices that are only described, by name: TPU slices and NVIDIA GPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import util

import jax

from gpt_jax.analysis.chips import TPUS
from gpt_jax.analysis.gpu_chips import CHIPS, GpuChip, find_chip
from gpt_jax.errors import ConfigError, UserError

CUDA_VERSIONS = (12, 13)  # of jax's plugins
MAX_GPUS = 8  # of a described machine: NVLink joins so many


def check_can_plan(topology: str | None) -> None:
    """Raises UserError if a topology is given and the compiler for it is missing."""
    if topology is None:
        return
    if _gpu(topology):
        if not any(util.find_spec(f"jax_cuda{version}_plugin") for version in CUDA_VERSIONS):
            raise UserError(
                f"topology={topology} needs jax's CUDA plugin: "
                "pip install -r requirements-gpu-plan.txt"
            )
    elif not re.match(r"v\d", topology):
        raise ConfigError(_unknown(topology))
    elif util.find_spec("libtpu") is None:
        raise UserError(f"topology={topology} needs libtpu: pip install -r requirements-tpu.txt")


def topology_devices(name: str) -> list[jax.Device]:
    """Returns described devices: a TPU slice, such as v5e:4x4, or GPUs of a machine, as h100:8.

    Needs libtpu or jax's CUDA plugin, see `check_can_plan`, but no TPU and no GPU.

    Raises:
      ConfigError: there is no such topology.
    """
    from jax.experimental import topologies

    try:
        if chip := _gpu(name):
            found = topologies.get_topology_desc(
                platform="cuda",
                target_config=chip.description(),
                topology=f"1x1x{_gpu_count(name)}",
            )
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{_unknown(name)} ({str(error).splitlines()[0]})") from error
    return list(found.devices)


def host_devices(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Returns the devices of the first host of a machine or slice, real or described.

    Of a described slice of several hosts they are those of a slice as large as a host: the compiler
    for TPUs takes a described device only where all with lower ids take part.
    """
    host = [d for d in devices if d.process_index == devices[0].process_index]
    kind = devices[0].device_kind
    if len(host) == len(devices) or kind not in TPUS or devices[0] in jax.local_devices():
        return host
    sides = [max(along) - min(along) + 1 for along in zip(*(d.coords for d in host), strict=True)]
    if kind.endswith("lite"):  # v5e and v6e, whose slices have two sides
        sides = sides[:2]
    return topology_devices(f"{TPUS[kind].name}:{'x'.join(map(str, sides))}")


def _unknown(topology: str) -> str:
    return (
        f"topology={topology} is not a TPU slice, such as v5e:4x4, v5p:2x2x2 or v6e:8x8, nor "
        f"NVIDIA GPUs, such as h100:8: of these there are {', '.join(CHIPS)}"
    )


def _gpu(topology: str) -> GpuChip | None:
    """Returns the GPU that a topology is made of; None where it is another name."""
    return CHIPS.get(topology.partition(":")[0].lower())


def _gpu_count(topology: str) -> int:
    count = topology.partition(":")[2] or "1"
    if not count.isdecimal() or not 1 <= int(count) <= MAX_GPUS:
        raise ConfigError(
            f"topology={topology} must name 1 to {MAX_GPUS} GPUs of a machine, such as h100:8"
        )
    return int(count)


def described_backend(device: jax.Device) -> str:
    """Returns the backend of a described device, as `target_backend` gives it on such a machine."""
    gpu = find_gpu(device)
    return gpu.backend if gpu else device.platform


def find_gpu(device: jax.Device) -> GpuChip | None:
    """Returns the data sheet of a real or described GPU; None where it is not known."""
    return find_chip(device.device_kind)
