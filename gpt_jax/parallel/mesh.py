"""The device mesh: the axes data, fsdp, tensor and sequence, and how many devices each gets.

What is split along which axis is in `sharding.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gpt_jax.config import Config, MeshConfig
from gpt_jax.devices import largest_divisor
from gpt_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence")


def resolve_axis_sizes(
    requested: MeshConfig,
    micro_batch_size: int,
    n_devices: int,
    kv_heads: int = 1,
    block_size: int = 1,
) -> tuple[int, int, int, int]:
    """Returns the sizes of the axes (data, fsdp, tensor, sequence), with -1 replaced by a number.

    -1 takes as many of the remaining devices as divide the micro-batch; on the axis tensor, as
    divide the key/value heads that the axis sequence leaves; on sequence, as divide those that
    tensor leaves, and block_size. Devices that no axis takes stay idle.

    Args:
      requested: the settings; at most one size is -1.
      micro_batch_size: sequences that data x fsdp devices split evenly.
      n_devices: how many there are; the product of the sizes is at most this.
      kv_heads: key/value heads, that tensor x sequence devices split evenly.
      block_size: tokens per sequence, that the devices of the axis sequence split evenly.

    Raises:
      ConfigError: there are too few devices, or they can't split the batch evenly.
    """
    sizes = {name: getattr(requested, name) for name in AXES}
    fixed = requested.n_requested
    if fixed > n_devices:
        shown = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size != -1)
        raise ConfigError(
            f"{shown} ask for {fixed} devices, and there are {n_devices}; try smaller ones"
        )
    batch_devices = math.prod(sizes[name] for name in ("data", "fsdp") if sizes[name] != -1)
    if micro_batch_size % batch_devices:
        raise ConfigError(
            f"{batch_devices} devices (mesh.data x mesh.fsdp) can't share {micro_batch_size} "
            "sequences at once; try a train.batch_size or train.micro_batch divisible by "
            f"{batch_devices}"
        )
    divisible = {  # what the size of an axis must divide, where it is -1
        "data": micro_batch_size // batch_devices,
        "fsdp": micro_batch_size // batch_devices,
        "tensor": kv_heads // sizes["sequence"],
        "sequence": math.gcd(kv_heads // sizes["tensor"], block_size),
    }
    most = n_devices // fixed
    data, fsdp, tensor, sequence = (
        next(n for n in range(most, 0, -1) if divisible[name] % n == 0) if size == -1 else size
        for name, size in sizes.items()
    )
    return data, fsdp, tensor, sequence


def micro_batches(config: Config, n_devices: int) -> list[int]:
    """Returns the micro-batch sizes to choose from, the largest first.

    They divide the batch, and use as many devices as any does.

    Raises:
      ConfigError: the mesh does not fit the devices.
    """
    model, B = config.model, config.train.batch_size
    sizes, error = {}, None
    for n in range(B, 0, -1):
        if B % n:
            continue
        try:
            mesh = resolve_axis_sizes(config.mesh, n, n_devices, model.kv_heads, model.block_size)
            sizes[n] = math.prod(mesh)
        except ConfigError as problem:  # too few sequences for the devices
            error = error or problem
    if error and not sizes:
        raise error
    most = max(sizes.values())
    return [n for n, size in sizes.items() if size == most]


def with_micro_batch(config: Config, n: int) -> Config:
    """Returns the settings with micro-batches of n sequences."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=n))


def mesh_of(config: Config) -> Mesh:
    """Returns the mesh of a run's settings on the devices there are; raises as `make_mesh`."""
    return make_mesh(
        config.train.micro_batch_size,
        sizes=config.mesh,
        kv_heads=config.model.kv_heads,
        block_size=config.model.block_size,
    )


def params_mesh(
    requested: MeshConfig,
    kv_heads: int = 1,
    devices: Sequence[jax.Device] | None = None,
    n_embd: int | None = None,
) -> Mesh:
    """Returns the mesh on which a run's parameters are loaded, to evaluate it or to sample.

    Its axes fsdp and tensor are those of training, or smaller where there are fewer devices, and
    its other axes have one device. An axis that is -1 takes as many as there are and divide what
    it splits.

    Args:
      requested: the run's settings, or those to load it with.
      kv_heads: key/value heads, that the axis tensor splits evenly.
      devices: None is those of this process.
      n_embd: of the model, that fsdp x tensor devices split evenly; None is any.
    """
    devices = jax.local_devices() if devices is None else devices
    n = len(devices)
    tensor = largest_divisor(kv_heads if requested.tensor == -1 else requested.tensor, n)
    fsdp = largest_divisor(requested.fsdp, n // tensor) if requested.fsdp != -1 else n // tensor
    if requested.fsdp == -1 and n_embd is not None:
        fsdp = largest_divisor(n_embd // tensor, fsdp)
    sizes = MeshConfig(data=1, fsdp=fsdp, tensor=tensor)
    return make_mesh(fsdp, devices[: fsdp * tensor], sizes, kv_heads)


def params_mesh_over_hosts(config: Config) -> Mesh | None:
    """Returns the mesh on which all hosts together load the parameters of a run they have trained.

    Its axes fsdp and tensor are those of training, on the devices of all hosts; the axis data has
    the other devices. So a model that fits only across hosts can be evaluated after training.

    Returns:
      None on one host, and where `params_mesh` splits the parameters as far on each host alone.
    """
    if jax.process_count() == 1:
        return None
    heads, width = config.model.kv_heads, config.model.n_embd
    here = params_mesh(config.mesh, heads, n_embd=width)
    whole = params_mesh(config.mesh, heads, jax.devices(), width)
    if here.size >= whole.size:
        return None
    data, fsdp = jax.device_count() // whole.size, whole.shape["fsdp"]
    sizes = MeshConfig(data=data, fsdp=fsdp, tensor=whole.shape["tensor"])
    return make_mesh(data * fsdp, sizes=sizes, kv_heads=heads)


def host_device() -> jax.Device:
    """Returns the CPU beside an accelerator; if jax has no CPU backend, any local device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def make_mesh(
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
    sizes: MeshConfig = MeshConfig(),  # noqa: B008, frozen
    kv_heads: int = 1,
    block_size: int = 1,
) -> Mesh:
    """Returns a mesh of (data, fsdp, tensor, sequence) devices.

    Args:
      batch_size: sequences computed at once, that data x fsdp devices split evenly.
      devices: None is all there are.
      sizes: of the axes; by default as many devices as divide the batch, all on the axis data.
      kv_heads: key/value heads, that tensor x sequence devices split evenly.
      block_size: tokens per sequence, that the devices of the axis sequence split evenly.

    Raises:
      ConfigError: there are too few devices, or they can't split the batch evenly; or the mesh
        uses no device of some host.
    """
    devices = jax.devices() if devices is None else devices
    shape = resolve_axis_sizes(sizes, batch_size, len(devices), kv_heads, block_size)
    # Auto: XLA chooses shardings that are not given; Explicit, jax's default, does not suit linen.
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    used = devices[: math.prod(shape)]
    if idle := {d.process_index for d in devices} - {d.process_index for d in used}:
        raise ConfigError(
            f"a batch of {batch_size} at once uses {len(used)} of {len(devices)} devices, and host "
            f"{min(idle)} has none of them; use a multiple of {len(devices)}"
        )
    return Mesh(np.array(used).reshape(shape), AXES, axis_types=types)
